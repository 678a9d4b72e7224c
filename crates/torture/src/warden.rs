//! Kills what is left when this process is gone, however it ended.
//!
//! The services run in process groups of their own, so that Ctrl-C reaches this program and
//! not them; and then nobody else would end them.

use std::{
    io::Write as _,
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
};

use anyhow::Context as _;

/// Reads `+ PID` and `- PID`, and kills what is left at the end of its input, which comes when
/// nobody holds the other end of the pipe any more.
const SCRIPT: &str = r#"
trap '' HUP INT QUIT TERM
pids=
while read -r sign pid; do
    rest=
    for known in $pids; do [ "$known" = "$pid" ] || rest="$rest $known"; done
    pids=$rest
    [ "$sign" = - ] || pids="$pids $pid"
done
[ -z "$pids" ] || kill -s KILL $pids 2>/dev/null
"#;

/// A small shell process that outlives us by a moment.
#[derive(Debug)]
pub(crate) struct Warden(Mutex<Child>);

impl Warden {
    pub(crate) fn start() -> anyhow::Result<Self> {
        Command::new("/bin/sh")
            .args(["-c", SCRIPT, "waybill-torture-warden"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map(|child| Self(Mutex::new(child)))
            .context("run /bin/sh")
    }

    pub(crate) fn watch(&self, pid: u32) {
        self.say('+', pid);
    }

    /// To be said when the process was waited for: its id may be another's soon.
    pub(crate) fn forget(&self, pid: u32) {
        self.say('-', pid);
    }

    fn say(&self, sign: char, pid: u32) {
        let mut child = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipe) = child.stdin.as_mut() {
            // Without its warden a run is as good as ever, as long as it ends well.
            let _ = writeln!(pipe, "{sign} {pid}");
        }
    }
}

impl Drop for Warden {
    fn drop(&mut self) {
        let mut child = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(child.stdin.take());
        let _ = child.wait();
    }
}
