//! Ends a server when the process that started it is gone.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use tracing::warn;

use crate::StoreError;

/// What becomes of a server when this process ends without stopping it (SIGKILL,
/// a crash, `exit` with the server in a static).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WhenParentDies {
    /// It runs on, until the next start on the same directory ends it.
    LeaveRunning,
    /// It is stopped.
    Stop,
    /// It is stopped, then this directory is removed. For tests.
    StopAndRemove(PathBuf),
}

/// Waits on its standard input: `done` means an orderly stop, the end of the input
/// means that we are gone, since only we hold the other end. A pipe, because it holds
/// for every way a process can end, on every Unix, and for the whole process: a
/// parent-death signal fires when the *thread* that spawned ends.
/// Arguments: signal, process, directory to remove or "".
const SCRIPT: &str = r#"
trap '' HUP INT QUIT TERM
read -r word
[ "$word" = done ] && exit 0
kill -s "$1" "$2" 2>/dev/null
tries=0
while kill -0 "$2" 2>/dev/null; do
    [ "$tries" -ge 200 ] && kill -s KILL "$2" 2>/dev/null
    [ "$tries" -ge 220 ] && exit 1
    tries=$((tries + 1))
    sleep 0.1
done
[ -z "$3" ] || rm -rf -- "$3"
"#;

/// A small shell process that outlives us for as long as it takes to clean up.
#[derive(Debug)]
pub(crate) struct Guard(Child);

impl Guard {
    /// Watches over process `pid`; `None` if nothing is to be done when we die.
    pub(crate) fn watch(pid: u32, stop_signal: Signal, policy: &WhenParentDies) -> Result<Option<Self>, StoreError> {
        let remove = match policy {
            WhenParentDies::LeaveRunning => return Ok(None),
            WhenParentDies::Stop => "".as_ref(),
            WhenParentDies::StopAndRemove(dir) => dir.as_os_str(),
        };
        let shell = "/bin/sh";
        Command::new(shell)
            .args(["-c", SCRIPT, "waybill-guard"])
            .arg(stop_signal.as_str().trim_start_matches("SIG"))
            .arg(pid.to_string())
            .arg(remove)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Out of the terminal's and the test runner's reach: it must outlive us.
            .process_group(0)
            .spawn()
            .map(|child| Some(Self(child)))
            .map_err(StoreError::io("run", shell.as_ref()))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let dismissed = match self.0.stdin.take() {
            Some(mut pipe) => pipe.write_all(b"done\n"),
            None => Ok(()),
        };
        if let Err(error) = dismissed.and_then(|()| self.0.wait()) {
            warn!(%error, "guard process not dismissed");
        }
    }
}
