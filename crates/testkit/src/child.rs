//! Programs that tests start, watch and kill.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{self as unix, Signal};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::timeout;

/// A program's output beyond this many lines is not kept: a test that prints more
/// has gone wrong, and must not eat the machine's memory.
const LINES_MAX: usize = 100_000;

/// How many of the last lines an error shows.
const LINES_SHOWN: usize = 40;

/// A running program: its output is kept, and it is killed on drop.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    output: Output,
}

/// What a program has printed on standard output and standard error, by line.
#[derive(Debug, Clone)]
struct Output {
    lines: Arc<Mutex<Vec<String>>>,
    /// How many lines there are; closed when both streams have ended.
    count: watch::Receiver<usize>,
}

impl Program {
    /// Starts `program` with `arguments` and, beside our own, the variables of `env`.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start(
        program: impl AsRef<Path>,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
        env: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>,
    ) -> Result<Self> {
        let program = program.as_ref();
        let mut command = Command::new(program);
        command.args(arguments).envs(env);
        Self::spawn(command)
    }

    /// Starts a prepared command; its standard streams are set here.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn spawn(mut command: Command) -> Result<Self> {
        let name = command.as_std().get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        let stdout = child.stdout.take().context("standard output is piped")?;
        let stderr = child.stderr.take().context("standard error is piped")?;
        let (sender, count) = watch::channel(0);
        let lines = Arc::new(Mutex::new(Vec::new()));
        tokio::spawn(collect(stdout, lines.clone(), sender.clone()));
        tokio::spawn(collect(stderr, lines.clone(), sender));
        Ok(Self { name, child, output: Output { lines, count } })
    }

    /// Returns the process id; `None` once it has ended and was waited for.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Sends a signal, such as `SIGTERM`, `SIGSTOP` or `SIGCONT`.
    ///
    /// # Errors
    /// If it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().with_context(|| format!("{} has ended", self.name))?;
        self::signal(pid, signal)
    }

    /// Kills it with SIGKILL and waits for its end.
    ///
    /// # Errors
    /// If it can't be killed.
    pub async fn kill9(&mut self) -> Result<()> {
        self.child.kill().await.with_context(|| format!("kill {}", self.name))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it does not end within `deadline`; the message carries what it printed.
    pub async fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        match timeout(deadline, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => bail!("{} does not end in {deadline:?}:\n{}", self.name, self.tail()),
        }
    }

    /// Returns how it ended; `None` while it runs.
    ///
    /// # Errors
    /// If the system can't say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("ask whether {} has ended", self.name))
    }

    /// Waits for a line that contains `text`, on either stream, and returns it.
    ///
    /// # Errors
    /// If there is none within `deadline`, or both streams end without it; the message
    /// carries what it printed.
    pub async fn line(&self, text: &str, deadline: Duration) -> Result<String> {
        let mut output = self.output.clone();
        let search = async {
            let mut seen = 0;
            loop {
                // Before looking, so that a line in between is not slept over.
                output.count.borrow_and_update();
                {
                    let lines = output.lines.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(found) = lines[seen..].iter().find(|line| line.contains(text)) {
                        return Some(found.clone());
                    }
                    seen = lines.len();
                }
                output.count.changed().await.ok()?;
            }
        };
        match timeout(deadline, search).await {
            Ok(Some(line)) => Ok(line),
            Ok(None) => bail!("{} ended without saying {text:?}:\n{}", self.name, self.tail()),
            Err(_) => bail!("{} does not say {text:?}:\n{}", self.name, self.tail()),
        }
    }

    /// Returns everything it has printed so far, in the order in which it arrived.
    pub fn output(&self) -> Vec<String> {
        self.output.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn tail(&self) -> String {
        let lines = self.output();
        lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n")
    }
}

/// Sends a signal to a process, such as `SIGSTOP` to the pid of a private server.
///
/// # Errors
/// If there is no such process.
pub fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(pid).context("a process id out of range")?);
    unix::kill(pid, signal).with_context(|| format!("send {signal} to process {pid}"))
}

async fn collect(stream: impl AsyncRead + Unpin, lines: Arc<Mutex<Vec<String>>>, count: watch::Sender<usize>) {
    let mut reader = BufReader::new(stream).lines();
    // Read to the end also when nothing more is kept, or the program would block.
    while let Ok(Some(line)) = reader.next_line().await {
        let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() < LINES_MAX {
            lines.push(line);
            count.send_replace(lines.len());
        }
    }
}
