//! Sources that are there wholly or not at all.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use serde_json::json;
use tokio::{sync::Barrier, time::Instant};
use uuid::Uuid;
use waybill_domain::{JobId, Kind, PutOutcome, SourceId};
use waybill_storage::{
    extractions::{self, FactFilter},
    hydrate,
    jobs::{self, NewJob},
    points, projects,
    sources::{self, NewSource, Provisional, PutError, PutResult, SourceFilter, TakeBack, Traces, put_group},
};

use crate::support::{Fixture, requested, source};

const MINUTE: Duration = Duration::from_secs(60);

fn provisional(mut item: NewSource, time: Duration) -> NewSource {
    item.key.provisional = Some(time);
    item
}

fn of(item: &NewSource, put: PutResult) -> Provisional {
    Provisional { project_id: item.key.project_id, put, request: item.key.request.clone() }
}

async fn put(t: &Fixture, uri: &str, passages: &[&str]) -> Provisional {
    let item = provisional(source(t.project, uri, passages), MINUTE);
    let put = t.put(item.clone()).await;
    assert!(put.provisional);
    of(&item, put)
}

async fn take_back(t: &Fixture, source: &Provisional) -> Traces {
    match sources::take_back(&t.db, source, None).await.unwrap() {
        TakeBack::Taken(traces) => traces,
        other => panic!("{other:?}"),
    }
}

/// Settles a tombstone for each key that index_state or the log knows and no chunk has.
async fn settle_deletions(t: &Fixture) {
    t.sql(
        "INSERT INTO index_state (sink, kind, key, version, deleted)
         SELECT DISTINCT 'qdrant', 'chunk', o.key, 0, true FROM outbox o WHERE NOT EXISTS (SELECT FROM chunk c WHERE c.id = o.key)
         ON CONFLICT (sink, kind, key) DO UPDATE SET deleted = true, confirmed_at = now()",
    )
    .await;
}

fn follow(t: &Fixture) -> NewJob {
    NewJob {
        id: JobId::derive(t.project, "follow"),
        project_id: t.project,
        uri_prefix: "docs/".to_owned(),
        priority: "high".to_owned(),
        settings: json!({"priority": "high"}),
        follow: true,
    }
}

/// Everything that a reader could see of the project, as text.
async fn seen(t: &Fixture, id: SourceId) -> String {
    let chunks: Vec<Uuid> = t.sql("SELECT id FROM chunk").await.lines().map(|id| id.parse().unwrap()).collect();
    let facts: Vec<Uuid> = t.sql("SELECT id FROM extraction").await.lines().map(|id| id.parse().unwrap()).collect();
    let keys: Vec<(Kind, Uuid)> =
        chunks.iter().map(|id| (Kind::Chunk, *id)).chain(facts.iter().map(|id| (Kind::Extraction, *id))).collect();
    let filter = FactFilter::all(t.project);
    let page = sources::list(&t.db, t.project, &SourceFilter::default(), None, 10).await.unwrap();
    format!(
        "get {} list {} count {} chunks {} hits {} by uri {} facts {} requests {}",
        sources::get(&t.db, id, true).await.unwrap().is_some(),
        page.sources.len(),
        projects::get(&t.db, &"p".parse().unwrap()).await.unwrap().unwrap().1,
        hydrate::chunks(&t.db, &chunks).await.unwrap().len(),
        hydrate::rows(&t.db, &keys).await.unwrap().len(),
        hydrate::source_ids(&t.db, t.project, &["docs/a".to_owned()]).await.unwrap().len(),
        extractions::list_facts(&t.db, &filter, Uuid::nil(), 10).await.unwrap().len(),
        t.sql("SELECT count(*) FROM llm_request").await,
    )
}

