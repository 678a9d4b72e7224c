//! Claiming, keeping, taking over and finishing.

use std::time::Duration;

use deadpool_redis::redis::cmd;
use secrecy::ExposeSecret;
use waybill_llm_queue::{GROUP, LlmQueue, Message, Priority};

use crate::{config, high, message, messages, queue, raw};

const HIGH: Priority = Priority::High;
const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_finished_message_leaves_nothing() {
    let queue = queue().await;
    let batch = messages(0..3);
    queue.send(HIGH, &batch).await.unwrap();
    let claimed = queue.claim("w", HIGH, 10, None).await.unwrap();
    assert_eq!(claimed.iter().map(|claimed| claimed.message.clone()).collect::<Vec<_>>(), batch);
    assert!(claimed.iter().all(|claimed| claimed.priority == HIGH && claimed.deliveries == 1));
    assert_eq!(high(&queue).await, (3, 3));
    assert!(queue.stats().await.unwrap()[0].oldest_ms.is_some());
    queue.finish(&claimed).await.unwrap();
    queue.finish(&claimed).await.unwrap();
    assert_eq!(high(&queue).await, (0, 0));
    assert!(queue.claim("w", HIGH, 10, None).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_message_arrives_whole() {
    let queue = queue().await;
    let whole = Message {
        job_id: Some(message(9).request_id),
        headers: Some(r#"{"traceparent":"00-ü"}"#.to_owned()),
        ..message(1)
    };
    queue.send(Priority::Low, std::slice::from_ref(&whole)).await.unwrap();
    let claimed = queue.claim("w", Priority::Low, 1, None).await.unwrap();
    assert_eq!(claimed[0].message, whole);
    assert_eq!(claimed[0].priority, Priority::Low);
}

#[tokio::test]
async fn a_claim_waits_for_a_message() {
    let queue = queue().await;
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { queue.claim("w", HIGH, 1, Some(MINUTE)).await }
    });
    queue.send(HIGH, &messages(0..1)).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().len(), 1);
    assert!(queue.claim("w", HIGH, 1, Some(Duration::from_millis(20))).await.unwrap().is_empty());
}

#[tokio::test]
async fn the_messages_of_a_dead_worker_are_taken_over() {
    let queue = queue().await;
    queue.send(HIGH, &messages(0..30)).await.unwrap();
    let dead = queue.claim("dead", HIGH, 30, None).await.unwrap();
    assert!(queue.reclaim("w", HIGH, MINUTE, 100).await.unwrap().is_empty());
    let some = queue.reclaim("w", HIGH, Duration::ZERO, 10).await.unwrap();
    assert_eq!(some.len(), 10);
    let all = queue.reclaim("w", HIGH, Duration::ZERO, 100).await.unwrap();
    assert_eq!(all.len(), 30);
    assert_eq!(all[29].deliveries, 2);
    assert_eq!(all[0].deliveries, 3);

    // The dead one wasn't dead: it learns that its messages are gone.
    assert_eq!(queue.heartbeat("dead", &dead).await.unwrap(), vec![false; 30]);
    assert_eq!(queue.heartbeat("w", &dead).await.unwrap(), vec![true; 30]);
}

#[tokio::test]
async fn a_heartbeat_keeps_a_message() {
    let config = config().await;
    let queue = LlmQueue::connect(&config).unwrap();
    queue.send(HIGH, &messages(0..2)).await.unwrap();
    let claimed = queue.claim("w", HIGH, 2, None).await.unwrap();
    // As if both had lain there for an hour.
    let mut raw = raw(config.url.expose_secret()).await;
    let key = format!("{}:{{llm:high}}:stream", config.prefix);
    let mut idle = cmd("XCLAIM");
    idle.arg(&key).arg(GROUP).arg("w").arg(0).arg(&claimed[0].stream_id).arg(&claimed[1].stream_id);
    let () = idle.arg("IDLE").arg(3_600_000).arg("JUSTID").query_async(&mut raw).await.unwrap();

    assert_eq!(queue.heartbeat("w", &claimed[..1]).await.unwrap(), [true]);
    let taken = queue.reclaim("other", HIGH, MINUTE, 10).await.unwrap();
    assert_eq!(taken.len(), 1);
    assert_eq!(taken[0].stream_id, claimed[1].stream_id);
    // It did not count as a delivery.
    assert_eq!(taken[0].deliveries, 2);
    assert_eq!(queue.heartbeat("w", &claimed).await.unwrap(), [true, false]);
    queue.finish(&claimed).await.unwrap();
    assert_eq!(queue.heartbeat("w", &claimed).await.unwrap(), [false, false]);
}

#[tokio::test]
async fn a_heartbeat_answers_in_the_order_of_its_messages() {
    let queue = queue().await;
    let mut mixed = Vec::new();
    for priority in [Priority::Low, Priority::High] {
        queue.send(priority, &messages(0..1)).await.unwrap();
        mixed.extend(queue.claim("w", priority, 1, None).await.unwrap());
    }
    queue.finish(&mixed[..1]).await.unwrap();
    assert_eq!(queue.heartbeat("w", &mixed).await.unwrap(), [false, true]);
}

#[tokio::test]
async fn what_is_handed_back_is_taken_at_once() {
    let queue = queue().await;
    queue.send(HIGH, &messages(0..2)).await.unwrap();
    let claimed = queue.claim("w", HIGH, 2, None).await.unwrap();
    queue.hand_back(&claimed).await.unwrap();
    assert_eq!(queue.heartbeat("w", &claimed).await.unwrap(), [false, false]);
    let taken = queue.reclaim("next", HIGH, MINUTE, 10).await.unwrap();
    assert_eq!(taken.len(), 2);
    assert_eq!(taken[0].message, claimed[0].message);

    // A worker that hands back too late takes nothing from the next.
    queue.hand_back(&claimed).await.unwrap();
    assert_eq!(queue.heartbeat("next", &taken).await.unwrap(), [true, true]);
}

#[tokio::test]
async fn garbage_is_dropped() {
    let config = config().await;
    let queue = LlmQueue::connect(&config).unwrap();
    queue.send(HIGH, &messages(0..1)).await.unwrap();
    let mut raw = raw(config.url.expose_secret()).await;
    let key = format!("{}:{{llm:high}}:stream", config.prefix);
    let add = |field: &'static [u8], value: &'static [u8]| {
        let mut add = cmd("XADD");
        add.arg(&key).arg("*").arg(field).arg(value);
        add
    };
    let () = add(b"request_id", b"nonsense").query_async(&mut raw).await.unwrap();
    let () = add(b"\xff\xfe", b"\xff").query_async(&mut raw).await.unwrap();
    let claimed = queue.claim("w", HIGH, 10, None).await.unwrap();
    assert_eq!(claimed.len(), 1);
    assert_eq!(high(&queue).await, (1, 1));

    // Also what another worker has claimed, and left.
    let () = add(b"request_id", b"nonsense").query_async(&mut raw).await.unwrap();
    let mut read = cmd("XREADGROUP");
    read.arg("GROUP").arg(GROUP).arg("foreign").arg("STREAMS").arg(&key).arg(">");
    let _: deadpool_redis::redis::Value = read.query_async(&mut raw).await.unwrap();
    assert_eq!(high(&queue).await, (2, 2));
    assert_eq!(queue.reclaim("w", HIGH, Duration::ZERO, 10).await.unwrap().len(), 1);
    assert_eq!(high(&queue).await, (1, 1));
}
