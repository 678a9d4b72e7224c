//! Runs a command with a Postgres and a Redis for tests in its environment.

use std::process::ExitCode;

use anyhow::{Context, Result};

/// What a shell answers for a command that was ended by a signal, less the signal.
const ENDED_BY_SIGNAL: u8 = 128;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let program = arguments.next().context("usage: with-test-stores PROGRAM [ARGUMENT]...")?;
    let arguments = arguments.collect::<Vec<_>>();
    let status = waybill_testkit::stores::run(&program, &arguments).await?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(ENDED_BY_SIGNAL)))
}
