//! What measurements with servers of their own share.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use waybill_storage::{Db, DbConfig};
use waybill_testkit::TestDb;

/// Starting takes seconds: Postgres is made anew, and a model is loaded.
pub(crate) const START: Duration = Duration::from_secs(120);

/// Stopping finishes what is in flight.
pub(crate) const STOP: Duration = Duration::from_secs(60);

/// Makes a pool of our own, beside those of the programs.
pub(crate) fn connect(db: &TestDb) -> anyhow::Result<Db> {
    Ok(Db::connect(&DbConfig {
        url: db.url.clone(),
        max_connections: 4,
        acquire_timeout: START,
        application_name: "waybill-bench".to_owned(),
    })?)
}

/// Returns the path of a program that was built along with this one.
pub(crate) fn sibling(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe().context("find this program")?.with_file_name(name);
    ensure!(path.is_file(), "{} is missing: cargo build --release --bin {name}", path.display());
    Ok(path)
}
