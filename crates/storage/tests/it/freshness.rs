//! Whether the vector store shows a write, and how much it has yet to confirm.

use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::time::Instant;
use waybill_domain::{SinkName, SourceId};
use waybill_storage::{
    backlog,
    freshness::{self, Awaited},
    index, sources,
};
use waybill_testkit::eventually;

use crate::support::{Fixture, source};

const PATIENCE: Duration = Duration::from_secs(20);

async fn put(t: &Fixture, uri: &str, passages: &[&str]) -> Awaited {
    let put = t.put(source(t.project, uri, passages)).await;
    Awaited { source: put.source_id, version: put.version }
}

async fn missing(t: &Fixture, awaited: &[Awaited]) -> Vec<Awaited> {
    freshness::unconfirmed(&t.db, awaited).await.unwrap()
}

/// Confirms the chunks of one text, as a settle does.
async fn confirm(t: &Fixture, text: &str) {
    t.sql(&format!(
        "INSERT INTO index_state (sink, kind, key, version) SELECT 'qdrant', 'chunk', id, version FROM chunk WHERE text = '{text}'
         ON CONFLICT (sink, kind, key) DO UPDATE SET version = excluded.version, deleted = false"
    ))
    .await;
}

#[tokio::test]
async fn a_write_is_shown_when_each_chunk_is_confirmed_as_it_is() {
    let t = Fixture::new().await;
    let (a, b) = (put(&t, "a", &["one", "two"]).await, put(&t, "b", &["three"]).await);
    assert_eq!(missing(&t, &[a, b]).await, [a, b]);
    confirm(&t, "one").await;
    confirm(&t, "three").await;
    assert_eq!(missing(&t, &[a, b]).await, [a], "one of its chunks is not");
    confirm(&t, "two").await;
    assert_eq!(missing(&t, &[a, b]).await, []);

    // The token of the older write asks for the newer state too: that is what will be found.
    let newer = put(&t, "a", &["one", "neuf"]).await;
    assert!(newer.version > a.version);
    assert_eq!(missing(&t, &[a, newer, b]).await, [a, newer]);
    confirm(&t, "neuf").await;
    assert_eq!(missing(&t, &[a, newer, b]).await, []);
    t.sql("UPDATE index_state SET version = version - 1 WHERE key = (SELECT id FROM chunk WHERE text = 'one')").await;
    assert_eq!(missing(&t, &[a]).await, [a], "an older version");
    t.sql("UPDATE index_state SET version = version + 1, deleted = true WHERE key = (SELECT id FROM chunk WHERE text = 'one')").await;
    assert_eq!(missing(&t, &[a]).await, [a], "a tombstone");

    let future = Awaited { version: b.version + 1_000, ..b };
    assert_eq!(missing(&t, &[future]).await, [future], "a write that this Postgres has not");
    sources::delete(&t.db, a.source, None, None).await.unwrap();
    assert_eq!(missing(&t, &[a, Awaited { source: SourceId::derive(t.project, "never"), version: 1 }]).await, []);
    assert_eq!(freshness::uris(&t.db, &[a.source, b.source], 5).await.unwrap(), ["b"]);
}

#[tokio::test]
async fn a_wait_ends_with_the_confirmation_or_its_time() {
    let t = Fixture::new().await;
    let (a, b) = (put(&t, "a", &["one"]).await, put(&t, "b", &["two"]).await);
    assert_eq!(freshness::wait(&t.db, &[a, b], Instant::now()).await.unwrap(), [a, b]);
    let until = Instant::now() + PATIENCE;
    let waiting = tokio::spawn({
        let db = t.db.clone();
        async move { (freshness::wait(&db, &[a, b], until).await.unwrap(), Instant::now()) }
    });
    confirm(&t, "one").await;
    confirm(&t, "two").await;
    let (missing, ended) = waiting.await.unwrap();
    assert_eq!(missing, []);
    assert!(ended < until);
}

#[tokio::test]
async fn a_long_transaction_delays_nobody() {
    let t = Fixture::new().await;
    let mut other = PgConnection::connect(&t.database.url).await.unwrap();
    let mut open = other.begin().await.unwrap();
    sqlx::query("UPDATE project SET settings = '{}'").execute(&mut *open).await.unwrap();
    let a = put(&t, "a", &["one"]).await;
    t.confirm_all().await;
    assert_eq!(t.number("SELECT max(closed_seq) FROM outbox_cursor").await, 0, "nothing is closed");
    assert_eq!(missing(&t, &[a]).await, []);
    assert_eq!(backlog::estimate(&t.db, SinkName::Qdrant).await.unwrap(), 0);
    open.rollback().await.unwrap();
}

