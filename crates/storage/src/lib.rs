//! Everything that is SQL: the pool, the migrations and one module per area.
//!
//! No function here waits for a peer inside a transaction, and none sends NOTIFY in one.
//! Queries are checked against the schema when they are compiled; `.sqlx/` holds what is
//! needed to do so without a database.

pub mod audit;
pub mod backlog;
mod bell;
pub mod bulk;
pub mod cache;
mod db;
pub mod doctor;
mod ear;
mod error;
pub mod extractions;
pub mod failures;
pub mod freshness;
pub mod gauges;
pub mod hydrate;
pub mod index;
pub mod jobs;
pub mod keys;
pub mod lease;
pub mod outbox;
pub mod pauses;
pub mod points;
mod pool;
pub mod projects;
pub mod queue_state;
pub mod repair;
pub mod requests;
pub mod scrub;
pub mod secrets;
pub mod settle;
pub mod sources;
pub mod status;
pub mod verify;

pub use bell::Bell;
pub use db::{Db, DbConfig, SCHEMA_VERSION};
pub use ear::{Ear, OUTBOX_CHANNEL};
pub use error::StorageError;

/// What every function here returns.
pub type Result<T> = std::result::Result<T, StorageError>;
