//! Servers that forget, die or fall silent.

use std::{net::SocketAddr, time::Duration};

use deadpool_redis::redis::cmd;
use secrecy::ExposeSecret;
use waybill_domain::ErrorClass;
use waybill_llm_queue::{LlmQueue, Priority, QueueConfig, QueueError, Sent};
use waybill_testkit::{FaultProxy, Mode, TestRedis, eventually};

use crate::{added, config, high, ids, messages, raw};

const HIGH: Priority = Priority::High;
const MINUTE: Duration = Duration::from_secs(60);

async fn flush(url: &str) {
    let () = cmd("FLUSHALL").query_async(&mut raw(url).await).await.unwrap();
}

#[tokio::test]
async fn a_flush_is_survived() {
    let redis = TestRedis::volatile().await.unwrap();
    let url = redis.url();
    let queue = LlmQueue::connect(&QueueConfig::new(&url)).unwrap();
    let batch = messages(0..3);
    queue.send(HIGH, &batch).await.unwrap();
    let lost = queue.claim("w", HIGH, 1, None).await.unwrap();

    flush(&url).await;
    assert_eq!(queue.knows(HIGH, &ids(&batch)).await.unwrap(), [false; 3]);
    assert_eq!(queue.heartbeat("w", &lost).await.unwrap(), [false]);
    queue.hand_back(&lost).await.unwrap();
    queue.finish(&lost).await.unwrap();
    assert!(queue.claim("w", HIGH, 10, None).await.unwrap().is_empty());
    assert_eq!(added(&queue.send(HIGH, &batch).await.unwrap()), 3);
    assert_eq!(queue.claim("w", HIGH, 10, None).await.unwrap().len(), 3);

    flush(&url).await;
    assert!(queue.reclaim("w", HIGH, Duration::ZERO, 10).await.unwrap().is_empty());
    flush(&url).await;
    assert_eq!(added(&queue.send(HIGH, &batch).await.unwrap()), 3);
    assert_eq!(high(&queue).await, (3, 0));
}

#[tokio::test]
async fn a_stream_that_is_lost_alone_is_filled_again() {
    let config = config().await;
    let queue = LlmQueue::connect(&config).unwrap();
    let batch = messages(0..2);
    queue.send(HIGH, &batch).await.unwrap();
    let mut raw = raw(config.url.expose_secret()).await;
    let () = cmd("DEL").arg(format!("{}:{{llm:high}}:stream", config.prefix)).query_async(&mut raw).await.unwrap();

    assert_eq!(queue.knows(HIGH, &ids(&batch)).await.unwrap(), [false, false]);
    assert!(matches!(queue.send(HIGH, &batch).await.unwrap()[..], [Sent::Known(_), Sent::Known(_)]));
    queue.forget(HIGH, &ids(&batch)).await.unwrap();
    assert_eq!(added(&queue.send(HIGH, &batch).await.unwrap()), 2);
    assert_eq!(queue.knows(HIGH, &ids(&batch)).await.unwrap(), [true, true]);
    assert_eq!(queue.claim("w", HIGH, 10, None).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_claim_that_waits_outlives_a_flush() {
    let redis = TestRedis::volatile().await.unwrap();
    let url = redis.url();
    let queue = LlmQueue::connect(&QueueConfig::new(&url)).unwrap();
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { queue.claim("w", HIGH, 1, Some(MINUTE)).await }
    });
    until_blocked(&url, 1).await;
    flush(&url).await;
    queue.send(HIGH, &messages(0..1)).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().len(), 1);
}

