//! The outbox protocol: which rows to read, which keys to deliver, when a lane is closed.
//!
//! [`core`] holds the protocol itself, without IO. [`Engine`] runs it for one [`Sink`]
//! against Postgres, beside the engines of other relays.

mod breaker;
mod config;
pub mod core;
mod delivery;
mod engine;
mod meter;
mod reading;
mod sink;
mod stats;
mod trim;
mod wake;

pub use crate::core::Key;
pub use breaker::BreakerState;
pub use config::EngineConfig;
pub use engine::Engine;
pub use sink::{DeliveryError, Permit, Sink};
pub use stats::{Stats, StatsReading};
pub use wake::Wake;
