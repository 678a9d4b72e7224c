//! What a running system says of itself: logs, traces, metrics and health.

mod health;
mod http;
#[cfg(feature = "embedded")]
mod metrics;
#[cfg(feature = "embedded")]
mod rotel;
#[cfg(feature = "embedded")]
mod secrets;
#[cfg(feature = "embedded")]
mod tls;
mod traces;
