//! Programs and stores that are killed, frozen and started again.

use std::{
    ffi::OsString,
    fs::OpenOptions,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use serde_json::json;
use tokio::{
    process::Command,
    runtime::Handle,
    task::block_in_place,
    time::{Instant, sleep},
};
use waybill_testkit::{Program, Signal, TestPostgres, TestRedis, signal};

use crate::{history::History, warden::Warden};

/// How long a program may take until it serves. With its store away it gives up earlier, and
/// is started again.
const READY: Duration = Duration::from_secs(60);

/// How long it is tried to start a program or a store: longer than any fault lasts.
const START: Duration = Duration::from_secs(180);

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(300);

/// More than the deadline of an orderly stop.
const STOP: Duration = Duration::from_secs(60);

/// Lines of output that a violation carries.
const TAIL_LINES: usize = 30;

/// How a program is started.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<OsString>,
    /// What it logs.
    pub(crate) env: (&'static str, &'static str),
    /// What it prints when it serves.
    pub(crate) ready: &'static str,
    /// Where its output goes when it has ended.
    pub(crate) log: PathBuf,
}

/// A program of ours, running or not.
#[derive(Debug)]
pub(crate) struct Life {
    launch: Launch,
    history: Arc<History>,
    warden: Arc<Warden>,
    program: Option<Program>,
}

impl Life {
    pub(crate) fn new(launch: Launch, history: Arc<History>, warden: Arc<Warden>) -> Self {
        Self { launch, history, warden, program: None }
    }

    /// Starts it, again and again while a store is away, until it serves.
    async fn start(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let mut command = Command::new(&self.launch.program);
            let (name, value) = self.launch.env;
            command.args(&self.launch.arguments).env(name, value).process_group(0);
            // What this shell is configured with must not reach it.
            for (name, _) in std::env::vars_os() {
                let text = name.to_string_lossy();
                if text.starts_with("WAYBILL_") && text != self.launch.env.0
                    || ["DATABASE_URL", "REDIS_URL", "QDRANT_URL"].contains(&&*text)
                {
                    command.env_remove(&name);
                }
            }
            let program = Program::spawn(command)?;
            if let Some(pid) = program.pid() {
                self.warden.watch(pid);
            }
            let outcome = program.line(self.launch.ready, READY).await;
            self.program = Some(program);
            let Err(error) = outcome else {
                self.history.note(&self.launch.name, "started", json!({ "took_s": begun.elapsed().as_secs_f64() }));
                return Ok(());
            };
            self.kill().await?;
            self.history.note(&self.launch.name, "not started", json!({ "error": format!("{error:#}") }));
            if begun.elapsed() > START {
                return Err(error).context(format!("start {}", self.launch.name));
            }
            sleep(PAUSE).await;
        }
    }

    async fn kill(&mut self) -> anyhow::Result<()> {
        let Some(mut program) = self.program.take() else { return Ok(()) };
        let pid = program.pid();
        program.kill9().await?;
        self.buried(pid, &program)
    }

    async fn stop(&mut self) -> anyhow::Result<()> {
        let Some(mut program) = self.program.take() else { return Ok(()) };
        let pid = program.pid();
        program.signal(Signal::SIGTERM)?;
        let outcome = program.wait(STOP).await;
        if outcome.is_err() {
            let text = format!("{} does not end within {} s of SIGTERM", self.launch.name, STOP.as_secs());
            self.history.violation(&self.launch.name, text, json!({ "output": tail(&program) }));
            program.kill9().await?;
        }
        self.buried(pid, &program)
    }

    /// Says whether it ended though nobody wanted it to; it is over then.
    pub(crate) fn died(&mut self) -> anyhow::Result<bool> {
        let Some(program) = self.program.as_mut() else { return Ok(false) };
        let pid = program.pid();
        let Some(status) = program.ended()? else { return Ok(false) };
        let Some(program) = self.program.take() else { return Ok(false) };
        let text = format!("{} ended by itself: {status}", self.launch.name);
        self.history.violation(&self.launch.name, text, json!({ "output": tail(&program) }));
        self.buried(pid, &program)?;
        Ok(true)
    }

    fn buried(&self, pid: Option<u32>, program: &Program) -> anyhow::Result<()> {
        if let Some(pid) = pid {
            self.warden.forget(pid);
        }
        let mut log = append(&self.launch.log)?;
        for line in program.output() {
            writeln!(log, "{line}").with_context(|| format!("write {}", self.launch.log.display()))?;
        }
        writeln!(log, "--- ended at {:.3} s", self.history.now().as_secs_f64())?;
        Ok(())
    }
}

