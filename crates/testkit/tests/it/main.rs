//! The test helpers, tested.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod database;
mod program;
mod proxy;
mod servers;
mod waiting;

use std::time::Duration;

/// A busy machine gets a minute for what takes moments.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
