//! Having keys delivered again, beside everybody else.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::sync::Barrier;
use uuid::Uuid;
use waybill_domain::{Kind, SinkName};
use waybill_storage::{
    repair::{self, Redelivery},
    verify::{self, BACKLOG_ROWS_MAX, Claim},
};
use waybill_testkit::psql;

use crate::support::{Fixture, source};

const SINK: SinkName = SinkName::Qdrant;

impl Fixture {
    /// Stores passages, confirms them as a relay would, and returns the chunks' ids, ascending.
    async fn delivered(&self, passages: &[&str]) -> Vec<Uuid> {
        self.put(source(self.project, "a", passages)).await;
        self.confirm_all().await;
        self.sql("UPDATE outbox_cursor SET closed_seq = (SELECT last_value FROM outbox_seq)").await;
        self.sql("SELECT id FROM chunk ORDER BY id").await.lines().map(|id| id.parse().unwrap()).collect()
    }

    fn again(&self, key: Uuid) -> Redelivery {
        Redelivery { kind: Kind::Chunk, key, project_id: self.project, claim: None, ahead: None }
    }
}

#[tokio::test]
async fn claims_are_taken_back_with_the_rows_that_renew_them() {
    let fixture = Fixture::new().await;
    let ids = fixture.delivered(&["one", "two", "three"]).await;
    let states = verify::examine(&fixture.db, SINK, &ids).await.unwrap();
    assert!(states.iter().all(|state| state.is_confirmed() && !state.pending));
    fixture.forget_outbox().await;

    // The relay has confirmed something else of the second since it was looked at.
    fixture.sql(&format!("UPDATE index_state SET version = version + 1 WHERE key = '{}'", ids[1])).await;
    let keys: Vec<Redelivery> =
        states[..2].iter().map(|state| Redelivery { claim: state.claim, ..fixture.again(state.id) }).collect();
    assert_eq!(repair::redeliver(&fixture.db, SINK, &keys).await.unwrap(), 2);
    assert_eq!(fixture.outbox_keys().await, ids[..2].iter().map(Uuid::to_string).collect::<Vec<_>>());
    let left = verify::claims_of(&fixture.db, SINK, &ids).await.unwrap();
    let left: BTreeSet<Uuid> = left.into_iter().map(|claim| claim.key).collect();
    assert_eq!(left, BTreeSet::from([ids[1], ids[2]]));

    let states = verify::examine(&fixture.db, SINK, &ids).await.unwrap();
    assert_eq!(states.iter().map(|state| state.pending).collect::<Vec<_>>(), [true, true, false]);
    assert_eq!(states[0].claim, None);
    // Done twice, it has the same outcome.
    repair::redeliver(&fixture.db, SINK, &keys).await.unwrap();
    assert_eq!(verify::claims_of(&fixture.db, SINK, &ids).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_row_that_is_behind_gets_a_version_above_what_was_seen() {
    let fixture = Fixture::new().await;
    let ids = fixture.delivered(&["one", "two"]).await;
    let last = fixture.number("SELECT last_value FROM row_version").await;
    let seen = last + 500;
    repair::pass_versions(&fixture.db, &[3, seen, seen - 1, last + 5_000], 1_000).await.unwrap();
    let behind = Redelivery { ahead: Some(seen), ..fixture.again(ids[0]) };
    for _ in 0..2 {
        repair::redeliver(&fixture.db, SINK, std::slice::from_ref(&behind)).await.unwrap();
    }
    let versions = fixture.sql("SELECT id, version FROM chunk").await;
    let versions: BTreeMap<Uuid, i64> = versions
        .lines()
        .filter_map(|line| line.split_once('|'))
        .map(|(id, version)| (id.parse().unwrap(), version.parse().unwrap()))
        .collect();
    assert!(versions[&ids[0]] > seen, "{versions:?}");
    assert!(versions[&ids[1]] <= last, "the other is as it was: {versions:?}");
    let moved = fixture.number("SELECT last_value FROM row_version").await;
    assert_eq!(moved, versions[&ids[0]], "touched once");
    // Neither what is passed already nor what no row ever had moves it.
    repair::pass_versions(&fixture.db, &[seen, moved + 1_001, i64::MAX], 1_000).await.unwrap();
    assert_eq!(fixture.number("SELECT last_value FROM row_version").await, moved);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_version_is_handed_out_twice_while_the_sequence_is_moved() {
    let fixture = Fixture::new().await;
    let start = Arc::new(Barrier::new(8));
    let takers = (0..4).map(|_| {
        let (url, start) = (fixture.database.url.clone(), Arc::clone(&start));
        tokio::spawn(async move {
            start.wait().await;
            let mut taken = Vec::new();
            for _ in 0..20 {
                let versions = psql(&url, "SELECT nextval('row_version') FROM generate_series(1, 500)").await.unwrap();
                taken.extend(versions.lines().map(|version| version.parse::<i64>().unwrap()));
            }
            taken
        })
    });
    let movers = (0..4_i64).map(|number| {
        let (db, start) = (fixture.db.clone(), Arc::clone(&start));
        tokio::spawn(async move {
            start.wait().await;
            for round in 1..=50 {
                // Just where the takers are, and far ahead.
                let near = round * 700 + number;
                let far = (round % 25 == 0).then_some((round * 4 + number) << 30);
                let seen: Vec<i64> = [near].into_iter().chain(far).collect();
                repair::pass_versions(&db, &seen, i64::MAX / 2).await.unwrap();
            }
        })
    });
    let (takers, movers): (Vec<_>, Vec<_>) = (takers.collect(), movers.collect());
    let mut taken = Vec::new();
    for taker in takers {
        taken.extend(taker.await.unwrap());
    }
    for mover in movers {
        mover.await.unwrap();
    }
    assert_eq!(taken.iter().collect::<BTreeSet<_>>().len(), 4 * 20 * 500);
    assert!(fixture.number("SELECT last_value FROM row_version").await > (50 * 4 + 3) << 30);
}

#[tokio::test]
async fn what_lies_beyond_a_look_at_the_backlog_counts_as_waiting() {
    let fixture = Fixture::new().await;
    let ids = fixture.delivered(&["one"]).await;
    fixture.sql("DELETE FROM index_state").await;
    assert!(!verify::examine(&fixture.db, SINK, &ids).await.unwrap()[0].pending, "nothing is to come");
    let backlog = format!(
        "INSERT INTO outbox (sink, lane, kind, key, project_id)
         SELECT 'qdrant', 1, 'chunk', '00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-000000000001'
         FROM generate_series(1, {BACKLOG_ROWS_MAX})"
    );
    fixture.sql(&backlog).await;
    assert!(verify::examine(&fixture.db, SINK, &ids).await.unwrap()[0].pending, "nobody knows");
    fixture.sql("DELETE FROM outbox WHERE seq = (SELECT max(seq) FROM outbox)").await;
    assert!(!verify::examine(&fixture.db, SINK, &ids).await.unwrap()[0].pending, "all of it was seen");
}

#[tokio::test]
async fn pages_go_by_id_over_all_kinds() {
    let fixture = Fixture::new().await;
    let ids = fixture.delivered(&["one", "two", "three", "four", "five"]).await;
    let entities = format!(
        "INSERT INTO entity (id, project_id, type, canonical, aliases) SELECT derived_id('{0}', n::text), '{0}', 't', n::text, '{{}}' FROM generate_series(1, 5) AS n",
        fixture.project.as_uuid()
    );
    fixture.sql(&entities).await;
    let all = fixture.sql("SELECT id FROM chunk UNION SELECT id FROM entity ORDER BY id").await;
    let all: Vec<Uuid> = all.lines().map(|id| id.parse().unwrap()).collect();
    for project in [None, Some(fixture.project)] {
        let mut seen = Vec::new();
        let mut from = Uuid::nil();
        loop {
            let page = verify::rows(&fixture.db, project, from, 3).await.unwrap();
            let Some(last) = page.last() else { break };
            from = Uuid::from_u128(last.id.as_u128() + 1);
            seen.extend(page.into_iter().map(|row| row.id));
        }
        assert_eq!(seen, all);
    }
    let nobody = waybill_domain::ProjectId::from_uuid(Uuid::from_u128(1));
    assert!(verify::rows(&fixture.db, Some(nobody), Uuid::nil(), 3).await.unwrap().is_empty());
    let claims: Vec<Claim> = verify::claims(&fixture.db, SINK, ids[1], 2).await.unwrap();
    assert_eq!(claims.iter().map(|claim| claim.key).collect::<Vec<_>>(), ids[1..3]);
    let sample = verify::sample(&fixture.db, SINK, 40, 3).await.unwrap();
    assert!(!sample.is_empty() && sample.iter().all(|key| ids.contains(key)));
    fixture.sql("UPDATE index_state SET deleted = true").await;
    assert!(verify::sample(&fixture.db, SINK, 40, 3).await.unwrap().is_empty());
}
