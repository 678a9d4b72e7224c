//! Checks of what is in `deploy/` and `proto/`, by the tools that users have.

mod chart;
mod mutations;
mod policies;
mod prometheus;
