//! Postgres servers for tests.

use std::path::PathBuf;

use anyhow::{Context, Result};
use tempfile::TempDir;
use tokio::sync::OnceCell;
use waybill_local_stores::{DataDir, Durability, PostgresOptions, PrivatePostgres, WhenParentDies};

use crate::TestDb;

/// Many tests at once, each with a pool or two.
const MAX_CONNECTIONS: u16 = 300;

/// A Postgres server that belongs to a test.
///
/// Its files are removed when it is dropped, or when the test process dies.
#[derive(Debug)]
pub struct TestPostgres {
    /// Before the directory: a server is stopped, then its files are removed.
    server: PrivatePostgres,
    dir: TempDir,
}

impl TestPostgres {
    /// Starts a server for a test that kills, stops or restarts it. What it
    /// acknowledges is on disk.
    ///
    /// # Errors
    /// If Postgres is not installed or does not start.
    pub async fn own() -> Result<Self> {
        Self::start(Durability::Durable).await
    }

    /// Starts a server that never waits for the disk.
    ///
    /// # Errors
    /// If Postgres is not installed or does not start.
    pub async fn volatile() -> Result<Self> {
        Self::start(Durability::Volatile).await
    }

    async fn start(durability: Durability) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("waybill-pg-").tempdir()?;
        open_to_service_user(&dir)?;
        let data_dir = DataDir::lock(dir.path())?;
        let options = PostgresOptions {
            durability,
            max_connections: MAX_CONNECTIONS,
            when_parent_dies: WhenParentDies::StopAndRemove(dir.path().to_owned()),
        };
        let server = PrivatePostgres::start(&data_dir, options).await?;
        Ok(Self { server, dir })
    }

    /// Makes a migrated database on this server.
    ///
    /// # Errors
    /// If the migrations fail.
    pub async fn database(&self) -> Result<TestDb> {
        TestDb::on(&self.admin_url()).await
    }

    /// Returns the URL of the database that others are made from here.
    pub fn admin_url(&self) -> String {
        self.server.url_of("postgres")
    }

    /// Returns the server, to ask for its process.
    pub fn server(&self) -> &PrivatePostgres {
        &self.server
    }

    /// Returns the server, to kill and to restart it.
    pub fn server_mut(&mut self) -> &mut PrivatePostgres {
        &mut self.server
    }

    /// Returns the directory that the server's files are in.
    pub fn dir(&self) -> PathBuf {
        self.dir.path().to_owned()
    }
}

/// Lets the user that root's Postgres runs as pass through a temporary directory.
fn open_to_service_user(dir: &TempDir) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).context("open the temporary directory")
}

/// Returns the URL to make databases at: the test run's server, or one for this process.
pub(crate) async fn shared_admin_url() -> Result<String> {
    if let Ok(url) = std::env::var(crate::POSTGRES_URL_VARIABLE) {
        return Ok(url);
    }
    // Never dropped: the server's guard stops it when this process ends.
    static SHARED: OnceCell<TestPostgres> = OnceCell::const_new();
    Ok(SHARED.get_or_try_init(TestPostgres::volatile).await?.admin_url())
}
