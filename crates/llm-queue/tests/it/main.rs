//! The queue against real Redis servers.
#![expect(clippy::unwrap_used, reason = "a test that can't set up fails")]

mod faults;
mod lease;
mod send;
mod tls;
mod worker;

use std::ops::Range;

use deadpool_redis::redis::{self, aio::MultiplexedConnection};
use uuid::Uuid;
use waybill_llm_queue::{LlmQueue, Message, QueueConfig, Sent};
use waybill_testkit::TestRedis;

/// A queue with keys of its own in the shared server.
async fn queue() -> LlmQueue {
    LlmQueue::connect(&config().await).unwrap()
}

async fn config() -> QueueConfig {
    let (url, prefix) = TestRedis::shared().await.unwrap();
    QueueConfig { prefix, ..QueueConfig::new(url) }
}

/// A connection past the queue, to do what others might.
async fn raw(url: &str) -> MultiplexedConnection {
    redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap()
}

fn message(number: u128) -> Message {
    Message { request_id: Uuid::from_u128(number), project_id: Uuid::from_u128(7), job_id: None, headers: None }
}

fn messages(numbers: Range<u128>) -> Vec<Message> {
    numbers.map(message).collect()
}

fn ids(messages: &[Message]) -> Vec<Uuid> {
    messages.iter().map(|message| message.request_id).collect()
}

fn added(sent: &[Sent]) -> usize {
    sent.iter().filter(|sent| matches!(sent, Sent::Added(_))).count()
}

/// The length of the first stream and how many of it are under way.
async fn high(queue: &LlmQueue) -> (u64, u64) {
    let stats = queue.stats().await.unwrap();
    (stats[0].length, stats[0].pending)
}
