//! Checks of what is in `deploy/` and `proto/`, by the tools that users have.

mod chart;
mod docker;
mod mutations;
mod policies;
mod prometheus;
