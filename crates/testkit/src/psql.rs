//! SQL as somebody at a terminal would run it, past all code of ours.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use waybill_local_stores::PostgresBinaries;

/// Runs `sql` with the program `psql`, in one transaction if there are several
/// statements, and returns what it prints: a line per row, columns parted by `|`.
///
/// # Errors
/// If `psql` is not installed or the SQL fails; the message carries what `psql` says.
pub async fn psql(url: &str, sql: &str) -> Result<String> {
    let mut command = binaries()?.psql(url);
    command.arg("-c").arg(sql);
    output(command).await
}

/// Runs a file of SQL with the program `psql`, in one transaction.
///
/// # Errors
/// As [`psql`].
pub async fn psql_file(url: &str, path: &Path) -> Result<String> {
    let mut command = binaries()?.psql(url);
    command.arg("--single-transaction").arg("-f").arg(path);
    output(command).await
}

/// Runs `sql` without a runtime, for `Drop`.
pub(crate) fn psql_blocking(url: &str, sql: &str) -> Result<()> {
    let mut command = binaries()?.psql(url);
    let output = command.arg("-c").arg(sql).stdin(Stdio::null()).output().context("run psql")?;
    if !output.status.success() {
        bail!("psql: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

async fn output(command: Command) -> Result<String> {
    let output = tokio::process::Command::from(command)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("run psql")?;
    if !output.status.success() {
        bail!("psql: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?.trim_end_matches('\n').to_owned())
}

/// Finds `psql` once: looking runs every Postgres there is.
fn binaries() -> Result<&'static PostgresBinaries> {
    static FOUND: OnceLock<PostgresBinaries> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(found);
    }
    let found = PostgresBinaries::find()?;
    Ok(FOUND.get_or_init(|| found))
}
