//! Checks of what is in `deploy/` and `proto/`, by the tools that users have.

mod chart;
mod client;
mod dashboard;
mod docker;
mod mutations;
mod policies;
mod prometheus;
mod proto;
