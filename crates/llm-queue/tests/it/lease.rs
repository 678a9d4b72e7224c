//! Who has a message, as workers in other processes are checked by it.

use std::time::Duration;

use deadpool_redis::redis::cmd;
use secrecy::ExposeSecret;
use uuid::Uuid;
use waybill_llm_queue::{GROUP, Hold, LlmQueue, Priority};

use crate::{config, message, messages, queue, raw};

const LOW: Priority = Priority::Low;
const MINUTE: Duration = Duration::from_secs(60);

fn request(number: u128) -> Uuid {
    message(number).request_id
}

#[tokio::test]
async fn whoever_has_a_message_is_known() {
    let queue = queue().await;
    queue.send(LOW, &messages(0..1)).await.unwrap();
    let id = queue.claim("a", LOW, 1, None).await.unwrap().remove(0).stream_id;
    let Hold::Ours(ours) = queue.hold("a", request(0), &id).await.unwrap() else { panic!("it is a's") };
    assert_eq!((ours.message, ours.priority, ours.deliveries), (message(0), LOW, 1));
    assert_eq!(queue.hold("b", request(0), &id).await.unwrap(), Hold::Taken("a".to_owned()));
    assert_eq!(queue.hold("a", request(1), &id).await.unwrap(), Hold::Gone, "another request");
    assert_eq!(queue.hold("a", request(0), "1-1").await.unwrap(), Hold::Gone, "another message");

    let taken = queue.reclaim("b", LOW, Duration::ZERO, 1).await.unwrap();
    assert_eq!(queue.hold("a", request(0), &id).await.unwrap(), Hold::Taken("b".to_owned()));
    queue.hand_back(&taken).await.unwrap();
    assert_eq!(queue.hold("b", request(0), &id).await.unwrap(), Hold::Free);
    queue.finish(&taken).await.unwrap();
    assert_eq!(queue.hold("b", request(0), &id).await.unwrap(), Hold::Gone);
}

#[tokio::test]
async fn a_message_that_nobody_claimed_is_free() {
    let queue = queue().await;
    queue.send(LOW, &messages(0..1)).await.unwrap();
    let waybill_llm_queue::Sent::Known(id) = queue.send(LOW, &messages(0..1)).await.unwrap().remove(0) else {
        panic!("it was sent")
    };
    assert_eq!(queue.hold("a", request(0), &id).await.unwrap(), Hold::Free);
}

#[tokio::test]
async fn streams_may_count_alike() {
    let config = config().await;
    let queue = LlmQueue::connect(&config).unwrap();
    let mut raw = raw(config.url.expose_secret()).await;
    for (priority, number) in [(Priority::High, 1), (LOW, 2)] {
        queue.send(priority, &messages(0..1)).await.unwrap();
        let first = queue.claim("a", priority, 1, None).await.unwrap();
        queue.finish(&first).await.unwrap();
        let key = format!("{}:{{llm:{priority}}}:stream", config.prefix);
        let mut add = cmd("XADD");
        // Later than any clock says.
        add.arg(&key).arg("99999999999999-0").arg("request_id").arg(request(number).to_string());
        let () = add.arg("project_id").arg(request(7).to_string()).query_async(&mut raw).await.unwrap();
        queue.claim(&format!("worker-{number}"), priority, 1, None).await.unwrap();
    }
    for (priority, number) in [(Priority::High, 1), (LOW, 2)] {
        let hold = queue.hold(&format!("worker-{number}"), request(number), "99999999999999-0").await.unwrap();
        let Hold::Ours(ours) = hold else { panic!("{hold:?}") };
        assert_eq!((ours.priority, ours.message.request_id), (priority, request(number)));
    }
}

#[tokio::test]
async fn a_check_renews_the_time_and_a_message_can_wait() {
    let config = config().await;
    let queue = LlmQueue::connect(&config).unwrap();
    queue.send(LOW, &messages(0..1)).await.unwrap();
    let claimed = queue.claim("a", LOW, 1, None).await.unwrap().remove(0);
    let mut raw = raw(config.url.expose_secret()).await;
    let key = format!("{}:{{llm:low}}:stream", config.prefix);
    let mut idle = cmd("XCLAIM");
    idle.arg(&key).arg(GROUP).arg("a").arg(0).arg(&claimed.stream_id).arg("IDLE").arg(3_600_000).arg("JUSTID");
    let () = idle.query_async(&mut raw).await.unwrap();
    assert!(matches!(queue.hold("a", request(0), &claimed.stream_id).await.unwrap(), Hold::Ours(_)));
    assert!(queue.reclaim("b", LOW, MINUTE, 1).await.unwrap().is_empty(), "its time was renewed");

    queue.postpone(&claimed, MINUTE / 2, MINUTE).await.unwrap();
    assert!(queue.reclaim("b", LOW, MINUTE, 1).await.unwrap().is_empty(), "it waits for half a minute");
    let next = queue.reclaim("b", LOW, MINUTE / 2, 1).await.unwrap().remove(0);
    // One that comes too late takes nothing away; a wait beyond the lease ends with it.
    queue.postpone(&claimed, Duration::ZERO, MINUTE).await.unwrap();
    assert!(matches!(queue.hold("b", request(0), &next.stream_id).await.unwrap(), Hold::Ours(_)));
    queue.postpone(&next, MINUTE * 60, MINUTE).await.unwrap();
    assert_eq!(queue.reclaim("c", LOW, Duration::ZERO, 1).await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_is_no_message_is_removed_and_gone() {
    let config = config().await;
    let queue = LlmQueue::connect(&config).unwrap();
    let mut raw = raw(config.url.expose_secret()).await;
    queue.send(LOW, &messages(0..1)).await.unwrap();
    let first = queue.claim("a", LOW, 1, None).await.unwrap();
    queue.finish(&first).await.unwrap();
    let key = format!("{}:{{llm:low}}:stream", config.prefix);
    let mut add = cmd("XADD");
    add.arg(&key).arg("*").arg("request_id").arg(request(1).to_string()).arg("project_id").arg("nonsense");
    let id: String = add.query_async(&mut raw).await.unwrap();
    let mut read = cmd("XREADGROUP");
    read.arg("GROUP").arg(GROUP).arg("foreign").arg("STREAMS").arg(&key).arg(">");
    let _: deadpool_redis::redis::Value = read.query_async(&mut raw).await.unwrap();
    assert_eq!(queue.hold("foreign", request(1), &id).await.unwrap(), Hold::Gone);
    assert!(queue.stats().await.unwrap().iter().all(|stats| (stats.length, stats.pending) == (0, 0)));
}