#[tokio::test]
async fn it_is_hidden_from_every_read_until_it_is_confirmed() {
    let t = Fixture::new().await;
    let job = follow(&t);
    jobs::start(&t.db, &job, None).await.unwrap();
    let source = put(&t, "docs/a", &["one", "two"]).await;
    let id = source.put.source_id;
    // What nobody makes of such a source, but somebody may have written by hand.
    t.sql(&format!(
        "INSERT INTO extraction (id, project_id, chunk_id, job_id, type, statement, confidence, quote, quote_start, quote_end, model, prompt_version)
         SELECT gen_random_uuid(), project_id, id, '{}', 'x', 'y', 1, 'one', 0, 3, 'm', '1' FROM chunk WHERE text = 'one'",
        job.id
    ))
    .await;
    let another = NewJob { id: JobId::derive(t.project, "another"), uri_prefix: String::new(), follow: false, ..job };
    jobs::start(&t.db, &another, None).await.unwrap();
    assert_eq!(seen(&t, id).await, "get false list 0 count 0 chunks 0 hits 0 by uri 0 facts 0 requests 0");
    let keys: Vec<Uuid> = t.sql("SELECT id FROM chunk").await.lines().map(|id| id.parse().unwrap()).collect();
    assert_eq!(points::load_chunks(&t.db, &keys).await.unwrap().len(), 2, "the relay delivers it");

    assert_eq!(sources::confirm(&t.db, &source).await.unwrap(), None, "nothing is confirmed");
    t.confirm_all().await;
    t.sql("UPDATE index_state SET deleted = true WHERE key = (SELECT id FROM chunk WHERE text = 'two')").await;
    assert_eq!(sources::confirm(&t.db, &source).await.unwrap(), None, "not all of it is");
    t.confirm_all().await;
    let confirmed = sources::confirm(&t.db, &source).await.unwrap().unwrap();
    assert_eq!((confirmed.outcome, confirmed.provisional), (PutOutcome::Created, false));
    assert_eq!(sources::get(&t.db, id, false).await.unwrap().unwrap().version, confirmed.version);
    assert_eq!(seen(&t, id).await, "get true list 1 count 1 chunks 2 hits 3 by uri 1 facts 1 requests 2");
    assert_eq!(t.sql("SELECT DISTINCT job_id, priority FROM llm_request").await, format!("{}|high", follow(&t).id));
    assert_eq!(sources::confirm(&t.db, &source).await.unwrap(), None, "once");
    assert_eq!(sources::take_back(&t.db, &source, None).await.unwrap(), TakeBack::Confirmed(confirmed.version));
}

#[tokio::test]
async fn it_is_not_confirmed_after_its_time() {
    let t = Fixture::new().await;
    let source = put(&t, "a", &["one"]).await;
    t.confirm_all().await;
    // Past the trigger that gives each change a version: the time has just passed.
    t.sql("ALTER TABLE source DISABLE TRIGGER source_version; UPDATE source SET provisional_until = now() - interval '1 ms'").await;
    assert_eq!(sources::confirm(&t.db, &source).await.unwrap(), None);
    assert_eq!(sources::sweep(&t.db, Duration::ZERO, 10).await.unwrap(), 1);
}

#[tokio::test]
async fn what_was_taken_back_leaves_nothing_and_is_not_remembered() {
    let t = Fixture::new().await;
    let item = requested(provisional(source(t.project, "a", &["one", "two"]), MINUTE), "r1");
    let first = of(&item, t.put(item.clone()).await);
    let traces = take_back(&t, &first).await;
    let left =
        "SELECT (SELECT count(*) FROM source) + (SELECT count(*) FROM chunk) + (SELECT count(*) FROM put_request)";
    assert_eq!(t.number(left).await, 0);
    assert_eq!(sources::take_back(&t.db, &first, None).await.unwrap(), TakeBack::Gone);
    assert_eq!(t.number("SELECT count(*) FROM outbox").await, 4, "two to write, two to delete");
    assert!(!sources::wait_until_gone(&t.db, &traces, Instant::now()).await.unwrap());

    let again = of(&item, t.put(item.clone()).await);
    assert!(again.put.provisional, "the retry is a put of its own");
    assert_eq!(sources::take_back(&t.db, &first, None).await.unwrap(), TakeBack::Gone, "that is another one");
    t.confirm_all().await;
    let confirmed = sources::confirm(&t.db, &again).await.unwrap().unwrap();
    assert_eq!(t.put(item).await, confirmed, "now it is");
}

#[tokio::test]
async fn a_tombstone_of_an_earlier_life_says_nothing() {
    let t = Fixture::new().await;
    let old = t.put(source(t.project, "a", &["one"])).await;
    sources::delete(&t.db, old.source_id, None, None).await.unwrap();
    settle_deletions(&t).await;
    let source = put(&t, "a", &["one"]).await;
    let traces = take_back(&t, &source).await;
    assert_eq!(t.sql("SELECT deleted FROM index_state").await, "t");
    assert!(!sources::wait_until_gone(&t.db, &traces, Instant::now()).await.unwrap());
    let waiting = tokio::spawn({
        let (db, traces) = (t.db.clone(), traces.clone());
        async move { sources::wait_until_gone(&db, &traces, Instant::now() + MINUTE).await.unwrap() }
    });
    settle_deletions(&t).await;
    assert!(waiting.await.unwrap());

    // Put anew by somebody else, its points are theirs.
    let source = put(&t, "a", &["two"]).await;
    let traces = take_back(&t, &source).await;
    t.put(crate::support::source(t.project, "a", &["two"])).await;
    assert!(sources::wait_until_gone(&t.db, &traces, Instant::now()).await.unwrap());
}

