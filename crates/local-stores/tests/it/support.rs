//! Helpers of the tests in this binary.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use waybill_local_stores::PostgresBinaries;

/// A start, a stop or an end takes well under a second; a busy machine gets a minute.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Makes a directory that the user of root's Postgres can pass through.
pub(crate) fn temp_dir() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    dir
}

/// Waits until `condition` holds.
pub(crate) async fn eventually(reason: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < until, "not within {DEADLINE:?}: {reason}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) fn is_alive(pid: u32) -> bool {
    // A zombie is nobody's server any more, whoever is slow to reap it.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    let zombie = stat.is_ok_and(|stat| stat.contains(") Z "));
    !zombie && kill(Pid::from_raw(pid.cast_signed()), None).is_ok()
}

/// Runs SQL and returns what `psql` prints.
pub(crate) fn sql(url: &str, sql: &str) -> Result<String> {
    let output = PostgresBinaries::find()?.psql(url).arg("-c").arg(sql).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Finds the processes that work in `dir` or below, from /proc.
pub(crate) fn processes_in(dir: &Path) -> Vec<u32> {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let cwd = std::fs::read_link(entry.path().join("cwd")).ok()?;
            cwd.starts_with(&dir).then_some(pid)
        })
        .collect()
}

/// The program `private-stores`, in a process of its own. Killed on drop.
pub(crate) struct Holder {
    child: Child,
    pub(crate) postgres_url: String,
}

impl Holder {
    /// Starts it and waits until it says `ready`.
    pub(crate) fn start(dir: &Path, arguments: &[&str]) -> Result<Self> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_private-stores"))
            .arg(dir)
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().context("piped")?;
        let mut holder = Self { child, postgres_url: String::new() };
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            if let Some(url) = line.strip_prefix("postgres ") {
                url.clone_into(&mut holder.postgres_url);
            }
            if line == "ready" {
                return Ok(holder);
            }
        }
        anyhow::bail!("private-stores ended before it was ready")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        kill(Pid::from_raw(self.pid().cast_signed()), signal).unwrap();
    }

    /// Sends a signal and waits for the end; tells whether it was an orderly one.
    pub(crate) fn end(mut self, signal: Signal) -> bool {
        self.signal(signal);
        self.child.wait().unwrap().success()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the process ids that the servers under `dir` have written.
pub(crate) fn postmaster(dir: &Path) -> u32 {
    let path: PathBuf = dir.join("postgres/cluster/postmaster.pid");
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().next().unwrap().trim().parse().unwrap()
}
