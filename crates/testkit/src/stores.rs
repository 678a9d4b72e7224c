//! The stores of a whole test run.
//!
//! Under nextest every test is a process of its own, and a server for each would cost
//! more than the test. So the program `with-test-stores` starts one Postgres and, where
//! it is installed, one Redis, and runs a command with their URLs in its environment:
//!
//! ```text
//! cargo run -p waybill-testkit --bin with-test-stores -- cargo nextest run
//! ```

use std::ffi::OsString;
use std::process::ExitStatus;

use anyhow::{Context, Result};
use tokio::process::Command;
use waybill_local_stores::RedisBinary;

use crate::{POSTGRES_URL_VARIABLE, REDIS_URL_VARIABLE, TestPostgres, TestRedis};

/// Runs a command with stores in its environment, and stops them after it.
///
/// A store that the environment names already is left as it is.
///
/// # Errors
/// If a store does not start or the command can't be run.
pub async fn run(program: &OsString, arguments: &[OsString]) -> Result<ExitStatus> {
    let mut command = Command::new(program);
    command.args(arguments).kill_on_drop(true);

    let mut postgres = None;
    if std::env::var_os(POSTGRES_URL_VARIABLE).is_none() {
        let server = TestPostgres::volatile().await.context("start a Postgres for the tests")?;
        // Now rather than by the first tests, all at once.
        drop(server.database().await.context("apply the migrations")?);
        command.env(POSTGRES_URL_VARIABLE, server.admin_url());
        postgres = Some(server);
    }
    let mut redis = None;
    if std::env::var_os(REDIS_URL_VARIABLE).is_none() && RedisBinary::find().is_ok() {
        let server = TestRedis::volatile().await.context("start a Redis for the tests")?;
        command.env(REDIS_URL_VARIABLE, server.url());
        redis = Some(server);
    }

    let status = command.status().await.with_context(|| format!("run {}", program.display()));
    // Dropped on every path; if this process is killed, the servers' guards do it.
    drop((postgres, redis));
    status
}
