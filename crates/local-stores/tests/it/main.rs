//! Private stores: started, killed, found again. They run real servers.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod data_dir;
mod postgres;
mod redis;
mod support;
