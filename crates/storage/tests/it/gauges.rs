//! What metrics say of the database, on real rows.

use std::time::Duration;

use serde_json::json;
use waybill_domain::{RelayId, SinkName};
use waybill_storage::{gauges, scrub};
use waybill_testkit::eventually;

use crate::support::{Fixture, source};

#[tokio::test]
async fn lag_leaves_out_what_waits_for_another_try() {
    let fixture = Fixture::new().await;
    let db = fixture.db.clone();
    let none = gauges::sink(&db, SinkName::Qdrant).await.unwrap();
    assert_eq!(none, gauges::SinkGauges::default());

    // Two keys whose rows exist and of which nothing was confirmed, an hour and a minute old.
    let rows = "
        INSERT INTO entity (id, project_id, type, canonical, aliases)
        SELECT ('00000000-0000-0000-0000-00000000001' || n)::uuid, (SELECT id FROM project), 't', 'c' || n, '{}'
        FROM generate_series(1, 2) AS n;
        ALTER TABLE outbox DISABLE TRIGGER USER;
        UPDATE outbox SET created_at = now() - interval '1 hour' WHERE key = '00000000-0000-0000-0000-000000000011';
        UPDATE outbox SET created_at = now() - interval '1 minute' WHERE key = '00000000-0000-0000-0000-000000000012';";
    fixture.sql(rows).await;
    let behind = gauges::sink(&db, SinkName::Qdrant).await.unwrap();
    assert_eq!(behind.lag_rows, 2);
    assert!((3_600.0..3_660.0).contains(&behind.lag_s), "{behind:?}");

    // The older one was refused: it no longer says that delivery is behind.
    let refused = "
        INSERT INTO outbox_retry (sink, lane, kind, key, project_id, attempts, next_at, error, error_class, first_failed_at)
        VALUES ('qdrant', 0, 'entity', '00000000-0000-0000-0000-000000000011', '00000000-0000-0000-0000-000000000001',
                1, now(), 'e', 'unknown', now() - interval '30 minutes');";
    fixture.sql(refused).await;
    let behind = gauges::sink(&db, SinkName::Qdrant).await.unwrap();
    assert_eq!(behind.retry_keys, 1);
    assert!((60.0..120.0).contains(&behind.lag_s), "{behind:?}");
    assert!(behind.oldest_unconfirmed_s >= 3_600.0, "{behind:?}");
    assert_eq!(gauges::sink(&db, SinkName::Llm).await.unwrap(), gauges::SinkGauges::default());
}

#[tokio::test]
async fn a_letter_stays_counted_when_it_is_gone() {
    let fixture = Fixture::new().await;
    let db = fixture.db.clone();
    let letter = "INSERT INTO dead_letter (sink, kind, key, project_id, error, error_class, attempts)
                  VALUES ('qdrant', 'chunk', '00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-000000000001', 'e', 'permanent', 1)
                  ON CONFLICT (sink, kind, key) DO UPDATE SET attempts = excluded.attempts";
    // Written twice, it is one.
    for _ in 0..2 {
        fixture.sql(letter).await;
    }
    let read = async || gauges::sink(&db, SinkName::Qdrant).await.unwrap();
    assert_eq!((read().await.dead_letters, read().await.dead_letters_total), (1, 1));
    fixture.sql("DELETE FROM dead_letter").await;
    assert_eq!((read().await.dead_letters, read().await.dead_letters_total), (0, 1));
    fixture.sql(letter).await;
    assert_eq!((read().await.dead_letters, read().await.dead_letters_total), (1, 2));
}

#[tokio::test]
async fn findings_add_up_and_an_empty_queue_is_told_as_such() {
    let fixture = Fixture::new().await;
    let db = fixture.db.clone();
    let server = gauges::server(&db).await.unwrap();
    assert!(server.dead_tuples.iter().any(|(table, _)| table == "outbox_cursor"), "{server:?}");
    assert!(server.findings.is_empty() && server.last_pass_unix_s.is_none(), "{server:?}");
    assert!(server.now_unix_s > 1.7e9, "{server:?}");
    let day = Duration::from_secs(86_400);
    for found in [2, 3] {
        let owner = RelayId::generate();
        scrub::want(&db).await.unwrap();
        let mut pass = scrub::take(&db, owner, None, day).await.unwrap().unwrap();
        pass.tally = json!({"rows": 5, "findings": {"missing": found}});
        assert!(scrub::finish(&db, owner, &pass).await.unwrap());
    }
    let server = gauges::server(&db).await.unwrap();
    assert_eq!(server.findings, [("missing".to_owned(), 5)]);
    assert!(server.last_pass_unix_s.is_some());
    assert!(gauges::jobs(&db).await.unwrap().is_empty());
    let requests = gauges::requests(&db).await.unwrap();
    assert_eq!(requests.len(), 4, "{requests:?}");
    assert!(requests.iter().all(|state| state.count == 0 && state.oldest_s == 0.0), "{requests:?}");
}

#[tokio::test]
async fn however_much_there_is_a_bounded_number_of_rows_is_read() {
    let fixture = Fixture::new().await;
    let db = fixture.db.clone();
    fixture.put(source(fixture.project, "a", &["passage"])).await;
    let many = "
        INSERT INTO job (id, project_id, settings, created_at)
        SELECT derived_id(id, n::text), id, '{}', now() - n * interval '1 minute' FROM project, generate_series(0, 59999) AS n;
        INSERT INTO llm_request (id, project_id, chunk_id, job_id)
        SELECT derived_id(c.id, n::text), c.project_id, c.id, derived_id(c.project_id, '0')
        FROM chunk c, generate_series(1, 60000) AS n;";
    fixture.sql(many).await;
    fixture.sql("VACUUM ANALYZE").await;
    let inserted = "SELECT count(*) FROM pg_stat_user_tables
                    WHERE relname IN ('job', 'llm_request', 'outbox') AND n_tup_ins >= 60000";
    eventually("the statistics know of them", Duration::from_secs(60), async || fixture.number(inserted).await == 3)
        .await;
    let read =
        "SELECT coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables WHERE relname = ";
    let read = async |table: &str| fixture.number(&format!("{read}'{table}'")).await;
    let all = async || [read("outbox").await, read("llm_request").await, read("job").await];
    let before = all().await;

    let behind = gauges::sink(&db, SinkName::Llm).await.unwrap();
    assert_eq!(behind.lag_rows, 10_000, "or more");
    let requests = gauges::requests(&db).await.unwrap();
    assert!(requests.iter().any(|state| state.state == "pending" && state.count == 10_000), "or more: {requests:?}");
    assert_eq!(gauges::jobs(&db).await.unwrap()[0].state, "open");
    // What a connection has read is known when it ends.
    db.close().await;
    eventually("the statistics know of what was read", Duration::from_secs(60), async || {
        all().await.iter().zip(before).all(|(after, before)| *after > before)
    })
    .await;
    let [rows, requests, jobs] = all().await;
    let (rows, requests, jobs) = (rows - before[0], requests - before[1], jobs - before[2]);
    assert!(
        rows < 15_000 && requests < 30_000 && jobs < 5_000,
        "{rows} rows of the log, {requests} requests and {jobs} jobs were read"
    );
}
