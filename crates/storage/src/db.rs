use std::time::Duration;

use opentelemetry::metrics::Meter;
use sqlx::{
    migrate::Migrator,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use crate::{Result, StorageError, pool::Pool};

static MIGRATOR: Migrator = sqlx::migrate!("../../migrations");

/// The newest migration this program knows; services refuse to work on another schema.
pub const SCHEMA_VERSION: i64 = 12;

/// How to reach Postgres.
#[derive(Debug, Clone)]
pub struct DbConfig {
    /// A `postgres://` URL; `sslmode` in it decides about TLS. It may hold a password: never log it.
    pub url: String,
    /// The most connections this process opens.
    pub max_connections: u32,
    /// How long a caller waits for a connection before it is told that there is none.
    pub acquire_timeout: Duration,
    /// What `pg_stat_activity` shows.
    pub application_name: String,
}

/// A pool of connections to Postgres. Clones share it.
#[derive(Debug, Clone)]
pub struct Db {
    pool: Pool,
    options: PgConnectOptions,
}

impl Db {
    /// Makes a pool. Connects on first use, so a database that is down is no error here.
    ///
    /// # Errors
    /// If the URL can't be read.
    pub fn connect(config: &DbConfig) -> Result<Self> {
        let options: PgConnectOptions =
            config.url.parse::<PgConnectOptions>()?.application_name(&config.application_name);
        let pool = PgPoolOptions::new()
            .max_connections(config.max_connections)
            .acquire_timeout(config.acquire_timeout)
            .connect_lazy_with(options.clone());
        Ok(Self { pool: Pool::new(pool), options })
    }

    /// Brings the schema up to date. Safe to call from many processes at once.
    ///
    /// # Errors
    /// If Postgres is away, a migration fails, or an applied one differs from ours.
    pub async fn migrate(&self) -> Result<()> {
        Ok(MIGRATOR.run(self.pool.inner()).await?)
    }

    /// Checks that the schema is the one this program was built for.
    ///
    /// # Errors
    /// [`StorageError::SchemaVersion`] if it isn't, or if Postgres is away.
    pub async fn check_schema(&self) -> Result<()> {
        let migrated: bool =
            sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL").fetch_one(&self.pool).await?;
        let found: i64 = if migrated {
            sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM _sqlx_migrations WHERE success")
                .fetch_one(&self.pool)
                .await?
        } else {
            0
        };
        if found == SCHEMA_VERSION {
            Ok(())
        } else {
            Err(StorageError::SchemaVersion { found, needed: SCHEMA_VERSION })
        }
    }

    /// Asks Postgres for nothing, to see whether it answers.
    ///
    /// # Errors
    /// If it doesn't.
    pub async fn ping(&self) -> Result<()> {
        sqlx::query("SELECT 1").execute(&self.pool).await?;
        Ok(())
    }

    /// Has the use of the pool measured from now on.
    pub fn measure(&self, meter: &Meter) {
        self.pool.measure(meter);
    }

    /// Closes every connection, after those in use have come back.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// How to open a connection outside the pool, for those who keep one.
    pub(crate) fn connect_options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }
}
