//! The ingestion service: projects and sources come in over gRPC, are cut into chunks and
//! committed to Postgres. Nothing is embedded or indexed here: that follows from the outbox,
//! which the database's own triggers fill.

mod acknowledge;
mod backlog;
pub mod chunk;
mod config;
mod convert;
mod errors;
mod grpc;
mod limits;
mod meter;
mod pages;
mod service;
mod stream;
mod sweep;
mod upload;
mod validate;

use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use waybill_api::{FILE_DESCRIPTOR_SET, ingestion::v1::ingestion_service_server::IngestionServiceServer};
use waybill_runtime::{
    Shutdown, Signals,
    grpc::{GrpcOptions, Listener, serve},
};
use waybill_storage::Db;

pub use config::{ChunkingConfig, Config};

use crate::{backlog::Backlog, chunk::Chunker, grpc::Grpc, limits::Limits, meter::PutMeter, service::Ingestion};

/// What a message may have beyond its body: uri, title, metadata and their tags.
const MESSAGE_OVERHEAD_BYTES: usize = 64 * 1_024;

/// How often old answers are purged. They are kept for a day; minutes more do no harm.
const PURGE_INTERVAL: Duration = Duration::from_secs(10 * 60);

/// How long the start waits for the first measurement of the backlog: Postgres may be away.
const FIRST_MEASUREMENT: Duration = Duration::from_secs(2);

/// What the service works on.
#[derive(Debug, Clone)]
pub struct Deps {
    /// The database, migrated.
    pub db: Db,
    /// What the service measures with, and where it says how it is.
    pub signals: Signals,
}

/// Serves `IngestionService` on `listener` until `shutdown`.
///
/// # Errors
/// If the configuration is not valid, its tokenizer can't be read, or the server fails.
pub async fn run(config: Config, deps: Deps, listener: impl Into<Listener>, shutdown: Shutdown) -> anyhow::Result<()> {
    config.validate().map_err(|wrong| anyhow!(wrong))?;
    let chunking = config.chunking.clone();
    let chunker = tokio::task::spawn_blocking(move || {
        Chunker::new(chunking.max_tokens, chunking.overlap_tokens, chunking.tokenizer.as_deref())
    })
    .await
    .context("load the tokenizer")?
    .context("ingestion.chunking.tokenizer")?;
    let ingestion = Ingestion::new(deps.db, chunker).measured(PutMeter::new(&deps.signals.meter));

    let tasks = shutdown.tasks();
    tasks.spawn("purge put requests", purge(ingestion.clone(), shutdown.soft()));
    tasks.spawn("sweep provisional sources", sweep::run(ingestion.clone(), shutdown.soft()));
    let backlog = Backlog::new(ingestion.db().clone(), &config);
    meter::observe_backlog(&deps.signals.meter, &backlog);
    // So that a hard limit holds from the first put on.
    let _ = tokio::time::timeout(FIRST_MEASUREMENT, backlog.measure()).await;
    tasks.spawn("measure the backlog", backlog.clone().run(shutdown.soft()));
    let max_message_bytes = config.max_body_bytes + MESSAGE_OVERHEAD_BYTES;
    let service = Grpc { limits: Limits::new(&config), config, ingestion, backlog, shutdown: shutdown.clone() };
    let routes = Routes::new(IngestionServiceServer::new(service).max_decoding_message_size(max_message_bytes));
    let options = GrpcOptions::new(&[grpc::SERVICE], FILE_DESCRIPTOR_SET)
        .with_limit_key("ingestion.max_body_bytes")
        .with_signals(&deps.signals);
    serve(listener, routes, options, shutdown).await?;
    tasks.finish().await
}

async fn purge(ingestion: Ingestion, stopping: CancellationToken) -> anyhow::Result<()> {
    while stopping.run_until_cancelled(tokio::time::sleep(PURGE_INTERVAL)).await.is_some() {
        ingestion.purge_requests().await;
    }
    Ok(())
}
