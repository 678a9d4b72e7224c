//! The engine against a real Postgres.

use std::{collections::BTreeMap, sync::Arc, sync::atomic::Ordering};

use futures::future::join_all;
use waybill_domain::ErrorClass;
use waybill_outbox::EngineConfig;
use waybill_testkit::{TestDb, TestPostgres, eventually, psql};

use crate::world::{PATIENCE, Running, Shown, config, confirmed, insert_chunks, number, rows, set_up};

pub(crate) async fn wait_until_equal(url: &str, shown: &Shown) {
    eventually("the sink shows what Postgres says", PATIENCE, async || {
        let rows = rows(url).await;
        shown.points() == rows && confirmed(url).await == rows
    })
    .await;
    shown.assert_no_overlap();
}

pub(crate) async fn wait_until_closed(url: &str) {
    eventually("every lane is closed up to the end", PATIENCE, async || {
        number(
            url,
            "SELECT min(closed_seq) - (SELECT last_value FROM outbox_seq) FROM outbox_cursor WHERE sink = 'qdrant'",
        )
        .await
            == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_delivered_and_coalesced() {
    let db = TestDb::create().await.unwrap();
    set_up(&db.url).await;
    psql(&db.url, &insert_chunks(500)).await.unwrap();
    for _ in 0..5 {
        psql(&db.url, "UPDATE chunk SET ordinal = ordinal + 1").await.unwrap();
    }
    psql(&db.url, "DELETE FROM chunk WHERE ordinal % 10 = 0").await.unwrap();

    let shown = Arc::new(Shown::default());
    // 3,050 rows of 500 keys, read at once: however many changes, a key costs one delivery.
    let engine =
        Running::start(&db.url, &shown, EngineConfig { read_rows_max: 5_000, outstanding_rows_max: 5_000, ..config() });
    wait_until_equal(&db.url, &shown).await;
    wait_until_closed(&db.url).await;
    assert_eq!(shown.points().len(), 450);
    assert_eq!(shown.deliveries.lock().unwrap().values().sum::<u32>(), 500);

    psql(&db.url, "DELETE FROM project").await.unwrap();
    wait_until_equal(&db.url, &shown).await;
    assert_eq!(shown.points(), BTreeMap::new());
    engine.stop().await;
    assert_eq!(
        number(&db.url, "SELECT count(*) FROM outbox_cursor WHERE owner IS NOT NULL").await,
        0,
        "lanes were given back"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_very_first_row_is_delivered() {
    let db = TestDb::create().await.unwrap();
    let shown = Arc::new(Shown::default());
    // The relay has looked at the empty log before there is anything in it.
    let engine = Running::start(&db.url, &shown, config());
    eventually("the relay reads", PATIENCE, async || {
        number(&db.url, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%pg_current_snapshot%' AND state = 'idle'").await > 0
    })
    .await;
    set_up(&db.url).await;
    psql(&db.url, &insert_chunks(1)).await.unwrap();
    wait_until_equal(&db.url, &shown).await;
    assert_eq!(shown.points().len(), 1);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_transaction_delays_only_its_own_rows() {
    let db = TestDb::create().await.unwrap();
    set_up(&db.url).await;
    psql(&db.url, "CREATE TABLE go (n int)").await.unwrap();
    let shown = Arc::new(Shown::default());
    let engine = Running::start(&db.url, &shown, config());
    // It has its xid and its rows, and commits when the table has a row.
    let open = tokio::spawn({
        let url = db.url.clone();
        let sql = format!(
            "BEGIN; {} DO $$ BEGIN WHILE NOT EXISTS (SELECT FROM go) LOOP PERFORM pg_sleep(0.01); END LOOP; END $$; COMMIT",
            insert_chunks(10)
        );
        async move { psql(&url, &sql).await }
    });
    let running = "SELECT count(*) FROM pg_locks WHERE locktype = 'relation' AND relation = 'go'::regclass AND granted";
    eventually("the transaction is open", PATIENCE, async || number(&db.url, running).await == 1).await;
    let open_since = number(&db.url, "SELECT last_value FROM outbox_seq").await;

    // Around it, others commit, in the order of their positions and out of it.
    for round in 1..=5 {
        let late = format!("BEGIN; {} SELECT pg_sleep(0.05); COMMIT", insert_chunks(10));
        let early = insert_chunks(10);
        let (late, early) = tokio::join!(psql(&db.url, &late), psql(&db.url, &early));
        late.and(early).unwrap();
        eventually("all that is committed is shown", PATIENCE, async || shown.points().len() == round * 20).await;
    }
    assert_eq!(shown.points(), rows(&db.url).await, "the open transaction's rows are nobody's yet");
    let closed = number(&db.url, "SELECT max(closed_seq) FROM outbox_cursor").await;
    assert!(closed < open_since, "closed at {closed}, though rows may still appear at {open_since}");

    psql(&db.url, "INSERT INTO go VALUES (1)").await.unwrap();
    open.await.unwrap().unwrap();
    wait_until_equal(&db.url, &shown).await;
    assert_eq!(shown.points().len(), 110);
    wait_until_closed(&db.url).await;
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_that_commit_late_lose_nothing() {
    let db = TestDb::create().await.unwrap();
    set_up(&db.url).await;
    let shown = Arc::new(Shown::default());
    let engines = [Running::start(&db.url, &shown, config()), Running::start(&db.url, &shown, config())];
    let writers = (0..8).map(|writer| {
        let url = db.url.clone();
        async move {
            let mut script = String::new();
            for n in 0..40 {
                let end = if (n + writer) % 5 == 0 { "ROLLBACK" } else { "COMMIT" };
                script += &format!(
                    "BEGIN; {} SAVEPOINT a; {} {} ; SELECT pg_sleep(random() * 0.03); {} {end};\n",
                    insert_chunks(2),
                    insert_chunks(1),
                    if n % 2 == 0 { "ROLLBACK TO a" } else { "RELEASE a" },
                    insert_chunks(1),
                );
                script += "DELETE FROM chunk WHERE id IN (SELECT id FROM chunk ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED);\n";
            }
            psql(&url, &script).await.unwrap();
        }
    });
    join_all(writers).await;
    wait_until_equal(&db.url, &shown).await;
    wait_until_closed(&db.url).await;
    for engine in engines {
        engine.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_engines_share_the_lanes_and_a_dead_ones_lanes_move() {
    let db = TestDb::create().await.unwrap();
    set_up(&db.url).await;
    let shown = Arc::new(Shown::default());
    let first = Running::start(&db.url, &shown, config());
    let lanes_of = |engine: &Running| {
        let sql = format!("SELECT count(*) FROM outbox_cursor WHERE owner = '{}' AND lease_until > now()", engine.id);
        let url = db.url.clone();
        async move { number(&url, &sql).await }
    };
    eventually("one relay holds all lanes", PATIENCE, async || lanes_of(&first).await == 64).await;
    let second = Running::start(&db.url, &shown, config());
    eventually("they share", PATIENCE, async || lanes_of(&first).await == 32 && lanes_of(&second).await == 32).await;
    psql(&db.url, &insert_chunks(300)).await.unwrap();
    wait_until_equal(&db.url, &shown).await;
    assert!(first.stats.read().confirmed_total > 0 && second.stats.read().confirmed_total > 0, "both deliver");

    // It dies with deliveries under way, before anything of them is sent.
    shown.gate.close();
    psql(&db.url, "UPDATE chunk SET ordinal = 7").await.unwrap();
    eventually("both deliver", PATIENCE, async || {
        first.stats.read().in_flight > 0 && second.stats.read().in_flight > 0
    })
    .await;
    second.crash().await;
    shown.gate.open();
    eventually("its lanes have moved", PATIENCE, async || lanes_of(&first).await == 64).await;
    eventually("the sink shows what Postgres says", PATIENCE, async || shown.points() == rows(&db.url).await).await;
    wait_until_closed(&db.url).await;
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_was_lost_settles_nothing() {
    let db = TestDb::create().await.unwrap();
    set_up(&db.url).await;
    psql(&db.url, &insert_chunks(50)).await.unwrap();
    let shown = Arc::new(Shown::default());
    shown.gate.close();
    let engine = Running::start(&db.url, &shown, config());
    eventually("a delivery waits at the gate", PATIENCE, async || engine.stats.read().in_flight > 0).await;
    // Somebody else takes every lane, as after a pause that outlasted the lease.
    psql(
        &db.url,
        "UPDATE outbox_cursor SET owner = '00000000-0000-0000-0000-0000000000aa', epoch = epoch + 1, lease_until = now() + interval '1 hour'",
    )
    .await
    .unwrap();
    shown.gate.open();
    eventually("the delivery has ended", PATIENCE, async || engine.stats.read().in_flight == 0).await;
    assert_eq!(number(&db.url, "SELECT count(*) FROM index_state").await, 0, "nothing was settled");
    assert_eq!(number(&db.url, "SELECT max(closed_seq) FROM outbox_cursor").await, 0, "no cursor moved");
    psql(&db.url, "UPDATE outbox_cursor SET lease_until = '-infinity'").await.unwrap();
    wait_until_equal(&db.url, &shown).await;
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_is_down_writes_nothing_and_catches_up() {
    let db = TestDb::create().await.unwrap();
    set_up(&db.url).await;
    let shown = Arc::new(Shown::default());
    shown.down.store(true, Ordering::SeqCst);
    let engine = Running::start(&db.url, &shown, config());
    psql(&db.url, &insert_chunks(200)).await.unwrap();
    eventually("the failure shows", PATIENCE, async || engine.stats.read().last_error == "down").await;
    let writes =
        number(&db.url, "SELECT n_tup_ins + n_tup_upd FROM pg_stat_user_tables WHERE relname = 'index_state'").await;
    assert_eq!(writes, 0, "nothing was written for a sink that is down");
    shown.down.store(false, Ordering::SeqCst);
    wait_until_equal(&db.url, &shown).await;
    assert_eq!(engine.stats.read().last_error, "");
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_refused_holds_up_no_other() {
    let db = TestDb::create().await.unwrap();
    set_up(&db.url).await;
    psql(&db.url, &insert_chunks(200)).await.unwrap();
    let poisoned = *rows(&db.url).await.keys().next().unwrap();
    let shown = Arc::new(Shown::default());
    shown.poison.lock().unwrap().insert(poisoned, ErrorClass::Unknown);
    let engine = Running::start(&db.url, &shown, config());
    eventually("all others are shown", PATIENCE, async || shown.points().len() == 199).await;
    shown.poison.lock().unwrap().clear();
    wait_until_equal(&db.url, &shown).await;
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_crashes_loses_nothing() {
    let mut postgres = TestPostgres::own().await.unwrap();
    let db = postgres.database().await.unwrap();
    set_up(&db.url).await;
    let shown = Arc::new(Shown::default());
    let engine = Running::start(&db.url, &shown, config());
    for round in 0..3 {
        psql(&db.url, &insert_chunks(300)).await.unwrap();
        eventually("some of it is under way", PATIENCE, async || shown.points().len() > round * 300).await;
        postgres.server_mut().kill9().unwrap();
        postgres.server_mut().restart().await.unwrap();
    }
    wait_until_equal(&db.url, &shown).await;
    wait_until_closed(&db.url).await;
    assert_eq!(shown.points().len(), 900);
    engine.stop().await;
}

#[tokio::test]
async fn the_log_is_read_by_its_index_without_a_sort() {
    let db = TestDb::create().await.unwrap();
    set_up(&db.url).await;
    psql(&db.url, &insert_chunks(20_000)).await.unwrap();
    psql(&db.url, "VACUUM ANALYZE outbox").await.unwrap();
    for lanes in ["0", "0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15"] {
        let plan = psql(
            &db.url,
            &format!(
                "EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF, SUMMARY OFF)
                 SELECT seq, lane, kind, key, project_id, created_at FROM outbox
                 WHERE sink = 'qdrant' AND seq > 5 AND seq <= 20000 AND lane = ANY('{{{lanes}}}') ORDER BY seq LIMIT 100"
            ),
        )
        .await
        .unwrap();
        assert!(plan.contains("Index Scan using outbox_sink_seq"), "{plan}");
        assert!(!plan.contains("Sort"), "{plan}");
    }
}