#[tokio::test]
async fn a_look_costs_one_index_entry_a_chunk() {
    let t = Fixture::new().await;
    t.sql("ALTER TABLE index_state SET (autovacuum_enabled = off)").await;
    t.sql("INSERT INTO index_state (sink, kind, key, version) SELECT 'qdrant', 'chunk', gen_random_uuid(), 1 FROM generate_series(1, 3000)").await;
    let passages: Vec<String> = (0..100).map(|number| format!("passage {number}")).collect();
    let a = put(&t, "a", &passages.iter().map(String::as_str).collect::<Vec<_>>()).await;
    t.confirm_all().await;
    t.sql("SELECT pg_stat_reset()").await;
    assert_eq!(missing(&t, &[a]).await, []);
    // A connection reports its figures when it ends.
    t.db.close().await;
    let read = "SELECT coalesce(sum(idx_tup_read), 0) FROM pg_stat_user_indexes WHERE relname = 'index_state'";
    let mut rows = 0;
    eventually("the look is counted", PATIENCE, async || {
        rows = t.number(read).await;
        rows > 0
    })
    .await;
    assert_eq!(rows, 100);
}

#[tokio::test]
async fn a_small_backlog_is_counted_and_a_large_one_estimated() {
    let t = Fixture::new().await;
    let estimate = async || backlog::estimate(&t.db, SinkName::Qdrant).await.unwrap();
    assert_eq!(estimate().await, 0);
    let passages: Vec<String> = (0..200).map(|number| format!("passage {number}")).collect();
    let passages: Vec<&str> = passages.iter().map(String::as_str).collect();
    let a = put(&t, "a", &passages).await;
    assert_eq!(estimate().await, 200);
    confirm(&t, "passage 7").await;
    assert_eq!(estimate().await, 199);
    t.confirm_all().await;
    assert_eq!(estimate().await, 0);
    // Deleted, each chunk has to go from the vector store. What is closed is not looked at: a key
    // counts once for each of its rows above that.
    t.sql("UPDATE outbox_cursor SET closed_seq = (SELECT max(seq) FROM outbox)").await;
    sources::delete(&t.db, a.source, None, None).await.unwrap();
    assert_eq!(estimate().await, 200);
    t.sql("UPDATE index_state SET deleted = true").await;
    assert_eq!(estimate().await, 0);

    // Requests of a language model are none of its business.
    put(&t, "b", &["one"]).await;
    t.confirm_all().await;
    t.sql("INSERT INTO outbox (sink, lane, kind, key, project_id) SELECT 'llm', 0, 'llm_request', gen_random_uuid(), gen_random_uuid() FROM generate_series(1, 100)").await;
    assert_eq!(estimate().await, 0);

    // 20,000 positions, half of them confirmed, the older half.
    t.sql(
        "INSERT INTO chunk (id, project_id, source_id, ordinal, text, text_hash, start_byte, end_byte, token_count)
         SELECT gen_random_uuid(), s.project_id, s.id, n, '', sha256(''), 0, 0, 1 FROM source s, generate_series(1, 10000) AS n",
    )
    .await;
    t.confirm_all().await;
    t.sql(
        "INSERT INTO chunk (id, project_id, source_id, ordinal, text, text_hash, start_byte, end_byte, token_count)
         SELECT gen_random_uuid(), s.project_id, s.id, n, '', sha256(''), 0, 0, 1 FROM source s, generate_series(1, 10000) AS n",
    )
    .await;
    let estimated = estimate().await;
    assert!((6_000..=14_000).contains(&estimated), "{estimated} for 10,000");
    t.confirm_all().await;
    assert_eq!(estimate().await, 0, "what is confirmed counts nowhere");
}

#[tokio::test]
async fn what_was_confirmed_of_a_lost_collection_is_void() {
    let t = Fixture::new().await;
    let a = put(&t, "a", &["one"]).await;
    confirm(&t, "one").await;
    assert_eq!(missing(&t, &[a]).await, []);
    let first = index::renew(&t.db).await.unwrap();
    assert_eq!(missing(&t, &[a]).await, [a]);

    // Nothing was lost, as another relay had made the collection.
    index::keep(&t.db, first).await.unwrap();
    assert_eq!(missing(&t, &[a]).await, []);

    // Two try at once. Whoever made it, and whenever the other says that it didn't: it stays void.
    for slower_made_it in [false, true] {
        let (one, other) = (index::renew(&t.db).await.unwrap(), index::renew(&t.db).await.unwrap());
        let (maker, loser) = if slower_made_it { (other, one) } else { (one, other) };
        index::keep(&t.db, loser).await.unwrap();
        assert_eq!(missing(&t, &[a]).await, [a]);
        let now = index::generation(&t.db).await.unwrap();
        assert_eq!(now, maker.generation, "what its maker confirms counts");
        t.sql(&format!("UPDATE index_state SET generation = {now}")).await;
        assert_eq!(missing(&t, &[a]).await, []);
    }
}
