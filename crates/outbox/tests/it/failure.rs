//! Keys that a sink refuses, sinks that refuse everything, and sinks that are paused.

use std::{sync::Arc, sync::atomic::Ordering};

use uuid::Uuid;
use waybill_domain::{ErrorClass, SinkName};
use waybill_outbox::{BreakerState, EngineConfig};
use waybill_runtime::Signals;
use waybill_storage::failures::{self, Disposal, LetterFilter};
use waybill_storage::pauses;
use waybill_testkit::{TestDb, eventually, psql};

use crate::{
    engine::{wait_until_closed, wait_until_equal},
    world::{PATIENCE, Running, Shown, config, database, insert_chunks, insert_chunks_of, number, rows, set_up},
};

const LETTERS: &str = "SELECT count(*) FROM dead_letter";
const RETRIES: &str = "SELECT count(*) FROM outbox_retry";

async fn count_is(url: &str, sql: &str, wanted: i64) {
    eventually(&format!("{sql} gives {wanted}"), PATIENCE, async || number(url, sql).await == wanted).await;
}

async fn poisoned(count: u32, class: ErrorClass) -> (TestDb, Arc<Shown>, Uuid) {
    let db = TestDb::create().await.unwrap();
    set_up(&db.url).await;
    psql(&db.url, &insert_chunks(count)).await.unwrap();
    let key = *rows(&db.url).await.keys().nth(count as usize / 2).unwrap();
    let shown = Arc::new(Shown::default());
    shown.poison.lock().unwrap().insert(key, class);
    (db, shown, key)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_refused_for_good_is_a_dead_letter_until_a_redrive_delivers_it() {
    let (db, shown, key) = poisoned(200, ErrorClass::Permanent).await;
    let (signals, scrape) = Signals::measured().unwrap();
    let engine = Running::start_measured(&db.url, &shown, config(), &signals);
    count_is(&db.url, LETTERS, 1).await;
    wait_until_closed(&db.url).await;
    assert_eq!(shown.points().len(), 199, "nothing else is held up");
    // Counted when it is decided, so once more where a lane was lost before it was written.
    let given_up = || -> u64 {
        let series = r#"waybill_relay_deliveries_total{class="permanent",outcome="dead",sink="qdrant"} "#;
        let scrape = scrape.render().unwrap();
        scrape.lines().find_map(|line| line.strip_prefix(series)).expect("it is told from the start").parse().unwrap()
    };
    let once = given_up();
    assert!(once >= 1);
    let store = database(&db.url);
    let all = LetterFilter::default();
    let letters = failures::letters(&store, &all, None, 10).await.unwrap();
    assert_eq!((letters[0].key, letters[0].attempts, letters[0].error.as_str()), (key, 1, "poisoned"));

    // Still poisoned: the redrive makes it a letter again, under another id.
    assert_eq!(failures::dispose(&store, &all, Disposal::Redrive, 10).await.unwrap(), 1);
    let another = format!("SELECT count(*) FROM dead_letter WHERE id <> '{}'", letters[0].id);
    count_is(&db.url, &another, 1).await;
    assert!(given_up() > once);

    shown.poison.lock().unwrap().clear();
    let (first, second) = tokio::join!(
        failures::dispose(&store, &all, Disposal::Redrive, 10),
        failures::dispose(&store, &all, Disposal::Redrive, 10)
    );
    assert_eq!(first.unwrap() + second.unwrap(), 1, "one of the two gets it");
    wait_until_equal(&db.url, &shown).await;
    assert_eq!(number(&db.url, LETTERS).await, 0);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_success_clears_the_letter() {
    let (db, shown, key) = poisoned(20, ErrorClass::Permanent).await;
    let engine = Running::start(&db.url, &shown, config());
    count_is(&db.url, LETTERS, 1).await;
    shown.poison.lock().unwrap().clear();
    psql(&db.url, &format!("UPDATE chunk SET ordinal = 99 WHERE id = '{key}'")).await.unwrap();
    wait_until_equal(&db.url, &shown).await;
    count_is(&db.url, LETTERS, 0).await;
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_discarded_is_forgotten_and_the_rest_stays() {
    let (db, shown, _) = poisoned(20, ErrorClass::Permanent).await;
    let engine = Running::start(&db.url, &shown, config());
    count_is(&db.url, LETTERS, 1).await;
    let store = database(&db.url);
    let other = LetterFilter { text: Some("no such error".to_owned()), ..LetterFilter::default() };
    assert_eq!(failures::dispose(&store, &other, Disposal::Discard, 10).await.unwrap(), 0);
    let this = LetterFilter {
        text: Some("POISON".to_owned()),
        sink: Some(SinkName::Qdrant),
        error_class: Some("permanent".to_owned()),
        ..LetterFilter::default()
    };
    assert_eq!(failures::dispose(&store, &this, Disposal::Discard, 10).await.unwrap(), 1);
    assert_eq!(number(&db.url, LETTERS).await, 0);
    wait_until_closed(&db.url).await;
    assert_eq!(shown.points().len(), 19);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_refused_for_now_is_tried_again_while_its_lane_goes_on() {
    let (db, shown, key) = poisoned(200, ErrorClass::Transient).await;
    let engine = Running::start(&db.url, &shown, EngineConfig { attempts_max: 1_000, ..config() });
    let tries = format!("SELECT coalesce(max(attempts), 0) FROM outbox_retry WHERE key = '{key}'");
    eventually("it was tried more than once", PATIENCE, async || number(&db.url, &tries).await > 2).await;
    wait_until_closed(&db.url).await;
    assert_eq!(shown.points().len(), 199);
    // A change of the key waits with it and costs no delivery of its own.
    psql(&db.url, &format!("UPDATE chunk SET ordinal = 99 WHERE id = '{key}'")).await.unwrap();
    shown.poison.lock().unwrap().clear();
    wait_until_equal(&db.url, &shown).await;
    count_is(&db.url, RETRIES, 0).await;
    assert_eq!(number(&db.url, LETTERS).await, 0);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_are_counted_across_relays_that_die() {
    let (db, shown, key) = poisoned(10, ErrorClass::Transient).await;
    let patient = EngineConfig { key_retry_base_ms: 600_000, key_retry_max_ms: 600_000, attempts_max: 3, ..config() };
    let again = format!("UPDATE outbox_retry SET next_at = now() WHERE key = '{key}'");
    for attempts in 1..=2 {
        let engine = Running::start(&db.url, &shown, patient.clone());
        let tried = format!("SELECT count(*) FROM outbox_retry WHERE attempts = {attempts}");
        count_is(&db.url, &tried, 1).await;
        engine.crash().await;
        // What the dead one knew is gone; the row says when.
        psql(&db.url, &again).await.unwrap();
        psql(&db.url, "UPDATE outbox_cursor SET lease_until = now()").await.unwrap();
    }
    let engine = Running::start(&db.url, &shown, patient);
    count_is(&db.url, "SELECT count(*) FROM dead_letter WHERE attempts = 3", 1).await;
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_poisoned_project_does_not_stall_nine_healthy_ones() {
    let db = TestDb::create().await.unwrap();
    set_up(&db.url).await;
    for n in 1..=10 {
        psql(&db.url, &insert_chunks_of(n, 0)).await.unwrap();
    }
    let shown = Arc::new(Shown::default());
    *shown.poisoned_project.lock().unwrap() = Some(Uuid::from_u128(1 << 64 | 1));
    let engine = Running::start(&db.url, &shown, EngineConfig { attempts_max: 1_000_000, ..config() });
    let healthy = "SELECT count(*) FROM chunk WHERE project_id <> '00000000-0000-0001-0000-000000000001'";
    for round in 1..=5 {
        // Chunks of all ten in one transaction, interleaved.
        let mixed: String = (1..=10).map(|n| insert_chunks_of(n, 20)).collect();
        psql(&db.url, &format!("BEGIN; {mixed} COMMIT")).await.unwrap();
        let wanted = number(&db.url, healthy).await;
        assert_eq!(wanted, round * 9 * 20);
        eventually("the healthy ones are shown", PATIENCE, async || shown.points().len() as i64 == wanted).await;
        if round == 1 {
            count_is(&db.url, RETRIES, 20).await;
            // From now on a delivery of the poisoned project hangs, and its other keys are behind
            // it: whoever waited for one of them would wait till the gate opens.
            shown.poison_gate.close();
            eventually("one hangs, the others wait for it", PATIENCE, async || {
                let stats = engine.stats.read();
                stats.in_flight > 0 && stats.delayed == 0
            })
            .await;
        }
    }
    assert!(shown.refusals.load(Ordering::SeqCst) > 0);
    *shown.poisoned_project.lock().unwrap() = None;
    shown.poison_gate.open();
    wait_until_equal(&db.url, &shown).await;
    count_is(&db.url, RETRIES, 0).await;
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_is_down_blames_no_key_and_is_left_alone() {
    let db = TestDb::create().await.unwrap();
    set_up(&db.url).await;
    psql(&db.url, &insert_chunks(100)).await.unwrap();
    let shown = Arc::new(Shown::default());
    shown.down.store(true, Ordering::SeqCst);
    let quick = EngineConfig { breaker_failures: 3, retry_base_ms: 5, retry_max_ms: 20, ..config() };
    let engine = Running::start(&db.url, &shown, quick);
    eventually("the breaker is open", PATIENCE, async || engine.stats.read().breaker == BreakerState::Open).await;
    for table in ["outbox_retry", "dead_letter", "index_state"] {
        assert_eq!(number(&db.url, &format!("SELECT count(*) FROM {table}")).await, 0, "{table}");
    }
    // It would stay open for a minute; a probe finds out earlier.
    shown.down.store(false, Ordering::SeqCst);
    wait_until_equal(&db.url, &shown).await;
    assert_eq!(engine.stats.read().breaker, BreakerState::Closed);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_goes_down_in_the_middle_of_work_blames_no_key() {
    let db = TestDb::create().await.unwrap();
    set_up(&db.url).await;
    let shown = Arc::new(Shown::default());
    let quick = EngineConfig { breaker_failures: 3, retry_base_ms: 5, retry_max_ms: 20, ..config() };
    let engine = Running::start(&db.url, &shown, quick);
    for _ in 0..3 {
        psql(&db.url, &insert_chunks(20)).await.unwrap();
        wait_until_equal(&db.url, &shown).await;
        // Just now it was well.
        shown.down.store(true, Ordering::SeqCst);
        psql(&db.url, &insert_chunks(1)).await.unwrap();
        eventually("it is left alone", PATIENCE, async || engine.stats.read().breaker == BreakerState::Open).await;
        assert_eq!(number(&db.url, RETRIES).await + number(&db.url, LETTERS).await, 0);
        shown.down.store(false, Ordering::SeqCst);
    }
    wait_until_equal(&db.url, &shown).await;
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn throttling_costs_no_attempt_and_splits_no_batch() {
    let db = TestDb::create().await.unwrap();
    set_up(&db.url).await;
    psql(&db.url, &insert_chunks(64)).await.unwrap();
    let shown = Arc::new(Shown::default());
    shown.throttles.store(true, Ordering::SeqCst);
    let quick = EngineConfig { attempts_max: 2, retry_base_ms: 5, retry_max_ms: 20, ..config() };
    let engine = Running::start(&db.url, &shown, quick);
    eventually("it was throttled often", PATIENCE, async || shown.batches.lock().unwrap().len() > 10).await;
    assert_eq!(number(&db.url, RETRIES).await + number(&db.url, LETTERS).await, 0);
    assert!(shown.batches.lock().unwrap().iter().all(|keys| *keys == 64), "batches stay whole");
    shown.throttles.store(false, Ordering::SeqCst);
    wait_until_equal(&db.url, &shown).await;
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_holds_for_every_relay_and_outlives_them() {
    let db = TestDb::create().await.unwrap();
    set_up(&db.url).await;
    let shown = Arc::new(Shown::default());
    let store = database(&db.url);
    let first = Running::start(&db.url, &shown, config());
    let (pause, is_new) = pauses::pause(&store, SinkName::Qdrant, "ann", "disk swap", None).await.unwrap();
    assert!(is_new);
    let (kept, is_new) = pauses::pause(&store, SinkName::Qdrant, "bob", "other", None).await.unwrap();
    assert!(!is_new);
    assert_eq!((kept, pause.paused_by.as_str()), (pause.clone(), "ann"));
    eventually("the relay has noticed", PATIENCE, async || first.stats.read().is_paused).await;
    let second = Running::start(&db.url, &shown, config());
    eventually("the other one has, too", PATIENCE, async || second.stats.read().is_paused).await;
    psql(&db.url, &insert_chunks(50)).await.unwrap();
    first.crash().await;
    let third = Running::start(&db.url, &shown, config());
    eventually("so does one that starts later", PATIENCE, async || third.stats.read().is_paused).await;
    assert_eq!(shown.points().len(), 0);
    assert_eq!(pauses::resume(&store, SinkName::Qdrant, None).await.unwrap(), Some(pause));
    wait_until_equal(&db.url, &shown).await;
    assert_eq!(pauses::resume(&store, SinkName::Qdrant, None).await.unwrap(), None);
    second.stop().await;
    third.stop().await;
}
