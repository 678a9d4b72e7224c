//! `waybill migrate`.

use anyhow::Context;
use tokio::time::Instant;
use waybill_storage::{Db, SCHEMA_VERSION};

use crate::app_config::AppConfig;
use crate::cli::ConfigSource;
use crate::out::Out;
use crate::text;

/// Runs the command.
pub(crate) async fn run(source: ConfigSource) -> anyhow::Result<()> {
    let config = AppConfig::load(source.config.as_deref())?;
    let db = Db::connect(&config.db("waybill-migrate")?).context("read database.url")?;
    let begun = Instant::now();
    db.migrate().await.context("migrate the database: does it run, and is database.url right?")?;
    db.close().await;
    let mut out = Out::new();
    let took = text::span(begun.elapsed());
    out.line(format_args!("schema version {SCHEMA_VERSION}, up to date after {took}"))?;
    out.flush()
}