#[tokio::test]
async fn others_have_to_wait_until_it_is_decided() {
    let t = Fixture::new().await;
    let first = put(&t, "a", &["one"]).await;
    let plain = source(t.project, "a", &["one"]);
    let other = source(t.project, "a", &["two"]);
    for item in [plain.clone(), other.clone(), provisional(other.clone(), MINUTE), requested(plain.clone(), "r1")] {
        let peeked = sources::peek(&t.db, &[&item.key]).await.unwrap().remove(0).unwrap();
        for refused in [peeked, t.try_put(item).await] {
            let Err(PutError::Provisional { left }) = refused else { panic!("{refused:?}") };
            assert!(left > MINUTE / 2 && left <= MINUTE, "{left:?}");
        }
    }
    assert_eq!(t.sql("SELECT text FROM chunk").await, "one");
    assert_eq!(t.number("SELECT count(*) FROM put_request").await, 0);
    t.confirm_all().await;
    sources::confirm(&t.db, &first).await.unwrap().unwrap();
    let exists = t.try_put(provisional(plain.clone(), MINUTE)).await;
    assert!(matches!(exists, Err(PutError::Exists)), "{exists:?}");
    assert_eq!(t.put(plain).await.outcome, PutOutcome::Unchanged);
    assert_eq!(t.put(other).await.outcome, PutOutcome::Changed);

    // Deleted, it is taken back at once.
    let second = put(&t, "b", &["one"]).await;
    let deleted = sources::delete(&t.db, second.put.source_id, None, None).await.unwrap();
    assert!(matches!(deleted, sources::Deletion::Done(_)));
    assert_eq!(sources::confirm(&t.db, &second).await.unwrap(), None);
    assert_eq!(sources::take_back(&t.db, &second, None).await.unwrap(), TakeBack::Gone);
}

#[tokio::test]
async fn of_puts_at_once_one_is_provisional() {
    let t = Fixture::new().await;
    let start = Arc::new(Barrier::new(8));
    let puts = (0..8).map(|n| {
        let (db, start) = (t.db.clone(), start.clone());
        let item = provisional(source(t.project, "a", &[&format!("own {n}")]), MINUTE);
        tokio::spawn(async move {
            start.wait().await;
            put_group(&db, &[item], None).await.unwrap().remove(0)
        })
    });
    let answers: Vec<_> = join_all(puts).await.into_iter().map(Result::unwrap).collect();
    let won = answers.iter().filter(|answer| matches!(answer, Ok(put) if put.provisional)).count();
    let refused = answers.iter().filter(|answer| matches!(answer, Err(PutError::Provisional { .. }))).count();
    assert_eq!((won, refused), (1, 7), "{answers:?}");
    assert_eq!(t.number("SELECT count(*) FROM chunk").await, 1);
}

#[tokio::test]
async fn the_sweeper_takes_back_what_is_due_in_steps() {
    let t = Fixture::new().await;
    for n in 0..5 {
        put(&t, &format!("due {n}"), &["one", "two"]).await;
    }
    t.sql("UPDATE source SET provisional_until = now() - interval '10 s'").await;
    let kept = put(&t, "kept", &["one"]).await;
    t.put(source(t.project, "plain", &["one"])).await;
    t.forget_outbox().await;
    assert_eq!(sources::sweep(&t.db, MINUTE, 3).await.unwrap(), 0, "not yet");
    let (one, two) = tokio::join!(
        sources::sweep(&t.db, Duration::from_secs(5), 3),
        sources::sweep(&t.db, Duration::from_secs(5), 3)
    );
    // Whatever one has locked, the other passes over: nobody waits, nothing is done twice.
    let mut swept = one.unwrap() + two.unwrap();
    swept += sources::sweep(&t.db, Duration::from_secs(5), 3).await.unwrap();
    assert_eq!(swept, 5);
    assert_eq!(t.sql("SELECT uri FROM source ORDER BY uri").await, "kept\nplain");
    assert_eq!(t.outbox_keys().await.len(), 10, "each chunk's point will go");
    t.confirm_all().await;
    assert!(sources::confirm(&t.db, &kept).await.unwrap().is_some());
}
