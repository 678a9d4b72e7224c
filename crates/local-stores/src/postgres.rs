//! A private Postgres.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use tracing::{debug, info};

use crate::binaries::forget_connection_settings;
use crate::guard::WhenParentDies;
use crate::placement::Layout;
use crate::server::{Kind, PORT_ATTEMPTS, Server, Step, free_port};
use crate::service_user::ServiceUser;
use crate::{DataDir, Durability, PostgresBinaries, StoreError, orphan, secret};

/// The role that owns everything, and the database of that name.
const NAME: &str = "waybill";

static POSTGRES: Kind = Kind {
    name: "postgres",
    // Fast: connections are ended, a checkpoint is written. Immediate: the next start
    // replays the log.
    stop: &[
        Step { signal: Signal::SIGINT, wait: Duration::from_secs(30) },
        Step { signal: Signal::SIGQUIT, wait: Duration::from_secs(5) },
    ],
    abandon: &[Step { signal: Signal::SIGQUIT, wait: Duration::from_secs(5) }],
};

/// After the postmaster was killed, its children notice within moments and let go of
/// the shared memory; until then a new one refuses to start. 100 × 100 ms.
const SHARED_MEMORY_ATTEMPTS: u32 = 100;
const SHARED_MEMORY_PAUSE: Duration = Duration::from_millis(100);

/// How much of a helper's output an error carries, in characters.
const OUTPUT_CHARS: usize = 2000;

/// How a private Postgres is run.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// Whether commits wait for the disk.
    pub durability: Durability,
    /// The most connections it takes: all services of one process use far fewer.
    pub max_connections: u16,
    /// What becomes of it when this process dies.
    pub when_parent_dies: WhenParentDies,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self { durability: Durability::Durable, max_connections: 100, when_parent_dies: WhenParentDies::Stop }
    }
}

/// A Postgres server of our own. Dropping it stops it at once, as a crash would;
/// [`stop`](Self::stop) does it in good order.
pub struct PrivatePostgres {
    /// Held for as long as the server may run.
    _data_dir: DataDir,
    options: PostgresOptions,
    binaries: PostgresBinaries,
    user: Option<ServiceUser>,
    layout: Layout,
    password: String,
    port: u16,
    server: Option<Server>,
}

impl fmt::Debug for PrivatePostgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the password.
        f.debug_struct("PrivatePostgres")
            .field("binaries", &self.binaries)
            .field("layout", &self.layout)
            .field("port", &self.port)
            .field("pid", &self.pid())
            .finish_non_exhaustive()
    }
}

impl PrivatePostgres {
    /// Starts the server over `postgres/` of the data directory, and waits until it
    /// answers queries. The first start makes the cluster and the database `waybill`.
    ///
    /// A server that an earlier run left behind is ended first.
    ///
    /// # Errors
    /// [`StoreError::NotInstalled`] and [`StoreError::OtherMajor`] for want of programs;
    /// [`StoreError::Exited`] and [`StoreError::NotReady`] with the end of the server's log.
    pub async fn start(data_dir: &DataDir, options: PostgresOptions) -> Result<Self, StoreError> {
        let user = ServiceUser::needed()?;
        let layout = Layout::prepare(data_dir, user.as_ref())?;
        let binaries = binaries_for(&layout.cluster())?;
        if let Some(user) = &user {
            user.require_reach(&binaries.program("postgres"))?;
        }
        let password = secret::load_or_create(&layout.password())?;
        let mut postgres =
            Self { _data_dir: data_dir.clone(), options, binaries, user, layout, password, port: 0, server: None };
        if !postgres.layout.cluster().exists() {
            postgres.create_cluster().await?;
        }
        postgres.end_orphan().await?;
        postgres.launch_on_free_port().await?;
        postgres.create_database().await?;
        Ok(postgres)
    }

    /// Returns the URL of the database `waybill`, with the password.
    pub fn url(&self) -> String {
        self.url_of(NAME)
    }

    /// Returns the URL of a database of this server, with the password.
    pub fn url_of(&self, database: &str) -> String {
        format!("postgres://{NAME}:{}@127.0.0.1:{}/{database}", self.password, self.port)
    }

