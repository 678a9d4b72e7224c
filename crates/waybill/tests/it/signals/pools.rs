//! Who waits for a connection in vain is counted.

use std::net::SocketAddr;
use std::time::Duration;

use waybill_domain::SinkName;
use waybill_llm_queue::{LlmQueue, QueueConfig, QueueError};
use waybill_runtime::Signals;
use waybill_storage::{Db, DbConfig, gauges};
use waybill_testkit::{FaultProxy, Mode, TestDb, TestRedis, eventually, psql};

use super::http::sum;
use crate::world::PATIENCE;

/// Puts a proxy in front of the address in `url`, and returns the url that leads through it.
pub(super) async fn through(url: &str) -> (FaultProxy, String) {
    let begin = url.rfind('@').or_else(|| url.find("//").map(|at| at + 1)).unwrap() + 1;
    let end = url[begin..].find(['/', '?']).map_or(url.len(), |at| begin + at);
    let upstream: SocketAddr = url[begin..end].replace("localhost", "127.0.0.1").parse().unwrap();
    let proxy = FaultProxy::start(upstream).await.unwrap();
    let led = format!("{}{}{}", &url[..begin], proxy.addr(), &url[end..]);
    (proxy, led)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gets_no_connection_to_postgres_in_time_is_counted() {
    let (signals, scrape) = Signals::measured().unwrap();
    let database = TestDb::create().await.unwrap();
    let config = DbConfig {
        url: database.url.clone(),
        max_connections: 1,
        acquire_timeout: Duration::from_millis(50),
        application_name: "test".to_owned(),
    };
    let db = Db::connect(&config).unwrap();
    db.measure(&signals.meter);
    eventually("there is a connection", PATIENCE, async || db.ping().await.is_ok()).await;
    let read = |selector: &str| sum(&scrape.render().unwrap(), selector);
    let before = (read("waybill_postgres_pool_timeouts_total"), read("waybill_postgres_pool_wait_seconds_count"));

    let url = database.url.clone();
    let lock = "BEGIN; LOCK TABLE outbox_retry IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(600)";
    let holder = tokio::spawn(async move { psql(&url, lock).await });
    let locked = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND relation = 'outbox_retry'::regclass AND granted";
    eventually("the table is locked", PATIENCE, async || psql(&database.url, locked).await.unwrap() == "1").await;
    let waiting = tokio::spawn({
        let db = db.clone();
        async move { gauges::sink(&db, SinkName::Qdrant).await }
    });
    eventually("the only connection is in use", PATIENCE, async || {
        read(r#"waybill_postgres_pool_connections{state="used"}"#) == 1.0
    })
    .await;
    db.ping().await.unwrap_err();
    assert_eq!(read("waybill_postgres_pool_timeouts_total"), before.0 + 1.0);
    assert_eq!(read("waybill_postgres_pool_wait_seconds_count"), before.1 + 2.0, "one in vain, and one that was not");
    assert!(waiting.await.unwrap().is_err(), "Postgres has ended it");
    holder.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gets_no_connection_to_redis_in_time_is_counted_with_its_pool() {
    let (signals, scrape) = Signals::measured().unwrap();
    let (url, prefix) = TestRedis::shared().await.unwrap();
    let (proxy, url) = through(&url).await;
    let config = QueueConfig { prefix, pool_size: 1, timeout: Duration::from_secs(4), ..QueueConfig::new(url) };
    let queue = LlmQueue::connect(&config).unwrap();
    queue.measure(&signals.meter, "relay");
    queue.stats().await.unwrap();
    let read = |selector: &str| sum(&scrape.render().unwrap(), selector);
    assert_eq!(read(r#"waybill_redis_pool_max_connections{pool="relay"}"#), 2.0, "as many again for those who wait");
    assert_eq!(read(r#"waybill_redis_pool_wait_seconds_count{pool="relay"}"#), 1.0);

    proxy.set(Mode::BlackHole);
    let holder = tokio::spawn({
        let queue = queue.clone();
        async move { queue.stats().await }
    });
    eventually("the only connection is in use", PATIENCE, async || {
        read(r#"waybill_redis_pool_connections{pool="relay",state="used"}"#) == 1.0
    })
    .await;
    assert!(matches!(queue.stats().await, Err(QueueError::Busy(1))));
    assert_eq!(read(r#"waybill_redis_pool_timeouts_total{pool="relay"}"#), 1.0);
    assert!(holder.await.unwrap().is_err(), "it had its connection, and no answer");
    assert_eq!(read(r#"waybill_redis_pool_timeouts_total{pool="relay"}"#), 1.0, "which is another thing");
}
