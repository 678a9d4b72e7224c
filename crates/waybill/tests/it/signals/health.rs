//! Live, degraded and ready are three things: a store that is away is said and kills nobody, and a
//! relay that has come to a stand by itself is not ready.

use serde_json::Value;
use waybill_testkit::{Program, TestDb, eventually, psql};

use super::http::{self, admin_of, health, is_up, status_of};
use crate::program::waybill;
use crate::world::{PATIENCE, World};

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_degrades_and_is_said() {
    let mut world = World::start().await;
    let admin = admin_of(&world.relay).await;
    eventually("all is well, and every component is known", PATIENCE, async || {
        let (_, health) = health(&admin).await;
        let all = ["postgres", "redis", "qdrant", "embedding", "schema", "lanes"];
        health["status"] == "ok" && all.iter().all(|component| is_up(&health, component) == Some(true))
    })
    .await;

    world.qdrant.kill9().await.unwrap();
    eventually("that Qdrant is down is said", PATIENCE, async || {
        let (status, health) = health(&admin).await;
        status == 200 && health["status"] == "degraded" && is_up(&health, "qdrant") == Some(false)
    })
    .await;
    assert_eq!(status_of(&admin, "/livez").await, 200, "nobody is killed for it");
    assert_eq!(status_of(&admin, "/readyz").await, 200, "the other sink goes on");
    let (_, metrics) = http::get(&admin, "/metrics").await;
    assert!(metrics.contains(r#"waybill_component_up{component="qdrant"} 0"#), "{metrics}");
    let (_, brief) = http::get(&admin, "/healthz").await;
    assert!(brief.contains("qdrant is down") && !brief.contains("components"), "{brief}");

    // What can't be delivered names the request that it comes from.
    let docs = world.dir.path().join("docs");
    std::fs::create_dir_all(&docs).unwrap();
    std::fs::write(docs.join("a.txt"), "A ferry leaves the harbour at seven.").unwrap();
    world.import(&docs).wait(PATIENCE).await.unwrap();
    let failed = world.relay.line("delivery failed", PATIENCE).await.unwrap();
    let failed: Value = serde_json::from_str(&failed).unwrap();
    for field in ["request_id", "trace_id", "span_id"] {
        assert!(failed[field].as_str().is_some_and(|id| id.len() >= 16), "{field} is missing: {failed}");
    }

    world.postgres.server_mut().kill9().unwrap();
    eventually("that Postgres is down is said", PATIENCE, async || {
        is_up(&health(&admin).await.1, "postgres") == Some(false)
    })
    .await;
    assert_eq!(status_of(&admin, "/livez").await, 200);
    assert_eq!(status_of(&admin, "/readyz").await, 200);

    world.postgres.server_mut().restart().await.unwrap();
    world.start_qdrant().await;
    eventually("all is well again", PATIENCE, async || health(&admin).await.1["status"] == "ok").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_stands_still_is_not_ready_until_it_goes_on() {
    let world = World::start_with("[relay]\nstalled_after_s = 2").await;
    let admin = admin_of(&world.relay).await;
    eventually("the relay is ready", PATIENCE, async || status_of(&admin, "/readyz").await == 200).await;

    // Every store is well, and what was confirmed can't be written down.
    let lock = "BEGIN; LOCK TABLE index_state IN EXCLUSIVE MODE; SELECT pg_sleep(600)";
    let holder = tokio::spawn({
        let url = world.db.url.clone();
        async move { psql(&url, lock).await }
    });
    let docs = world.dir.path().join("docs");
    std::fs::create_dir_all(&docs).unwrap();
    std::fs::write(docs.join("a.txt"), "A ferry leaves the harbour at seven.").unwrap();
    world.import(&docs).wait(PATIENCE).await.unwrap();

    eventually("the relay is not ready", PATIENCE, async || status_of(&admin, "/readyz").await == 503).await;
    let (status, health) = health(&admin).await;
    assert_eq!((status, &health["status"]), (503, &"not_ready".into()), "{health}");
    let reasons = health["reasons"].to_string();
    assert!(reasons.contains("nothing was confirmed to qdrant"), "{reasons}");
    assert_eq!(status_of(&admin, "/livez").await, 200, "what it has under way is not lost by killing it");
    let (_, metrics) = http::get(&admin, "/metrics").await;
    assert!(metrics.contains(r#"waybill_relay_stalled{sink="qdrant"} 1"#), "{metrics}");
    assert!(metrics.contains(r#"waybill_relay_stalled{sink="llm"} 0"#), "{metrics}");

    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)' AND pid <> pg_backend_pid()";
    psql(&world.db.url, end).await.unwrap();
    assert!(holder.await.unwrap().is_err(), "its connection was ended");
    eventually("the relay is ready again", PATIENCE, async || status_of(&admin, "/readyz").await == 200).await;
    world.wait_until_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_waits_for_its_schema_and_refuses_a_newer_one() {
    let db = TestDb::empty().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let serve = || {
        let mut command = waybill(dir.path());
        command.args(["serve", "ingestion", "--listen", "127.0.0.1:0"]).env("DATABASE_URL", &db.url);
        Program::spawn(command.into()).unwrap()
    };
    let service = serve();
    let admin = admin_of(&service).await;
    service.line("waits for the schema", PATIENCE).await.unwrap();
    assert_eq!(status_of(&admin, "/livez").await, 200);
    let (status, body) = http::get(&admin, "/readyz").await;
    assert_eq!(status, 503);
    assert!(body.contains("waits for the schema") && body.contains("waybill migrate"), "{body}");

    let mut migrate = waybill(dir.path());
    migrate.arg("migrate").env("DATABASE_URL", &db.url);
    let migrated = tokio::process::Command::from(migrate).output().await.unwrap();
    assert!(migrated.status.success(), "{migrated:?}");
    eventually("the service is ready", PATIENCE, async || status_of(&admin, "/readyz").await == 200).await;

    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                 VALUES (9999, 'of the future', true, '', 0)";
    psql(&db.url, newer).await.unwrap();
    eventually("that the schema is another is said", PATIENCE, async || {
        is_up(&health(&admin).await.1, "schema") == Some(false)
    })
    .await;
    assert_eq!(status_of(&admin, "/readyz").await, 200, "what it does still works");
    let mut late = serve();
    // Its last words may come after its end.
    late.line("9999", PATIENCE).await.unwrap();
    let ended = late.wait(PATIENCE).await.unwrap();
    assert_eq!(ended.code(), Some(1), "{:#?}", late.output());
}
