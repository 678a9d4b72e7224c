//! Redis servers for tests.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    sync::OnceCell,
};
use waybill_local_stores::{DataDir, Durability, PrivateRedis, RedisOptions, WhenParentDies};

/// A Redis server that belongs to a test.
///
/// Its files are removed when it is dropped, or when the test process dies.
#[derive(Debug)]
pub struct TestRedis {
    /// Before the directory: a server is stopped, then its files are removed.
    server: PrivateRedis,
    _dir: TempDir,
}

impl TestRedis {
    /// Starts a server for a test that kills, wipes or restarts it. It keeps its data.
    ///
    /// # Errors
    /// If Redis is not installed or does not start.
    pub async fn own() -> Result<Self> {
        Self::start(Durability::Durable).await
    }

    /// Starts a server that keeps nothing over a restart.
    ///
    /// # Errors
    /// If Redis is not installed or does not start.
    pub async fn volatile() -> Result<Self> {
        Self::start(Durability::Volatile).await
    }

    /// Returns the URL of the test run's server, or of one for this process, and a
    /// prefix for keys that no other test has.
    ///
    /// # Errors
    /// If Redis is not installed or does not start.
    pub async fn shared() -> Result<(String, String)> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("test-{}-{count}:", std::process::id());
        if let Ok(url) = std::env::var(crate::REDIS_URL_VARIABLE) {
            return Ok((url, prefix));
        }
        // Never dropped: the server's guard stops it when this process ends.
        static SHARED: OnceCell<TestRedis> = OnceCell::const_new();
        Ok((SHARED.get_or_try_init(Self::volatile).await?.server.url(), prefix))
    }

    async fn start(durability: Durability) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("waybill-redis-").tempdir()?;
        let data_dir = DataDir::lock(dir.path())?;
        let options =
            RedisOptions { durability, when_parent_dies: WhenParentDies::StopAndRemove(dir.path().to_owned()) };
        Ok(Self { server: PrivateRedis::start(&data_dir, options).await?, _dir: dir })
    }

    /// Returns the server's URL, with the password.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Returns the server, to ask for its process.
    pub fn server(&self) -> &PrivateRedis {
        &self.server
    }

    /// Returns the server, to kill and to restart it.
    pub fn server_mut(&mut self) -> &mut PrivateRedis {
        &mut self.server
    }

    /// Forgets everything: FLUSHALL, as an operator types it.
    ///
    /// # Errors
    /// If the server does not answer, or refuses.
    pub async fn flush(&self) -> Result<()> {
        let url = self.server.url();
        let place = url.strip_prefix("redis://").unwrap_or(&url);
        let (user, address) = place.rsplit_once('@').unwrap_or(("", place));
        let address = address.split('/').next().unwrap_or(address);
        let mut stream = BufReader::new(TcpStream::connect(address).await?);
        if let Some((_, password)) = user.split_once(':') {
            say(&mut stream, &format!("AUTH {password}")).await?;
        }
        say(&mut stream, "FLUSHALL").await
    }
}

/// Sends a command in Redis' form for people, and expects OK.
async fn say(stream: &mut BufReader<TcpStream>, command: &str) -> Result<()> {
    stream.get_mut().write_all(format!("{command}\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_line(&mut answer).await?;
    anyhow::ensure!(answer.trim() == "+OK", "redis answered {answer:?}");
    Ok(())
}
