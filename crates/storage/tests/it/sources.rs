use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use serde_json::json;
use sqlx::{Connection, PgConnection};
use tokio::{sync::Barrier, time::timeout};
use waybill_domain::{PutOutcome, SourceState};
use waybill_storage::{
    projects,
    sources::{self, PutError, SourceFilter, peek, purge_requests, put_group},
};
use waybill_testkit::eventually;

use crate::support::{Fixture, connect, requested, source};

#[tokio::test]
async fn the_same_put_twice_takes_no_xid() {
    let t = Fixture::new().await;
    let item = source(t.project, "a", &["one", "two"]);
    let first = t.put(item.clone()).await;
    assert_eq!((first.outcome, first.chunk_count, first.chunks_added), (PutOutcome::Created, 2, 2));

    // A lock that lets others read, and do nothing that takes an xid: not even lock a row.
    let mut other = PgConnection::connect(&t.database.url).await.unwrap();
    let mut lock = other.begin().await.unwrap();
    sqlx::query("LOCK TABLE project, source, chunk, put_request IN EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
    let second = timeout(Duration::from_secs(20), t.put(item)).await.expect("no lock is waited for");
    assert_eq!((second.outcome, second.version, second.chunks_added), (PutOutcome::Unchanged, first.version, 0));
    lock.rollback().await.unwrap();
}

#[tokio::test]
async fn only_the_difference_is_written() {
    let t = Fixture::new().await;
    t.put(source(t.project, "a", &["one", "two", "three"])).await;
    let two = t.sql("SELECT id, version FROM chunk WHERE text = 'two'").await;
    let gone = t.sql("SELECT id FROM chunk WHERE text = 'three'").await;
    t.forget_outbox().await;

    let changed = t.put(source(t.project, "a", &["one", "two", "neuf", "four"])).await;
    assert_eq!(
        (changed.outcome, changed.chunks_added, changed.chunks_removed, changed.chunk_count),
        (PutOutcome::Changed, 2, 1, 4)
    );
    assert_eq!(t.sql("SELECT id, version FROM chunk WHERE text = 'two'").await, two, "it stands where it stood");
    let dirty = t.outbox_keys().await;
    assert_eq!(dirty.len(), 3);
    assert!(dirty.contains(&gone));
}

#[tokio::test]
async fn a_chunk_that_moves_keeps_its_id() {
    let t = Fixture::new().await;
    t.put(source(t.project, "a", &["one"])).await;
    let id = t.sql("SELECT id FROM chunk").await;
    let changed = t.put(source(t.project, "a", &["zero", "one"])).await;
    assert_eq!((changed.chunks_added, changed.chunks_removed), (1, 0));
    assert_eq!(
        t.sql("SELECT id, ordinal, start_byte, end_byte FROM chunk WHERE text = 'one'").await,
        format!("{id}|1|5|8")
    );
}

#[tokio::test]
async fn equal_passages_are_chunks_of_their_own() {
    let t = Fixture::new().await;
    t.put(source(t.project, "a", &["same", "same", "same"])).await;
    assert_eq!(t.number("SELECT count(*) FROM chunk").await, 3);
    let less = t.put(source(t.project, "a", &["same", "same"])).await;
    assert_eq!((less.chunks_added, less.chunks_removed), (0, 1));
}

#[tokio::test]
async fn each_thing_that_may_differ_makes_a_change() {
    let t = Fixture::new().await;
    let base = source(t.project, "a", &["one"]);
    let mut given = base.clone();
    given.key.given_title = Some("Title".to_owned());
    let mut metadata = given.clone();
    metadata.key.metadata = json!({"lang": "en", "n": 0.1});
    let mut chunker = metadata.clone();
    chunker.key.chunker = "test2".to_owned();
    t.put(base).await;
    for (what, item) in [("title", given), ("metadata", metadata), ("chunker", chunker)] {
        assert_eq!(t.put(item.clone()).await.outcome, PutOutcome::Changed, "{what}");
        assert_eq!(t.put(item).await.outcome, PutOutcome::Unchanged, "{what}, again");
    }
}

#[tokio::test]
async fn a_change_of_metadata_touches_every_chunk() {
    let t = Fixture::new().await;
    let mut item = source(t.project, "a", &["one", "two"]);
    t.put(item.clone()).await;
    t.forget_outbox().await;
    item.key.metadata = json!({"lang": "en"});
    t.put(item).await;
    assert_eq!(t.outbox_keys().await.len(), 2);
}

#[tokio::test]
async fn a_late_retry_overwrites_nothing() {
    let t = Fixture::new().await;
    let old = requested(source(t.project, "a", &["old"]), "r1");
    let first = t.put(old.clone()).await;
    t.put(source(t.project, "a", &["new"])).await;
    t.forget_outbox().await;

    assert_eq!(t.put(old.clone()).await, first, "the answer of the first call");
    assert_eq!(t.sql("SELECT text FROM chunk").await, "new");
    assert_eq!(t.outbox_keys().await.len(), 0);

    sources::delete(&t.db, first.source_id, None, None).await.unwrap();
    assert_eq!(t.put(old).await, first);
    assert_eq!(t.number("SELECT count(*) FROM source").await, 0, "nor does it bring a deleted source back");
}

#[tokio::test]
async fn a_put_that_changed_nothing_is_remembered_too() {
    let t = Fixture::new().await;
    t.put(source(t.project, "a", &["old"])).await;
    let same = requested(source(t.project, "a", &["old"]), "r1");
    let first = t.put(same.clone()).await;
    assert_eq!(first.outcome, PutOutcome::Unchanged);
    t.put(source(t.project, "a", &["new"])).await;
    assert_eq!(t.put(same).await, first);
    assert_eq!(t.sql("SELECT text FROM chunk").await, "new");
}

#[tokio::test]
async fn another_request_under_the_same_id_is_refused() {
    let t = Fixture::new().await;
    t.put(requested(source(t.project, "a", &["one"]), "r1")).await;
    for other in [source(t.project, "a", &["two"]), source(t.project, "b", &["two"])] {
        let refused = t.try_put(requested(other, "r1")).await;
        assert!(matches!(refused, Err(PutError::RequestIdReused)), "{refused:?}");
    }
    assert_eq!(t.sql("SELECT uri, text FROM source").await, "a|one");

    let elsewhere = projects::create(&t.db, &"q".parse().unwrap()).await.unwrap().unwrap();
    let answer = t.try_put(requested(source(elsewhere.id, "a", &["two"]), "r1")).await;
    assert_eq!(answer.unwrap().outcome, PutOutcome::Created, "an id counts in its project");
}

#[tokio::test]
async fn identical_retries_at_once_write_once() {
    let t = Fixture::new().await;
    for round in 0..10 {
        let item = requested(source(t.project, &format!("a{round}"), &["one", "two"]), &format!("r{round}"));
        let start = Arc::new(Barrier::new(6));
        let puts = (0..6).map(|_| {
            let (db, item, start) = (t.db.clone(), item.clone(), start.clone());
            tokio::spawn(async move {
                start.wait().await;
                put_group(&db, &[item], None).await.unwrap().remove(0).unwrap()
            })
        });
        let answers: Vec<_> = join_all(puts).await.into_iter().map(Result::unwrap).collect();
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    }
    assert_eq!(t.number("SELECT count(*) FROM outbox").await, 20, "each chunk became dirty once");
}

#[tokio::test]
async fn puts_of_one_uri_at_once_come_one_after_the_other() {
    let t = Fixture::new().await;
    let start = Arc::new(Barrier::new(8));
    let puts = (0..8).map(|n| {
        let (db, start) = (t.db.clone(), start.clone());
        let item = source(t.project, "a", &["shared", &format!("own {n}")]);
        tokio::spawn(async move {
            start.wait().await;
            put_group(&db, &[item], None).await.unwrap().remove(0).unwrap()
        })
    });
    let mut answers: Vec<_> = join_all(puts).await.into_iter().map(Result::unwrap).collect();
    answers.sort_by_key(|answer| answer.version);
    assert_eq!(answers[0].outcome, PutOutcome::Created);
    assert!(answers[1..].iter().all(|answer| answer.outcome == PutOutcome::Changed && answer.chunks_removed == 1));
    assert!(answers.windows(2).all(|pair| pair[0].version < pair[1].version));
    assert_eq!(t.number("SELECT count(*) FROM chunk").await, 2);
    assert_eq!(t.number("SELECT count(*) FROM source s JOIN chunk c ON s.text LIKE '%' || c.text || '%'").await, 2);
}

#[tokio::test]
async fn groups_that_overlap_do_not_deadlock() {
    let t = Fixture::new().await;
    let start = Arc::new(Barrier::new(4));
    let groups = (0..4).map(|n| {
        let (db, start, project) = (t.db.clone(), start.clone(), t.project);
        tokio::spawn(async move {
            start.wait().await;
            for round in 0..5 {
                let mut group: Vec<_> =
                    (0..20).map(|uri| source(project, &format!("u{uri}"), &[&format!("{n} {round} {uri}")])).collect();
                if n % 2 == 1 {
                    group.reverse();
                }
                let answers = put_group(&db, &group, None).await.unwrap();
                assert!(answers.iter().all(Result::is_ok), "{answers:?}");
            }
        })
    });
    for group in join_all(groups).await {
        group.unwrap();
    }
    assert_eq!(t.number("SELECT count(*) FROM chunk").await, 20);
    let deadlocks = t.number("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").await;
    assert_eq!(deadlocks, 0);
}

#[tokio::test]
async fn a_group_is_answered_in_its_order_and_a_bad_item_spoils_nothing() {
    let t = Fixture::new().await;
    let nobody = waybill_domain::ProjectId::derive(&"nobody".parse().unwrap());
    let mut poison = source(t.project, "poison", &["one"]);
    poison.title = "nul \0".to_owned();
    let group = [
        source(t.project, "z", &["one"]),
        source(nobody, "a", &["one"]),
        poison,
        source(t.project, "a", &["one"]),
        source(t.project, "a", &["two"]),
        source(t.project, "a", &["two"]),
    ];
    let answers = put_group(&t.db, &group, Some(r#"{"traceparent":"00-1"}"#)).await.unwrap();
    let told: Vec<_> = answers
        .iter()
        .map(|answer| match answer {
            Ok(result) => result.outcome.as_str(),
            Err(PutError::NoProject) => "no project",
            Err(PutError::RequestIdReused) => "reused",
            Err(PutError::Exists | PutError::Provisional { .. }) => "not decided",
            Err(PutError::Storage(_)) => "refused",
        })
        .collect();
    assert_eq!(told, ["created", "no project", "refused", "created", "changed", "unchanged"]);
    assert_eq!(t.sql("SELECT uri FROM source ORDER BY uri").await, "a\nz");
    assert_eq!(t.sql("SELECT DISTINCT headers FROM outbox").await, r#"{"traceparent":"00-1"}"#);
}

#[tokio::test]
async fn peek_answers_what_needs_no_body() {
    let t = Fixture::new().await;
    let stored = source(t.project, "a", &["one"]);
    let remembered = requested(source(t.project, "b", &["one"]), "r1");
    t.put(stored.clone()).await;
    let first = t.put(remembered.clone()).await;
    let mut reused = remembered.key.clone();
    reused.request.as_mut().unwrap().fingerprint = [0; 32];
    let nobody = source(waybill_domain::ProjectId::derive(&"nobody".parse().unwrap()), "a", &["one"]);
    let new = source(t.project, "c", &["one"]);
    let same_with_id = requested(stored.clone(), "r2");

    let keys = [&stored.key, &remembered.key, &reused, &nobody.key, &new.key, &same_with_id.key];
    let answers = peek(&t.db, &keys).await.unwrap();
    assert_eq!(answers[0].as_ref().unwrap().as_ref().unwrap().outcome, PutOutcome::Unchanged);
    assert_eq!(*answers[1].as_ref().unwrap().as_ref().unwrap(), first);
    assert!(matches!(answers[2], Some(Err(PutError::RequestIdReused))));
    assert!(matches!(answers[3], Some(Err(PutError::NoProject))));
    assert!(answers[4].is_none());
    assert!(answers[5].is_none(), "its id has to be remembered");
}

#[tokio::test]
async fn old_answers_are_forgotten_in_steps() {
    let t = Fixture::new().await;
    for n in 0..5 {
        t.put(requested(source(t.project, "a", &["one"]), &format!("r{n}"))).await;
    }
    t.sql("UPDATE put_request SET created_at = now() - interval '25 hours' WHERE request_id <> 'r4'").await;
    let day = Duration::from_secs(24 * 60 * 60);
    assert_eq!(purge_requests(&t.db, day, 3).await.unwrap(), 3);
    assert_eq!(purge_requests(&t.db, day, 3).await.unwrap(), 1);
    assert_eq!(t.sql("SELECT request_id FROM put_request").await, "r4");
}

#[tokio::test]
async fn a_source_is_indexed_when_every_chunk_is_confirmed_as_it_is() {
    let t = Fixture::new().await;
    let id = t.put(source(t.project, "a", &["one", "two"])).await.source_id;
    let state = async || sources::get(&t.db, id, false).await.unwrap().unwrap().state;
    assert_eq!(state().await, SourceState::Chunked);
    t.confirm_all().await;
    assert_eq!(state().await, SourceState::Indexed);
    t.put(source(t.project, "a", &["one", "three"])).await;
    assert_eq!(state().await, SourceState::Chunked, "one chunk is news");
    t.confirm_all().await;
    t.sql("UPDATE index_state SET deleted = true WHERE key = (SELECT id FROM chunk WHERE text = 'one')").await;
    assert_eq!(state().await, SourceState::Chunked, "a tombstone confirms nothing");
}

#[tokio::test]
async fn get_returns_what_was_put() {
    let t = Fixture::new().await;
    let mut item = source(t.project, "a", &["one", "two"]);
    item.key.metadata = json!({"k": [1, "x", null]});
    let put = t.put(item.clone()).await;
    let got = sources::get(&t.db, put.source_id, true).await.unwrap().unwrap();
    assert_eq!(got.text.as_deref(), Some(item.text.as_str()));
    assert_eq!((got.version, got.chunk_count, got.content_hash), (put.version, 2, item.key.content_hash));
    assert_eq!((got.uri, got.title, got.metadata), (item.key.uri, item.title, item.key.metadata));
    assert_eq!(sources::get(&t.db, put.source_id, false).await.unwrap().unwrap().text, None);
}

#[tokio::test]
async fn sources_are_listed_by_uri_with_filters_in_pages() {
    let t = Fixture::new().await;
    let uris = ["B", "a/1", "a/2", "a/3", "a0", "ä"];
    let group: Vec<_> = uris.iter().map(|uri| source(t.project, uri, &["one"])).collect();
    put_group(&t.db, &group, None).await.unwrap();
    t.confirm_all().await;
    t.put(source(t.project, "a/2", &["two"])).await;

    let all = async |filter: SourceFilter, limit| {
        let mut seen = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = sources::list(&t.db, t.project, &filter, after.as_deref(), limit).await.unwrap();
            assert!(page.sources.len() <= usize::try_from(limit).unwrap());
            seen.extend(page.sources.into_iter().map(|source| source.uri));
            after = page.next_after;
            if after.is_none() {
                return seen;
            }
        }
    };
    let prefix = |prefix: &str| SourceFilter { uri_prefix: prefix.to_owned(), state: None };
    let state = |state| SourceFilter { uri_prefix: "a/".to_owned(), state: Some(state) };
    for limit in [1, 2, 6, 100] {
        assert_eq!(all(prefix(""), limit).await, uris, "limit {limit}");
        assert_eq!(all(prefix("a/"), limit).await, ["a/1", "a/2", "a/3"]);
        assert_eq!(all(state(SourceState::Indexed), limit).await, ["a/1", "a/3"]);
        assert_eq!(all(state(SourceState::Chunked), limit).await, ["a/2"]);
        assert!(all(state(SourceState::Failed), limit).await.is_empty());
    }
}

#[tokio::test]
async fn delete_counts_the_chunks_and_dirties_them() {
    let t = Fixture::new().await;
    let id = t.put(source(t.project, "a", &["one", "two"])).await.source_id;
    t.forget_outbox().await;
    let version = t.number("SELECT version FROM source").await;
    let other = sources::delete(&t.db, id, Some(version - 1), None).await.unwrap();
    assert_eq!(other, sources::Deletion::Changed(version));
    assert!(t.outbox_keys().await.is_empty());
    let deleted = sources::delete(&t.db, id, Some(version), None).await.unwrap();
    assert_eq!(deleted, sources::Deletion::Done(sources::Deleted { chunks: 2, version }));
    assert_eq!(t.outbox_keys().await.len(), 2);
    assert_eq!(sources::delete(&t.db, id, None, None).await.unwrap(), sources::Deletion::Missing);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bell_is_heard() {
    let t = Fixture::new().await;
    let db = connect(&t.database.url);
    let mut ear = waybill_storage::Ear::open(&db).await.unwrap();
    let bell = waybill_storage::Bell::start(&db);
    bell.ring();
    timeout(Duration::from_secs(10), ear.heard()).await.expect("a ring").unwrap();
}

#[tokio::test]
async fn whether_a_source_is_indexed_costs_one_look_a_chunk() {
    let t = Fixture::new().await;
    t.sql("ALTER TABLE index_state SET (autovacuum_enabled = off)").await;
    t.sql("INSERT INTO index_state (sink, kind, key, version) SELECT 'qdrant', 'chunk', gen_random_uuid(), 1 FROM generate_series(1, 3000)").await;
    let passages: Vec<String> = (0..100).map(|number| format!("passage {number}")).collect();
    t.put(source(t.project, "a", &passages.iter().map(String::as_str).collect::<Vec<_>>())).await;
    t.confirm_all().await;
    t.sql("SELECT pg_stat_reset()").await;

    let page = sources::list(&t.db, t.project, &SourceFilter::default(), None, 10).await.unwrap();
    assert_eq!(page.sources[0].state, SourceState::Indexed);
    // A connection reports its figures when it ends.
    t.db.close().await;
    let read = "SELECT coalesce(sum(idx_tup_read), 0) FROM pg_stat_user_indexes WHERE relname = 'index_state'";
    let mut rows = 0;
    eventually("the look is counted", Duration::from_secs(20), async || {
        rows = t.number(read).await;
        rows > 0
    })
    .await;
    assert_eq!(rows, 100);
}