    /// Returns the TCP port at 127.0.0.1; it stays the same over a restart.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the postmaster's process id; `None` while it is stopped or killed.
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Server::pid)
    }

    /// Returns the programs it runs from.
    pub fn binaries(&self) -> &PostgresBinaries {
        &self.binaries
    }

    /// Stops the server: connections are ended, what is in memory is written.
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
            Some(mut server) => server.kill().map_err(StoreError::io("kill", Path::new(NAME))),
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

    async fn create_cluster(&self) -> Result<(), StoreError> {
        let (cluster, unfinished) = (self.layout.cluster(), self.layout.unfinished_cluster());
        info!(
            path = %cluster.display(), major = self.binaries.major(),
            "creating a private postgres, this takes a few seconds"
        );
        remove_tree(&unfinished)?;
        let password = self.layout.password_for_initdb();
        secret::write_private(&password, &self.password)?;
        if let Some(user) = &self.user {
            user.own(&password)?;
        }
        let done = self.initdb(&unfinished, &password).await;
        fs::remove_file(&password).map_err(StoreError::io("remove", &password))?;
        done?;
        fs::rename(&unfinished, &cluster).map_err(StoreError::io("create", &cluster))
    }

    async fn initdb(&self, cluster: &Path, password: &Path) -> Result<(), StoreError> {
        // Code point order, Unicode case: the same on every machine, and no index
        // breaks when the system's C library changes its mind about a language.
        let unicode: &[&str] = if self.binaries.major() >= 17 {
            &["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
        } else {
            &["--locale=C.UTF-8", "--lc-messages=C"]
        };
        let output = self.run_initdb(cluster, password, unicode).await?;
        if output.status.success() {
            return Ok(());
        }
        // Before version 17 the locale is the system's, and not every system has this one.
        if String::from_utf8_lossy(&output.stderr).contains("invalid locale") {
            remove_tree(cluster)?;
            return check("initdb", self.run_initdb(cluster, password, &["--no-locale"]).await?);
        }
        check("initdb", output)
    }

    async fn run_initdb(&self, cluster: &Path, password: &Path, locale: &[&str]) -> Result<Output, StoreError> {
        let mut command = self.command("initdb");
        command
            .arg("-D")
            .arg(cluster)
            .arg("--pwfile")
            .arg(password)
            .args(["--encoding=UTF8", "--auth=scram-sha-256", "--username", NAME])
            .args(locale);
        if self.options.durability == Durability::Volatile {
            command.arg("--no-sync");
        }
        run(command).await
    }

    async fn end_orphan(&self) -> Result<(), StoreError> {
        let cluster = self.layout.cluster();
        let Some(file) = PidFile::read(&cluster) else {
            return Ok(());
        };
        let identity = orphan::Identity { name: POSTGRES.name, dir: &cluster, programs: &["postgres"] };
        orphan::end(&identity, file.pid, POSTGRES.stop).await?;
        // Another process has the id by now. Postgres would take it for a postmaster
        // if it runs as the same user, as it does in a restarted container.
        let taken = signal::kill(Pid::from_raw(file.pid), None).is_ok();
        if taken {
            let path = cluster.join(PidFile::NAME);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io("remove", &path)(error));
                }
                _ => debug!(pid = file.pid, "removed a stale postmaster.pid"),
            }
        }
        Ok(())
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
        for _ in 1..SHARED_MEMORY_ATTEMPTS {
            match self.try_launch().await {
                Err(StoreError::Exited { tail, .. }) if tail.contains("is still in use") => {
                    debug!("backends of a killed postgres are still ending");
                    tokio::time::sleep(SHARED_MEMORY_PAUSE).await;
                }
                outcome => return outcome,
            }
        }
        self.try_launch().await
    }

    async fn try_launch(&mut self) -> Result<(), StoreError> {
        let cluster = self.layout.cluster();
        let mut command = self.command("postgres");
        command.arg("-D").arg(&cluster);
        for (name, value) in self.settings() {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let mut server = Server::spawn(&POSTGRES, command, &self.layout.log(), &self.options.when_parent_dies)?;
        let pid = server.pid();
        server.until_ready(async || PidFile::read(&cluster).is_some_and(|file| file.is_ready(pid))).await?;
        info!(port = self.port, pid, "private postgres is ready");
        self.server = Some(server);
        Ok(())
    }

    /// Settings that hold on every version from 15 to 18.
    fn settings(&self) -> Vec<(&'static str, String)> {
        let fsync = match self.options.durability {
            Durability::Durable => "on",
            Durability::Volatile => "off",
        };
        let socket_dir = self.layout.socket_dir().map(|dir| dir.to_string_lossy().into_owned());
        vec![
            ("listen_addresses", "127.0.0.1".to_owned()),
            ("port", self.port.to_string()),
            ("unix_socket_directories", socket_dir.unwrap_or_default()),
            ("max_connections", self.options.max_connections.to_string()),
            ("shared_buffers", "128MB".to_owned()),
            ("max_wal_size", "1GB".to_owned()),
            ("fsync", fsync.to_owned()),
            ("full_page_writes", fsync.to_owned()),
            // Also without fsync: a killed server must not forget what it acknowledged.
            ("synchronous_commit", "on".to_owned()),
            // Compiling costs more than our short statements take.
            ("jit", "off".to_owned()),
            ("timezone", "UTC".to_owned()),
            ("log_timezone", "UTC".to_owned()),
            ("log_line_prefix", "%m [%p] %d ".to_owned()),
            // The log is ours, whatever the cluster's own configuration says.
            ("logging_collector", "off".to_owned()),
            ("log_destination", "stderr".to_owned()),
        ]
    }

    async fn create_database(&self) -> Result<(), StoreError> {
        let url = self.url_of("postgres");
        let query = |sql: &str| {
            let mut command = self.binaries.psql(&url);
            command.arg("-c").arg(sql);
            command
        };
        let found = format!("SELECT 1 FROM pg_database WHERE datname = '{NAME}'");
        let output = run(query(&found)).await?;
        if output.status.success() && !output.stdout.trim_ascii().is_empty() {
            return Ok(());
        }
        check("psql", output)?;
        check("psql", run(query(&format!("CREATE DATABASE {NAME}"))).await?)
    }

    /// One of the server's programs, as the user it is to run as.
    fn command(&self, program: &'static str) -> Command {
        let mut command = Command::new(self.binaries.program(program));
        forget_connection_settings(&mut command);
        // The current directory may be out of that user's reach. Messages are read by us.
        command.current_dir("/").env("LC_ALL", "C");
        if let Some(user) = &self.user {
            user.become_in(&mut command);
        }
        command
    }
}

