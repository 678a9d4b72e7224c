//! What every Waybill process needs around its logic: configuration, telemetry, the
//! two-stage shutdown, the gRPC server and client, and gRPC statuses that say what to do.
//!
//! Nothing here knows what a document is. A service hands in its routes and its
//! configuration type; this crate makes them a process that can be operated.

pub mod admin;
pub mod auth;
mod components;
pub mod config;
mod connection;
pub mod grpc;
pub mod metrics;
mod shutdown;
pub mod status;
pub mod telemetry;
pub mod trace;

pub use components::{Component, Components, PROBE_INTERVAL, Report, Status};
pub use metrics::{Sample, Signals};
pub use shutdown::{Shutdown, Tasks};