#[tokio::test]
async fn a_claim_that_is_dropped_leaves_no_client_that_takes_messages() {
    let redis = TestRedis::volatile().await.unwrap();
    let url = redis.url();
    let queue = LlmQueue::connect(&QueueConfig { pool_size: 1, ..QueueConfig::new(&url) }).unwrap();
    for _ in 0..3 {
        let waiting = tokio::spawn({
            let queue = queue.clone();
            async move { queue.claim("w", HIGH, 1, Some(MINUTE)).await }
        });
        until_blocked(&url, 1).await;
        // A claim that waits holds no connection that others need.
        assert_eq!(high(&queue).await, (0, 0));
        waiting.abort();
        until_blocked(&url, 0).await;
    }
    queue.send(HIGH, &messages(0..1)).await.unwrap();
    assert_eq!(queue.claim("w", HIGH, 1, Some(MINUTE)).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_server_that_died_is_used_again_when_it_is_back() {
    let mut redis = TestRedis::own().await.unwrap();
    let queue = LlmQueue::connect(&QueueConfig::new(redis.url())).unwrap();
    queue.send(HIGH, &messages(0..3)).await.unwrap();
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { queue.claim("w", Priority::Low, 1, Some(MINUTE)).await }
    });
    until_blocked(&redis.url(), 1).await;

    redis.server_mut().kill9().unwrap();
    let error = waiting.await.unwrap().unwrap_err();
    assert_eq!(error.class(), ErrorClass::Transient, "{error}");
    for _ in 0..3 {
        let error = queue.send(HIGH, &messages(3..4)).await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Transient, "{error}");
    }

    redis.server_mut().restart().await.unwrap();
    // The server has forgotten the scripts, and perhaps the last second.
    assert_eq!(queue.send(HIGH, &messages(0..4)).await.unwrap().len(), 4);
    assert_eq!(high(&queue).await, (4, 0));
    let claimed = queue.claim("w", HIGH, 10, None).await.unwrap();
    assert_eq!(claimed.len(), 4);
    queue.finish(&claimed).await.unwrap();
}

#[tokio::test]
async fn a_server_that_falls_silent_costs_no_more_than_the_timeout() {
    let mut redis = TestRedis::volatile().await.unwrap();
    let port = redis.server_mut().port();
    let proxy = FaultProxy::start(SocketAddr::from(([127, 0, 0, 1], port))).await.unwrap();
    let url = redis.url().replace(&format!(":{port}/"), &format!(":{}/", proxy.addr().port()));
    let timeout = Duration::from_millis(400);
    let queue = LlmQueue::connect(&QueueConfig { timeout, ..QueueConfig::new(url) }).unwrap();
    queue.stats().await.unwrap();

    proxy.set(Mode::BlackHole);
    let error = queue.send(HIGH, &messages(0..3)).await.unwrap_err();
    assert!(matches!(error, QueueError::Timeout(_) | QueueError::Unavailable(_)), "{error:?}");
    assert_eq!(error.class(), ErrorClass::Transient);

    // Many are cut off at once, and none leaves an answer for another to read.
    let mut cut_off = tokio::task::JoinSet::new();
    for number in 0..8 {
        let queue = queue.clone();
        cut_off.spawn(async move { queue.send(HIGH, &messages(number..number + 1)).await });
    }
    while let Some(sent) = cut_off.join_next().await {
        assert_eq!(sent.unwrap().unwrap_err().class(), ErrorClass::Transient);
    }
    proxy.set(Mode::Pass);
    eventually("the queue works again", MINUTE, async || queue.send(HIGH, &messages(0..8)).await.is_ok()).await;
    assert_eq!(queue.knows(HIGH, &ids(&messages(0..9))).await.unwrap().iter().filter(|known| **known).count(), 8);
    assert_eq!(high(&queue).await, (8, 0));
}

/// Waits until as many clients wait for a message.
async fn until_blocked(url: &str, clients: usize) {
    let mut raw = raw(url).await;
    let line = format!("blocked_clients:{clients}\r\n");
    eventually("the number of clients that wait", MINUTE, async || {
        let info: String = cmd("INFO").arg("clients").query_async(&mut raw).await.unwrap();
        info.contains(&line)
    })
    .await;
}
