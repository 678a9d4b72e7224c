//! What a running system says of itself: logs, traces, metrics and health.

mod black_hole;
mod collector;
mod health;
pub(crate) mod http;
#[cfg(feature = "embedded")]
mod metrics;
mod model;
mod moves;
mod pools;
mod rotel;
#[cfg(feature = "embedded")]
mod secrets;
#[cfg(feature = "embedded")]
mod tls;
mod traces;
mod workers;
