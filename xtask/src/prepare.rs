//! `cargo xtask prepare`: asks a database about the queries of the storage crate, and keeps
//! its answers in `crates/storage/.sqlx`, so that everybody else builds without one.

use std::collections::BTreeSet;
use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context as _, ensure};

use crate::{sh, system};

/// The URL that `with-test-stores` hands on.
const POSTGRES_VARIABLE: &str = "WAYBILL_TEST_POSTGRES_URL";

/// The database that the migrations are applied to.
const DATABASE: &str = "waybill_prepare";

/// Renews the offline data.
///
/// # Errors
/// If there is no Postgres, a migration fails, or a query is wrong.
pub(crate) fn run() -> anyhow::Result<()> {
    if let Some(url) = std::env::var_os(POSTGRES_VARIABLE) {
        return renew(&url.to_string_lossy());
    }
    system::ensure_postgres()?;
    sh::step("building what starts a private Postgres (the first time: a minute or two)");
    sh::run(sh::cargo().args(["build", "--package", "waybill-testkit", "--bin", "with-test-stores"]))?;
    // It runs this very program again, with a server.
    let this = std::env::current_exe().context("find this program")?;
    let mut again = Command::new(sh::target_dir().join("debug/with-test-stores"));
    sh::run(again.arg(this).arg("prepare"))
}

fn renew(server_url: &str) -> anyhow::Result<()> {
    let url = migrated_database(server_url)?;
    let storage = sh::root().join("crates/storage");
    let fresh = sh::target_dir().join("sqlx-prepare");
    if fresh.exists() {
        fs::remove_dir_all(&fresh).with_context(|| format!("remove {}", fresh.display()))?;
    }
    fs::create_dir_all(&fresh).with_context(|| format!("create {}", fresh.display()))?;

    sh::step("checking the queries of waybill-storage (a minute; the first time 5)");
    // Cargo doesn't know that the macros look at a database: only a newer file makes it
    // expand them again.
    touch(&storage.join("src/lib.rs"))?;
    let mut check = sh::cargo();
    check
        .args(["check", "--package", "waybill-storage", "--all-targets"])
        .env("SQLX_OFFLINE", "false")
        .env("DATABASE_URL", url)
        .env("SQLX_OFFLINE_DIR", &fresh);
    sh::run(&mut check)?;

    let (written, removed) = replace(&fresh, &storage.join(".sqlx"))?;
    ensure!(written > 0, "the check wrote no data: has waybill-storage no queries?");
    sh::print(&format!("prepare: {written} queries, {removed} stale removed\n"))
}

/// Makes a database on the server, applies the migrations with `psql`, returns its URL.
fn migrated_database(server_url: &str) -> anyhow::Result<String> {
    psql(server_url, &["-c", &format!("DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")])?;
    psql(server_url, &["-c", &format!("CREATE DATABASE {DATABASE}")])?;
    let url = with_database(server_url, DATABASE).context("read the server's URL")?;
    let mut migrations = Vec::new();
    for entry in fs::read_dir(sh::root().join("migrations")).context("list migrations")? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "sql") {
            migrations.push(path);
        }
    }
    migrations.sort();
    for migration in &migrations {
        let path = migration.to_string_lossy();
        psql(&url, &["--single-transaction", "-f", &path]).with_context(|| format!("apply {path}"))?;
    }
    Ok(url)
}

fn psql(url: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let mut psql = Command::new(find_psql());
    psql.args(["-X", "-q", "-w", "-v", "ON_ERROR_STOP=1", "-d", url]).args(arguments);
    sh::output(&mut psql).map(drop)
}

/// Replaces the database in a URL, and keeps its parameters.
fn with_database(url: &str, database: &str) -> Option<String> {
    let (base, parameters) = url.split_once('?').unwrap_or((url, ""));
    let (scheme, rest) = base.split_once("://")?;
    let authority = rest.split('/').next()?;
    let parameters = if parameters.is_empty() { String::new() } else { format!("?{parameters}") };
    Some(format!("{scheme}://{authority}/{database}{parameters}"))
}

/// Makes `folder` hold what `fresh` holds; returns how many files it has and how many went.
fn replace(fresh: &Path, folder: &Path) -> anyhow::Result<(usize, usize)> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let new = names(fresh)?;
    let old = names(folder)?;
    for name in &new {
        let text = fs::read(fresh.join(name)).with_context(|| format!("read {name}"))?;
        let target = folder.join(name);
        // What has not changed keeps its time, so that nothing is built for it.
        if fs::read(&target).ok().as_ref() != Some(&text) {
            fs::write(&target, text).with_context(|| format!("write {}", target.display()))?;
        }
    }
    let stale = old.difference(&new).collect::<Vec<_>>();
    for name in &stale {
        fs::remove_file(folder.join(name)).with_context(|| format!("remove {name}"))?;
    }
    Ok((new.len(), stale.len()))
}

fn names(folder: &Path) -> anyhow::Result<BTreeSet<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let mut names = BTreeSet::new();
    for entry in entries {
        names.insert(entry?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

/// Returns the path of `psql`: beside the server that was found, or on PATH.
fn find_psql() -> PathBuf {
    if let Some(dir) = std::env::var_os("WAYBILL_POSTGRES_BIN_DIR") {
        return Path::new(&dir).join("psql");
    }
    let roots = ["/usr/lib/postgresql", "/opt/homebrew/opt", "/usr/local/opt"];
    let mut found = roots
        .iter()
        .filter_map(|root| fs::read_dir(root).ok())
        .flatten()
        .filter_map(|entry| entry.ok().map(|entry| entry.path().join("bin/psql")))
        .filter(|psql| psql.is_file())
        .collect::<Vec<_>>();
    found.sort();
    found.pop().unwrap_or_else(|| "psql".into())
}

#[expect(clippy::disallowed_methods, reason = "cargo compares file times with the real clock")]
fn touch(path: &Path) -> anyhow::Result<()> {
    let file = File::options().append(true).open(path);
    let file = file.with_context(|| format!("open {}", path.display()))?;
    file.set_times(FileTimes::new().set_modified(SystemTime::now())).context("touch a file")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_database_of_a_url_is_replaced() {
        let replaced = |url| with_database(url, "new");
        assert_eq!(replaced("postgres://u:p@h:1/a?b=c").as_deref(), Some("postgres://u:p@h:1/new?b=c"));
        assert_eq!(replaced("postgres://u@h").as_deref(), Some("postgres://u@h/new"));
        assert_eq!(replaced("h/a"), None);
    }

    #[test]
    fn stale_files_go_and_the_same_stay() {
        let dir = std::env::temp_dir().join(format!("xtask-prepare-{}", std::process::id()));
        let (fresh, folder) = (dir.join("fresh"), dir.join("folder"));
        fs::create_dir_all(&fresh).unwrap();
        fs::create_dir_all(&folder).unwrap();
        fs::write(fresh.join("a"), "1").unwrap();
        fs::write(folder.join("a"), "1").unwrap();
        fs::write(folder.join("b"), "2").unwrap();
        assert_eq!(replace(&fresh, &folder).unwrap(), (1, 1));
        assert_eq!(names(&folder).unwrap().into_iter().collect::<Vec<_>>(), ["a"]);
        fs::remove_dir_all(&dir).unwrap();
    }
}
