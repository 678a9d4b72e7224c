//! A server running as a child process: its log, its signals, its end.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use tracing::{debug, info, warn};

use crate::StoreError;
use crate::guard::{Guard, WhenParentDies};

/// How often a condition of a server is looked at while waiting for it.
pub(crate) const POLL: Duration = Duration::from_millis(10);

/// Starting takes a fraction of a second, but Postgres replays up to 1 GB of its log
/// after a crash (`max_wal_size`), and that takes a minute on a slow disk.
const START_LIMIT: Duration = Duration::from_secs(180);

/// A start that takes this long is worth a line in the log, each time.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// A port that was free may be taken before the server binds it. Losing that race
/// this often in a row has another cause.
pub(crate) const PORT_ATTEMPTS: u32 = 5;

/// A server's log begins anew at a start that finds it larger; one older is kept.
const LOG_MAX_BYTES: u64 = 16 * 1024 * 1024;

/// How much of the end of a log an error carries.
const TAIL_BYTES: u64 = 2048;

/// A signal on the way to a server's end, and how long to wait before the next.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub(crate) signal: Signal,
    pub(crate) wait: Duration,
}

/// How one kind of server is run.
#[derive(Debug)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// An orderly stop: signals in order, SIGKILL after the last.
    pub(crate) stop: &'static [Step],
    /// A quick one, for drop: nothing is lost, the next start has more to do.
    pub(crate) abandon: &'static [Step],
}

/// A child process. Dropping it ends it quickly, and waits until it has ended.
#[derive(Debug)]
pub(crate) struct Server {
    kind: &'static Kind,
    child: Child,
    /// `None` once the server has ended.
    status: Option<ExitStatus>,
    /// Dismissed after the server has ended, by drop.
    _guard: Option<Guard>,
    log: PathBuf,
    /// Where in the log this run begins.
    log_start: u64,
}

impl Server {
    pub(crate) fn spawn(
        kind: &'static Kind,
        mut command: Command,
        log: &Path,
        policy: &WhenParentDies,
    ) -> Result<Self, StoreError> {
        let (file, log_start) = open_log(log).map_err(StoreError::io("open", log))?;
        let errors = file.try_clone().map_err(StoreError::io("open", log))?;
        let program = PathBuf::from(command.get_program());
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors)
            // Ctrl-C goes to a whole process group: the stores must outlive it, so that
            // the services can still settle what they have in flight.
            .process_group(0)
            .spawn()
            .map_err(StoreError::io("run", &program))?;
        // From here on drop ends it.
        let mut server = Self { kind, child, status: None, _guard: None, log: log.to_owned(), log_start };
        let first = kind.stop.first().map_or(Signal::SIGTERM, |step| step.signal);
        server._guard = Guard::watch(server.pid(), first, policy)?;
        debug!(server = kind.name, pid = server.pid(), "server spawned");
        Ok(server)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        if self.status.is_none() {
            self.status = match self.child.try_wait() {
                Ok(status) => status,
                Err(error) => {
                    warn!(server = self.kind.name, %error, "can't ask for a child's status");
                    None
                }
            };
        }
        self.status.is_some()
    }

    /// Waits until `ready` says yes.
    pub(crate) async fn until_ready(&mut self, mut ready: impl AsyncFnMut() -> bool) -> Result<(), StoreError> {
        let begun = Instant::now();
        let mut next_report = PROGRESS_EVERY;
        loop {
            if self.has_ended()
                && let Some(status) = self.status
            {
                return Err(StoreError::Exited {
                    name: self.kind.name,
                    status,
                    log: self.log.clone(),
                    tail: self.log_tail(),
                });
            }
            if ready().await {
                debug!(server = self.kind.name, after_ms = begun.elapsed().as_millis(), "ready");
                return Ok(());
            }
            let after = begun.elapsed();
            if after >= START_LIMIT {
                let (log, tail) = (self.log.clone(), self.log_tail());
                return Err(StoreError::NotReady { name: self.kind.name, after, log, tail });
            }
            if after >= next_report {
                next_report += PROGRESS_EVERY;
                info!(
                    server = self.kind.name, after_s = after.as_secs(),
                    limit_s = START_LIMIT.as_secs(), log = %self.log.display(),
                    "still waiting for it to get ready"
                );
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Ends the server in good order and waits for its end.
    pub(crate) async fn stop(mut self) -> Result<(), StoreError> {
        let pid = self.pid();
        for step in self.kind.stop {
            self.signal(step.signal);
            let deadline = tokio::time::Instant::now() + step.wait;
            while tokio::time::Instant::now() < deadline {
                if self.has_ended() {
                    debug!(server = self.kind.name, pid, "server stopped");
                    return Ok(());
                }
                tokio::time::sleep(POLL).await;
            }
            warn!(
                server = self.kind.name,
                pid,
                signal = step.signal.as_str(),
                waited_s = step.wait.as_secs(),
                "server did not stop"
            );
        }
        self.kill().map_err(StoreError::io("kill", Path::new(self.kind.name)))
    }

    /// Ends the server with SIGKILL and waits for its end.
    pub(crate) fn kill(&mut self) -> std::io::Result<()> {
        if !self.has_ended() {
            self.child.kill()?;
            self.status = Some(self.child.wait()?);
        }
        Ok(())
    }

    fn signal(&mut self, signal: Signal) {
        if self.has_ended() {
            return;
        }
        // Not reaped yet, so the id is still the child's.
        let Ok(pid) = i32::try_from(self.pid()) else {
            return;
        };
        if let Err(error) = signal::kill(Pid::from_raw(pid), signal) {
            warn!(server = self.kind.name, pid, %error, "can't signal a child");
        }
    }

    /// Returns the end of what this run has logged.
    fn log_tail(&self) -> String {
        let read = || {
            let mut file = File::open(&self.log)?;
            let end = file.metadata()?.len();
            file.seek(SeekFrom::Start(self.log_start.max(end.saturating_sub(TAIL_BYTES))))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&bytes).trim().to_owned())
        };
        read().unwrap_or_else(|error| format!("(unreadable: {error})"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for step in self.kind.abandon {
            self.signal(step.signal);
            let deadline = Instant::now() + step.wait;
            while Instant::now() < deadline {
                if self.has_ended() {
                    return;
                }
                thread::sleep(POLL);
            }
        }
        if let Err(error) = self.kill() {
            warn!(server = self.kind.name, %error, "can't kill a child");
        }
    }
}

/// Opens a log for appending; returns where the new part begins.
fn open_log(path: &Path) -> std::io::Result<(File, u64)> {
    if fs::metadata(path).is_ok_and(|meta| meta.len() > LOG_MAX_BYTES) {
        fs::rename(path, path.with_extension("log.old"))?;
    }
    // Statements that fail are logged, and they may hold what nobody else should read.
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    let length = file.metadata()?.len();
    Ok((file, length))
}

/// Finds a TCP port that nobody listens on at the loopback address.
pub(crate) fn free_port() -> Result<u16, StoreError> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(StoreError::io("find a free port on", Path::new("127.0.0.1")))
}
