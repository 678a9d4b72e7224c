//! Checks of what is in `deploy/` and `proto/`, by the tools that users have.
#![expect(clippy::unwrap_used, reason = "a helper of a test may panic like the test itself")]

mod chart;
mod client;
mod dashboard;
mod docker;
mod mutations;
mod policies;
mod prometheus;
mod proto;
