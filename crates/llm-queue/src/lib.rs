//! The queue of LLM requests: one Redis stream per priority, read by the consumer group
//! [`GROUP`]. The only crate that knows Redis.
//!
//! Postgres is the truth. Redis may be flushed, restored from an old copy or restarted at any
//! time, so everything here can be done again: a message that is delivered twice costs a call
//! to a model, a lost one is found by [`LlmQueue::knows`] and sent again.
//!
//! Nothing here retries. A caller reads [`QueueError::class`] and decides.
//!
//! # Keys
//!
//! - `<prefix>:{llm:<priority>}:stream` is the stream; its entries are [`Message`]s.
//! - `<prefix>:{llm:<priority>}:sent:<request id>` holds the entry's id, and expires.
//!
//! The braces keep the keys of a priority in one slot of a Redis Cluster.
//!
//! Needs Redis 6.2 or later, or Valkey.

mod config;
mod connection;
mod doctor;
mod error;
mod lease;
mod manager;
mod message;
mod meter;
mod queue;
mod reply;
mod scripts;
mod worker;

pub use config::QueueConfig;
pub use error::QueueError;
pub use lease::{InvalidWorkerName, check_worker_name, is_message_id};
pub use message::{Claimed, Hold, Message, Priority, Sent, StreamStats, UnknownPriority};
pub use queue::LlmQueue;

/// The consumer group that all workers read with.
pub const GROUP: &str = "workers";

/// What every function here returns.
pub(crate) type Result<T> = std::result::Result<T, QueueError>;
