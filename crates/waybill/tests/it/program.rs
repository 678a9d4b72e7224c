//! Running the binary with nothing of this machine's settings.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output};

/// What a run printed and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Returns the binary, with an environment of its own and `home` for a home directory.
pub(crate) fn waybill(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_waybill"));
    command.env_clear().env("HOME", home).env("NO_COLOR", "1");
    // For finding Postgres and Redis.
    for name in ["PATH", "LANG", "WAYBILL_POSTGRES_BIN", "WAYBILL_REDIS_BIN"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// Runs the binary to its end.
pub(crate) fn run<S: AsRef<OsStr>>(home: &Path, args: &[S]) -> Ran {
    ran(waybill(home).args(args).output().expect("run waybill"))
}

/// Runs the binary with more environment.
pub(crate) fn run_with(home: &Path, args: &[&str], variables: &[(&str, &str)]) -> Ran {
    let output = waybill(home).args(args).envs(variables.iter().copied()).output();
    ran(output.expect("run waybill"))
}

pub(crate) fn ran(output: Output) -> Ran {
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("stdout is UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("stderr is UTF-8"),
    }
}

impl Ran {
    /// Checks how it ended, and shows everything if that is not as expected.
    #[track_caller]
    pub(crate) fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }
}

/// Checks that a text has all of these in it.
#[track_caller]
pub(crate) fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}
