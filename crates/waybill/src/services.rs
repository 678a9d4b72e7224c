//! The services, put together from the configuration. `up` and `serve` both run them so.

use anyhow::Context;
use waybill_llm_queue::LlmQueue;
use waybill_runtime::grpc::{Listener, Peer};
use waybill_runtime::{Shutdown, Signals};
use waybill_storage::Db;
use waybill_vectors::Vectors;

use crate::app_config::AppConfig;
use crate::process::Watch;

/// Runs ingestion until `shutdown`.
pub(crate) async fn ingestion(
    config: &AppConfig,
    db: Db,
    signals: &Signals,
    listener: Listener,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let deps = waybill_ingestion::Deps { db, signals: signals.clone() };
    waybill_ingestion::run(config.ingestion.clone(), deps, listener, shutdown).await
}

/// Runs embedding and search until `shutdown`.
pub(crate) async fn embedding(
    config: &AppConfig,
    db: Db,
    signals: &Signals,
    listener: Listener,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let vectors = vectors(config)?;
    Watch::new(signals, &shutdown).qdrant(&vectors);
    let deps = waybill_embedding::Deps { db, vectors, signals: signals.clone() };
    waybill_embedding::run(config.embedding.clone(), deps, listener, shutdown).await
}

/// Runs extraction until `shutdown`.
pub(crate) async fn extraction(
    config: &AppConfig,
    db: Db,
    signals: &Signals,
    listener: Listener,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let queue = queue(config)?;
    Watch::new(signals, &shutdown).redis(&queue, "extraction");
    let deps = waybill_extraction::Deps { db, queue, signals: signals.clone() };
    waybill_extraction::run(config.extraction.clone(), deps, listener, shutdown).await
}

/// Runs the relay until `shutdown`. `embedding` leads to the embedding service.
pub(crate) async fn relay(
    config: &AppConfig,
    db: Db,
    embedding: Peer,
    signals: &Signals,
    listener: Listener,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let (vectors, queue) = (vectors(config)?, queue(config)?);
    let watch = Watch::new(signals, &shutdown);
    watch.qdrant(&vectors);
    watch.redis(&queue, "relay");
    watch.embedding(&embedding);
    let deps = waybill_relay::Deps { db, vectors, embedding, queue, signals: signals.clone() };
    waybill_relay::run(config.relay.clone(), deps, listener, shutdown).await
}

fn vectors(config: &AppConfig) -> anyhow::Result<Vectors> {
    Vectors::connect(&config.qdrant()?).context("read qdrant.url")
}

fn queue(config: &AppConfig) -> anyhow::Result<LlmQueue> {
    LlmQueue::connect(&config.queue()?).context("read redis.url")
}
