//! Stores whose network drops every packet: connections stay, and nobody answers.

use std::time::Duration;

use waybill_testkit::{Mode, Program, eventually};

use super::http::{self, admin_of, health, is_up, status_of};
use super::pools::through;
use crate::world::{PATIENCE, World, write_corpus};

/// Within this the admin port answers whatever hangs: it reads memory alone. Prometheus gives up
/// after ten seconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Within this a store that says nothing is known to be down: it is asked every five seconds and
/// has three to answer; the rest is for a machine under load.
const SAID_LIMIT: Duration = Duration::from_secs(30);

/// Asks for everything that Kubernetes and Prometheus ask for, within the limit. Returns the scrape.
async fn stays_alive(admin: &str) -> String {
    let asked = async {
        assert_eq!(status_of(admin, "/livez").await, 200, "nobody is killed for it");
        assert_eq!(status_of(admin, "/readyz").await, 200, "it goes on with what it can do");
        http::get(admin, "/metrics").await
    };
    let (status, scrape) = tokio::time::timeout(ANSWER_LIMIT, asked).await.expect("nothing hangs with the store");
    assert_eq!(status, 200);
    scrape
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_says_nothing_degrades_and_is_said_until_it_speaks() {
    let mut world = World::start().await;
    let (postgres, postgres_url) = through(&world.db.url).await;
    let (redis, redis_url) = through(&world.redis.url()).await;
    let (qdrant, qdrant_url) = through(&format!("http://127.0.0.1:{}", world.ports.qdrant)).await;
    world.relay.kill9().await.unwrap();
    let args = ["serve", "relay", "--config"].map(Into::into).into_iter().chain([world.config()]);
    let env = [
        ("WAYBILL_LOG", "info"),
        ("WAYBILL_DATABASE__URL", &postgres_url),
        ("WAYBILL_REDIS__URL", &redis_url),
        ("WAYBILL_QDRANT__URL", &qdrant_url),
    ];
    world.relay = Program::start(env!("CARGO_BIN_EXE_waybill"), args, env).unwrap();
    let admin = admin_of(&world.relay).await;
    eventually("all is well", PATIENCE, async || health(&admin).await.1["status"] == "ok").await;
    let docs = world.dir.path().join("docs");
    write_corpus(&docs, 1, 4);
    assert!(world.import(&docs).wait(PATIENCE).await.unwrap().success());
    world.wait_until_equal().await;

    for (name, proxy) in [("qdrant", &qdrant), ("redis", &redis), ("postgres", &postgres)] {
        assert!(proxy.open_connections() > 0, "{name} is not reached through the proxy");
        proxy.set(Mode::BlackHole);
        eventually(&format!("that {name} is down is said"), SAID_LIMIT, async || {
            stays_alive(&admin).await;
            is_up(&health(&admin).await.1, name) == Some(false)
        })
        .await;
        let (status, health_now) = health(&admin).await;
        assert_eq!((status, &health_now["status"]), (200, &"degraded".into()), "{health_now}");
        let why = health_now["reasons"].to_string();
        assert!(why.contains(&format!("{name} is down: no answer ")) && why.contains("within"), "{why}");
        world.relay.line(&format!(r#""component":"{name}""#), PATIENCE).await.unwrap();
        let scrape = stays_alive(&admin).await;
        assert!(scrape.contains(&format!(r#"waybill_component_up{{component="{name}"}} 0"#)), "{scrape}");

        proxy.set(Mode::Pass);
        eventually(&format!("{name} is back and all is well"), PATIENCE, async || {
            stays_alive(&admin).await;
            health(&admin).await.1["status"] == "ok"
        })
        .await;
    }

    // The relay has survived it all, and delivers.
    write_corpus(&docs, 2, 4);
    assert!(world.import(&docs).wait(PATIENCE).await.unwrap().success());
    world.wait_until_equal().await;
}
