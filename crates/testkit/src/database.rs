//! A database for one test.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use tracing::warn;

use crate::postgres::shared_admin_url;
use crate::psql::psql_blocking;
use crate::{psql, psql_file};

/// A database of its own for one test. Dropped from the server when it goes out of
/// scope, whoever is still connected to it.
#[derive(Debug)]
pub struct TestDb {
    /// Where to connect, with the password.
    pub url: String,
    /// The database's name.
    pub name: String,
    admin_url: String,
}

impl TestDb {
    /// Makes a database with all migrations applied, on the test run's server.
    ///
    /// It is a copy of a template, which the first test to need it makes; migrations are
    /// recorded as `sqlx` does it, so migrating it once more changes nothing.
    ///
    /// # Errors
    /// If there is no Postgres or the migrations fail.
    pub async fn create() -> Result<Self> {
        Self::on(&shared_admin_url().await?).await
    }

    /// Makes a database with nothing in it, on the test run's server.
    ///
    /// # Errors
    /// If there is no Postgres.
    pub async fn empty() -> Result<Self> {
        Self::copy(&shared_admin_url().await?, "template1").await
    }

    /// Makes a migrated database on the server of `admin_url`.
    pub(crate) async fn on(admin_url: &str) -> Result<Self> {
        Self::copy(admin_url, &template(admin_url).await?).await
    }

    async fn copy(admin_url: &str, template: &str) -> Result<Self> {
        let name = unique_name();
        psql(admin_url, &format!("CREATE DATABASE {name} TEMPLATE {template}")).await?;
        Ok(Self { url: with_database(admin_url, &name)?, name, admin_url: admin_url.to_owned() })
    }
}

impl Drop for TestDb {
    fn drop(&mut self) {
        let sql = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        // The server may be gone, killed by the test: then so is the database.
        if let Err(error) = psql_blocking(&self.admin_url, &sql) {
            warn!(database = self.name, %error, "test database stays");
        }
    }
}

/// Returns the name of the template with the workspace's migrations; makes it if this
/// server has none yet.
///
/// Several processes may do so at once. Each builds one under a name of its own; the
/// first to rename it wins, and the others drop theirs. So a template of the final name
/// is always complete, and nobody waits for one who died building it.
async fn template(admin_url: &str) -> Result<String> {
    let migrations = read_migrations(&migrations_dir())?;
    let mut hasher = DefaultHasher::new();
    migrations.hash(&mut hasher);
    let name = format!("waybill_template_{:016x}", hasher.finish());

    let exists = format!("SELECT 1 FROM pg_database WHERE datname = '{name}'");
    if psql(admin_url, &exists).await? == "1" {
        return Ok(name);
    }
    let build = TestDb::copy(admin_url, "template1").await?;
    migrate(&build.url, &migrations).await?;
    let publish = format!("ALTER DATABASE {} RENAME TO {name}", build.name);
    if let Err(error) = psql(admin_url, &publish).await {
        let lost_race = psql(admin_url, &exists).await? == "1";
        ensure!(lost_race, "publish the template database: {error}");
    }
    // Dropping `build` removes the loser's; the winner's has another name by now.
    Ok(name)
}

#[derive(Debug, Hash)]
struct Migration {
    version: i64,
    description: String,
    path: PathBuf,
    text: String,
}

/// Reads `<version>_<description>.sql` files, in order.
fn read_migrations(dir: &Path) -> Result<Vec<Migration>> {
    let mut migrations = Vec::new();
    let entries = fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    for entry in entries {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        let Some((version, description)) = stem.and_then(|stem| stem.split_once('_')) else {
            continue;
        };
        let Ok(version) = version.parse() else {
            continue;
        };
        if path.extension().is_some_and(|extension| extension == "sql") {
            let text = fs::read_to_string(&path).context("read a migration")?;
            let description = description.replace('_', " ");
            migrations.push(Migration { version, description, path, text });
        }
    }
    ensure!(!migrations.is_empty(), "no migrations in {}", dir.display());
    migrations.sort_by_key(|migration| migration.version);
    Ok(migrations)
}

/// Applies the migrations, and records them as `sqlx` would.
async fn migrate(url: &str, migrations: &[Migration]) -> Result<()> {
    let table = "CREATE TABLE _sqlx_migrations (
        version bigint PRIMARY KEY,
        description text NOT NULL,
        installed_on timestamptz NOT NULL DEFAULT now(),
        success boolean NOT NULL,
        checksum bytea NOT NULL,
        execution_time bigint NOT NULL
    )";
    psql(url, table).await.context("make the table of migrations")?;
    for migration in migrations {
        psql_file(url, &migration.path).await.with_context(|| format!("apply {}", migration.path.display()))?;
        let text: String = migration.text.bytes().map(|byte| format!("{byte:02x}")).collect();
        let record = format!(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES ({}, '{}', true, sha384('\\x{text}'::bytea), 0)",
            migration.version,
            migration.description.replace('\'', "''"),
        );
        psql(url, &record).await.context("record a migration")?;
    }
    Ok(())
}

fn migrations_dir() -> PathBuf {
    // Of the checkout that the tests were built from.
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations")
}

/// Makes a name that no other test of this server has, in this or another process.
fn unique_name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut hasher = DefaultHasher::new();
    // On a server that outlives the run, the process's id may have been used before: so
    // the time since the machine's start counts, too.
    (std::process::id(), count, std::time::Instant::now()).hash(&mut hasher);
    format!("waybill_test_{:016x}", hasher.finish())
}

/// Replaces the database in a URL, and keeps its parameters.
fn with_database(url: &str, name: &str) -> Result<String> {
    let (base, parameters) = match url.split_once('?') {
        Some((base, parameters)) => (base, format!("?{parameters}")),
        None => (url, String::new()),
    };
    let (scheme, rest) = base.split_once("://").context("a Postgres URL without a scheme")?;
    let authority = rest.split('/').next().unwrap_or(rest);
    Ok(format!("{scheme}://{authority}/{name}{parameters}"))
}

#[cfg(test)]
mod tests {
    use super::with_database;

    #[test]
    fn the_database_of_a_url_is_replaced() {
        let cases = [
            ("postgres://u:p@h:1/postgres", "postgres://u:p@h:1/new"),
            ("postgres://u@h", "postgres://u@h/new"),
            ("postgres://u@h/a?sslmode=disable", "postgres://u@h/new?sslmode=disable"),
        ];
        for (url, expected) in cases {
            assert_eq!(with_database(url, "new").unwrap(), expected);
        }
        assert!(with_database("h/a", "new").is_err());
    }
}
