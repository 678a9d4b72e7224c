//! Exit codes, as `waybill --help` documents them.

use std::process::ExitCode;

use waybill_runtime::config::ConfigError;

use crate::client::Unreachable;
use crate::out::ReaderGone;

/// The command failed.
pub(crate) const FAILED: u8 = 1;
/// Wrong usage or configuration. clap uses the same number.
pub(crate) const USAGE: u8 = 2;
/// A service can't be reached.
pub(crate) const UNREACHABLE: u8 = 3;
/// What a shell reports for a command that Ctrl-C ended.
pub(crate) const INTERRUPTED: u8 = 130;

/// An argument or setting that can't be used. The message names it and the fix.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// A comparison that did not get to its end. Scripts must not take it for drift.
#[derive(Debug, thiserror::Error)]
#[error("not compared")]
pub(crate) struct NoVerdict;

/// Says on stderr why a command failed, and returns the exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if error.is::<ReaderGone>() {
        return ExitCode::SUCCESS;
    }
    eprintln!("error: {error:#}");
    ExitCode::from(code(error))
}

fn code(error: &anyhow::Error) -> u8 {
    if error.is::<Unreachable>() {
        UNREACHABLE
    } else if error.is::<Usage>() || error.is::<ConfigError>() || error.is::<NoVerdict>() {
        USAGE
    } else {
        FAILED
    }
}