/// Finds the programs for a cluster: its own major version, or the newest for a new one.
fn binaries_for(cluster: &Path) -> Result<PostgresBinaries, StoreError> {
    let version = cluster.join("PG_VERSION");
    match fs::read_to_string(&version) {
        Ok(text) => match text.trim().parse() {
            Ok(needs) => PostgresBinaries::find_major(needs)
                .ok_or_else(|| StoreError::OtherMajor { cluster: cluster.to_owned(), needs }),
            Err(_) => PostgresBinaries::find(),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => PostgresBinaries::find(),
        Err(error) => Err(StoreError::io("read", &version)(error)),
    }
}

/// What a postmaster says about itself in `postmaster.pid`.
struct PidFile {
    pid: i32,
    status: String,
}

impl PidFile {
    const NAME: &str = "postmaster.pid";
    /// The line with the status, from 0.
    const STATUS_LINE: usize = 7;

    fn read(cluster: &Path) -> Option<Self> {
        let text = fs::read_to_string(cluster.join(Self::NAME)).ok()?;
        let pid = text.lines().next()?.trim().parse().ok()?;
        let status = text.lines().nth(Self::STATUS_LINE).unwrap_or_default().trim().to_owned();
        Some(Self { pid, status })
    }

    fn is_ready(&self, pid: u32) -> bool {
        i64::from(self.pid) == i64::from(pid) && self.status == "ready"
    }
}

async fn run(command: Command) -> Result<Output, StoreError> {
    let program = Path::new(command.get_program()).to_owned();
    let mut command = tokio::process::Command::from(command);
    command.stdin(std::process::Stdio::null()).kill_on_drop(true);
    command.output().await.map_err(StoreError::io("run", &program))
}

fn check(program: &'static str, output: Output) -> Result<(), StoreError> {
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    let skip = text.chars().count().saturating_sub(OUTPUT_CHARS);
    let output_tail = text.chars().skip(skip).collect();
    Err(StoreError::Command { program, status: output.status, output: output_tail })
}

fn remove_tree(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path)(error)),
        _ => Ok(()),
    }
}
