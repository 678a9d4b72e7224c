//! Ends a server that outlived the process that started it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};
use tracing::warn;

use crate::StoreError;
use crate::server::{POLL, Step};

/// After SIGKILL a process is gone at once, unless the kernel is stuck in a device.
const KILL_WAIT: Duration = Duration::from_secs(10);

/// How to tell that a process is the server of a given directory.
pub(crate) struct Identity<'a> {
    /// What the server is called in messages.
    pub(crate) name: &'static str,
    /// The directory it works in: both servers change into their data directory.
    pub(crate) dir: &'a Path,
    /// What its program may be called, where the directory of a process can't be read.
    pub(crate) programs: &'a [&'a str],
}

/// Ends process `pid` if it is still the server of `identity.dir`.
///
/// The caller holds the data directory, so whoever still works in it is an orphan.
pub(crate) async fn end(identity: &Identity<'_>, pid: i32, ladder: &[Step]) -> Result<(), StoreError> {
    if !is_it(identity, pid) {
        return Ok(());
    }
    warn!(server = identity.name, pid, "a server of an earlier run is still there, ending it");
    let kill = Step { signal: Signal::SIGKILL, wait: KILL_WAIT };
    for step in ladder.iter().chain([&kill]) {
        // It may end between the check and the signal.
        if signal::kill(Pid::from_raw(pid), step.signal) == Err(Errno::ESRCH) {
            return Ok(());
        }
        let deadline = Instant::now() + step.wait;
        while Instant::now() < deadline {
            if !is_it(identity, pid) {
                return Ok(());
            }
            sleep(POLL).await;
        }
    }
    Err(StoreError::Orphan { name: identity.name, pid })
}

/// Tells whether `pid` runs and is the server we mean: ids are used again.
fn is_it(identity: &Identity<'_>, pid: i32) -> bool {
    if pid <= 1 || signal::kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH) {
        return false;
    }
    let proc = Path::new("/proc").join(pid.to_string());
    if proc.is_dir() {
        // A zombie has no directory any more.
        return fs::read_link(proc.join("cwd")).is_ok_and(|cwd| cwd == identity.dir);
    }
    let listed = Command::new("ps").args(["-o", "comm=", "-p", &pid.to_string()]).output();
    listed.is_ok_and(|output| {
        let comm = String::from_utf8_lossy(&output.stdout).into_owned();
        identity.programs.iter().any(|program| comm.contains(program))
    })
}
