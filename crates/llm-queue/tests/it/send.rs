//! Sending: once each, and not more than fits.

use std::time::Duration;

use secrecy::ExposeSecret;
use waybill_domain::ErrorClass;
use waybill_llm_queue::{LlmQueue, Priority, QueueConfig, QueueError, Sent};

use crate::{added, config, high, ids, message, messages, queue, raw};

const HIGH: Priority = Priority::High;

#[tokio::test]
async fn a_batch_sent_twice_is_added_once() {
    let queue = queue().await;
    // More than one script takes.
    let batch = messages(0..1200);
    let first = queue.send(HIGH, &batch).await.unwrap();
    assert_eq!(added(&first), 1200);
    let second = queue.send(HIGH, &batch).await.unwrap();
    let first_ids: Vec<_> =
        first.into_iter().map(|sent| if let Sent::Added(id) = sent { id } else { panic!() }).collect();
    assert_eq!(second, first_ids.into_iter().map(Sent::Known).collect::<Vec<_>>());
    assert_eq!(high(&queue).await, (1200, 0));
}

#[tokio::test]
async fn a_request_twice_in_a_batch_is_added_once() {
    let queue = queue().await;
    let sent = queue.send(HIGH, &[message(1), message(1)]).await.unwrap();
    assert!(matches!(&sent[..], [Sent::Added(one), Sent::Known(two)] if one == two));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_senders_at_once_add_each_request_once() {
    let queue = queue().await;
    let sends: Vec<_> = (0..2)
        .map(|_| {
            let queue = queue.clone();
            tokio::spawn(async move {
                let mut count = 0;
                for batch in messages(0..200).chunks(10) {
                    count += added(&queue.send(HIGH, batch).await.unwrap());
                }
                count
            })
        })
        .collect();
    let mut count = 0;
    for send in sends {
        count += send.await.unwrap();
    }
    assert_eq!(count, 200);
    assert_eq!(high(&queue).await, (200, 0));
}

#[tokio::test]
async fn a_full_stream_takes_more_once_something_is_finished() {
    let config = QueueConfig { stream_max: 3, ..config().await };
    let queue = LlmQueue::connect(&config).unwrap();
    let batch = messages(0..5);
    let sent = queue.send(HIGH, &batch).await.unwrap();
    assert_eq!(added(&sent), 3);
    assert_eq!(sent[3..], [Sent::Full, Sent::Full]);
    // A request that is there is known, full or not; and another priority has its own room.
    assert!(matches!(queue.send(HIGH, &batch[..1]).await.unwrap()[..], [Sent::Known(_)]));
    assert_eq!(added(&queue.send(Priority::Low, &batch[..1]).await.unwrap()), 1);

    let claimed = queue.claim("w", HIGH, 1, None).await.unwrap();
    // Under way still counts.
    assert_eq!(queue.send(HIGH, &batch[3..4]).await.unwrap(), [Sent::Full]);
    queue.finish(&claimed).await.unwrap();
    let sent = queue.send(HIGH, &batch[3..]).await.unwrap();
    assert!(matches!(sent[..], [Sent::Added(_), Sent::Full]));
}

#[tokio::test]
async fn a_request_is_known_while_its_entry_is_there() {
    let queue = queue().await;
    let batch = messages(0..3);
    assert_eq!(queue.knows(HIGH, &ids(&batch)).await.unwrap(), [false, false, false]);
    queue.send(HIGH, &batch[..2]).await.unwrap();
    assert_eq!(queue.knows(HIGH, &ids(&batch)).await.unwrap(), [true, true, false]);
    assert_eq!(queue.knows(Priority::Normal, &ids(&batch)).await.unwrap(), [false, false, false]);

    let claimed = queue.claim("w", HIGH, 1, None).await.unwrap();
    assert_eq!(queue.knows(HIGH, &ids(&batch)).await.unwrap(), [true, true, false]);
    queue.finish(&claimed).await.unwrap();
    assert_eq!(queue.knows(HIGH, &ids(&batch)).await.unwrap(), [false, true, false]);
    // A relay that is late doesn't send a finished request again, unless it means to.
    assert!(matches!(queue.send(HIGH, &batch[..1]).await.unwrap()[..], [Sent::Known(_)]));
    queue.forget(HIGH, &ids(&batch[..1])).await.unwrap();
    assert!(matches!(queue.send(HIGH, &batch[..1]).await.unwrap()[..], [Sent::Added(_)]));
}

#[tokio::test]
async fn nothing_is_no_work() {
    let queue = queue().await;
    assert!(queue.send(HIGH, &[]).await.unwrap().is_empty());
    assert!(queue.knows(HIGH, &[]).await.unwrap().is_empty());
    queue.forget(HIGH, &[]).await.unwrap();
    queue.finish(&[]).await.unwrap();
    queue.hand_back(&[]).await.unwrap();
    assert!(queue.heartbeat("w", &[]).await.unwrap().is_empty());
    assert!(queue.claim("w", HIGH, 0, None).await.unwrap().is_empty());
    let stats = queue.stats().await.unwrap();
    assert_eq!(stats.iter().map(|stats| stats.priority).collect::<Vec<_>>(), Priority::ALL);
    assert!(stats.iter().all(|stats| (stats.length, stats.pending, stats.oldest_ms) == (0, 0, None)));
}

#[tokio::test]
async fn a_key_of_another_type_is_permanent() {
    let config = config().await;
    let queue = LlmQueue::connect(&config).unwrap();
    let mut raw = raw(config.url.expose_secret()).await;
    let key = format!("{}:{{llm:high}}:stream", config.prefix);
    let () = deadpool_redis::redis::cmd("SET").arg(key).arg("x").query_async(&mut raw).await.unwrap();
    let error = queue.send(HIGH, &messages(0..1)).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Permanent, "{error}");
}

#[tokio::test]
async fn a_wrong_password_is_permanent_and_stays_secret() {
    let config = config().await;
    let url = config.url.expose_secret();
    let host = url.rsplit('@').next().unwrap();
    let queue = LlmQueue::connect(&QueueConfig::new(format!("redis://:Geheim77@{host}"))).unwrap();
    let error = queue.stats().await.unwrap_err();
    assert!(matches!(error, QueueError::Denied(_)), "{error:?}");
    assert_eq!(error.class(), ErrorClass::Permanent);
    assert!(!format!("{error} {error:?} {queue:?}").contains("Geheim77"));
}

#[tokio::test]
async fn what_can_not_work_is_refused_at_once() {
    for url in ["", "http://127.0.0.1/", "redis://:Geheim77@host:port/x"] {
        let error = LlmQueue::connect(&QueueConfig::new(url)).unwrap_err();
        assert_eq!(error.class(), ErrorClass::Permanent);
        assert!(!format!("{error} {error:?}").contains("Geheim77"));
    }
    let usual = || QueueConfig::new("redis://127.0.0.1/");
    for config in [
        QueueConfig { stream_max: 0, ..usual() },
        QueueConfig { pool_size: 0, ..usual() },
        QueueConfig { timeout: Duration::MAX, ..usual() },
    ] {
        assert!(matches!(LlmQueue::connect(&config), Err(QueueError::Config(_))));
    }
    assert!(!format!("{:?}", QueueConfig::new("redis://:Geheim77@host/")).contains("Geheim77"));
    // TLS is set up without a server.
    LlmQueue::connect(&QueueConfig::new("rediss://127.0.0.1/")).unwrap();
}
