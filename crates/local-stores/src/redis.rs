//! A private Redis (or Valkey).

use std::fmt;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::{debug, info};

use crate::guard::WhenParentDies;
use crate::server::{Kind, PORT_ATTEMPTS, Server, Step, free_port};
use crate::{DataDir, Durability, RedisBinary, StoreError, orphan, secret};

static REDIS: Kind = Kind {
    name: "redis",
    // It writes out its append-only file, which takes moments.
    stop: &[Step { signal: Signal::SIGTERM, wait: Duration::from_secs(15) }],
    abandon: &[Step { signal: Signal::SIGTERM, wait: Duration::from_secs(2) }],
};

/// A server that is up answers PING at once; a slower one is asked again.
const PING_WAIT: Duration = Duration::from_secs(1);

/// How a private Redis is run.
#[derive(Debug, Clone)]
pub struct RedisOptions {
    /// Whether it keeps its data over a restart.
    pub durability: Durability,
    /// What becomes of it when this process dies.
    pub when_parent_dies: WhenParentDies,
}

impl Default for RedisOptions {
    fn default() -> Self {
        Self { durability: Durability::Durable, when_parent_dies: WhenParentDies::Stop }
    }
}

/// A Redis server of our own. Dropping it stops it.
pub struct PrivateRedis {
    /// Held for as long as the server may run.
    _data_dir: DataDir,
    options: RedisOptions,
    binary: RedisBinary,
    files: Files,
    password: String,
    port: u16,
    server: Option<Server>,
}

impl fmt::Debug for PrivateRedis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the password.
        f.debug_struct("PrivateRedis")
            .field("binary", &self.binary)
            .field("files", &self.files)
            .field("port", &self.port)
            .field("pid", &self.pid())
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Files {
    dir: PathBuf,
    config: PathBuf,
    pid: PathBuf,
    log: PathBuf,
    password: PathBuf,
}

impl PrivateRedis {
    /// Starts the server over `redis/` of the data directory, and waits until it has
    /// loaded its data and answers.
    ///
    /// A server that an earlier run left behind is ended first.
    ///
    /// # Errors
    /// [`StoreError::NotInstalled`] for want of a program; [`StoreError::Exited`] and
    /// [`StoreError::NotReady`] with the end of the server's log.
    pub async fn start(data_dir: &DataDir, options: RedisOptions) -> Result<Self, StoreError> {
        let binary = RedisBinary::find()?;
        let files = Files::prepare(data_dir)?;
        let password = secret::load_or_create(&files.password)?;
        let mut redis = Self { _data_dir: data_dir.clone(), options, binary, files, password, port: 0, server: None };
        redis.end_orphan().await?;
        redis.launch_on_free_port().await?;
        Ok(redis)
    }

    /// Returns the server's URL, with the password.
    pub fn url(&self) -> String {
        format!("redis://:{}@127.0.0.1:{}/0", self.password, self.port)
    }

    /// Returns the TCP port at 127.0.0.1; it stays the same over a restart.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the server's process id; `None` while it is stopped or killed.
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Server::pid)
    }

    /// Stops the server.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the process can't be ended.
    pub async fn stop(mut self) -> Result<(), StoreError> {
        self.stop_server().await
    }

    /// Kills the server as a crash would: SIGKILL, no cleaning up.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the process can't be killed.
    pub fn kill9(&mut self) -> Result<(), StoreError> {
        match self.server.take() {
            Some(mut server) => server.kill().map_err(StoreError::io("kill", Path::new("redis"))),
            None => Ok(()),
        }
    }

    /// Starts the server again at the same port, and waits until it answers; one that
    /// runs is stopped first.
    ///
    /// # Errors
    /// As [`start`](Self::start); also if the port has been taken by another process.
    pub async fn restart(&mut self) -> Result<(), StoreError> {
        self.stop_server().await?;
        self.launch().await
    }

    async fn stop_server(&mut self) -> Result<(), StoreError> {
        match self.server.take() {
            Some(server) => server.stop().await,
            None => Ok(()),
        }
    }

    async fn end_orphan(&self) -> Result<(), StoreError> {
        let text = fs::read_to_string(&self.files.pid).unwrap_or_default();
        let Ok(pid) = text.trim().parse() else {
            return Ok(());
        };
        let identity = orphan::Identity { name: REDIS.name, dir: &self.files.dir, programs: &["redis", "valkey"] };
        orphan::end(&identity, pid, REDIS.stop).await
    }

    async fn launch_on_free_port(&mut self) -> Result<(), StoreError> {
        for _ in 1..PORT_ATTEMPTS {
            self.port = free_port()?;
            match self.launch().await {
                Err(StoreError::Exited { tail, .. }) if tail.contains("Address already in use") => {
                    debug!(port = self.port, "port was taken meanwhile, trying another");
                }
                outcome => return outcome,
            }
        }
        self.port = free_port()?;
        self.launch().await
    }

    async fn launch(&mut self) -> Result<(), StoreError> {
        // The password goes by a file: arguments are there for everybody to see.
        secret::write_private(&self.files.config, &self.config())?;
        let mut command = Command::new(self.binary.path());
        command.arg(&self.files.config).current_dir(&self.files.dir);
        let policy = &self.options.when_parent_dies;
        let mut server = Server::spawn(&REDIS, command, &self.files.log, policy)?;
        let pid = server.pid();
        server.until_ready(async || answers(self.port, &self.password).await).await?;
        info!(port = self.port, pid, "private redis is ready");
        self.server = Some(server);
        Ok(())
    }

    /// Settings that hold for Redis 6 and later and for Valkey.
    fn config(&self) -> String {
        let keep = match self.options.durability {
            Durability::Durable => "appendonly yes\nappendfsync everysec",
            Durability::Volatile => "appendonly no",
        };
        format!(
            "bind 127.0.0.1\n\
             protected-mode yes\n\
             port {port}\n\
             requirepass {password}\n\
             dir {dir}\n\
             pidfile {pid}\n\
             logfile \"\"\n\
             daemonize no\n\
             supervised no\n\
             save \"\"\n\
             {keep}\n\
             # A queue must refuse what it can't hold, not forget something else.\n\
             maxmemory-policy noeviction\n",
            port = self.port,
            password = self.password,
            dir = quoted(&self.files.dir),
            pid = quoted(&self.files.pid),
        )
    }
}

impl Files {
    fn prepare(data_dir: &DataDir) -> Result<Self, StoreError> {
        let dir = data_dir.path().join("redis");
        if !dir.is_dir() {
            let made = DirBuilder::new().mode(0o700).create(&dir);
            made.map_err(StoreError::io("create", &dir))?;
        }
        Ok(Self {
            config: dir.join("redis.conf"),
            pid: dir.join("redis.pid"),
            dir,
            log: data_dir.path().join("redis.log"),
            password: data_dir.path().join("redis.password"),
        })
    }
}

/// Quotes a path for the configuration file.
fn quoted(path: &Path) -> String {
    let escaped = path.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{escaped}\"")
}

/// Asks whether the server takes our password and is past loading its data. The
/// password also tells it from a stranger who got the port before it.
async fn answers(port: u16, password: &str) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(format!("AUTH {password}\r\nPING\r\n").as_bytes()).await?;
        let expected = b"+OK\r\n+PONG\r\n";
        let mut answer = vec![0; expected.len()];
        stream.read_exact(&mut answer).await?;
        Ok::<_, std::io::Error>(answer == expected)
    };
    matches!(timeout(PING_WAIT, ask).await, Ok(Ok(true)))
}