fn append(path: &Path) -> anyhow::Result<std::fs::File> {
    let opened = OpenOptions::new().append(true).create(true).open(path);
    opened.with_context(|| format!("open {}", path.display()))
}

fn tail(program: &Program) -> Vec<String> {
    let mut lines = program.output();
    lines.drain(..lines.len().saturating_sub(TAIL_LINES));
    lines
}

/// What runs under the name of a process.
#[derive(Debug)]
pub(crate) enum Body {
    /// A service, or our Qdrant.
    Program(Box<Life>),
    Postgres(Box<TestPostgres>),
    Redis(Box<TestRedis>),
    /// Somebody else's, never touched.
    Foreign,
}

impl Body {
    /// Ends it with SIGKILL.
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Program(life) => life.kill().await,
            Self::Postgres(postgres) => Ok(postgres.server_mut().kill9()?),
            Self::Redis(redis) => Ok(redis.server_mut().kill9()?),
            Self::Foreign => bail!("a server that isn't ours is not killed"),
        }
    }

    /// Ends a program in good order. A store is ended by [`Body::start`].
    pub(crate) async fn stop(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Program(life) => life.stop().await,
            Self::Postgres(_) | Self::Redis(_) => Ok(()),
            Self::Foreign => bail!("a server that isn't ours is not stopped"),
        }
    }

    /// Starts it; a store that runs is stopped in good order before.
    pub(crate) async fn start(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let outcome = match self {
                Self::Program(life) => return life.start().await,
                Self::Postgres(postgres) => here(postgres.server_mut().restart()),
                Self::Redis(redis) => here(redis.server_mut().restart()),
                Self::Foreign => return Ok(()),
            };
            match outcome {
                Ok(()) => return Ok(()),
                // Its port may be somebody's for a moment.
                Err(error) if begun.elapsed() > START => return Err(error).context("start a store"),
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    /// Sends SIGSTOP to everything that belongs to it.
    pub(crate) fn freeze(&self) -> anyhow::Result<()> {
        let Some(pid) = self.pid() else { return Ok(()) };
        // The parent first: it must not start another child.
        signal(pid, Signal::SIGSTOP)?;
        for child in children_of(pid) {
            // It may have ended meanwhile.
            let _ = signal(child, Signal::SIGSTOP);
        }
        Ok(())
    }

    /// Sends SIGCONT to everything that belongs to it.
    pub(crate) fn thaw(&self) -> anyhow::Result<()> {
        let Some(pid) = self.pid() else { return Ok(()) };
        for child in children_of(pid) {
            let _ = signal(child, Signal::SIGCONT);
        }
        signal(pid, Signal::SIGCONT)
    }

    fn pid(&self) -> Option<u32> {
        match self {
            Self::Program(life) => life.program.as_ref().and_then(Program::pid),
            Self::Postgres(postgres) => postgres.server().pid(),
            Self::Redis(redis) => redis.server().pid(),
            Self::Foreign => None,
        }
    }
}

/// Waits for a future that can't go from thread to thread.
fn here<T>(future: impl Future<Output = T>) -> T {
    block_in_place(|| Handle::current().block_on(future))
}

/// Lists the children of a process: Postgres has one for each connection.
fn children_of(parent: u32) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // `pid (name) state ppid ...`, and the name may hold anything.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        fields.split_whitespace().nth(1).and_then(|field| field.parse().ok()) == Some(parent)
    })
    .collect()
}
