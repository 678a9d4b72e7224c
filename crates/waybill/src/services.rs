//! The services, put together from the configuration. `up` and `serve` both run them so.

use anyhow::Context;
use waybill_llm_queue::LlmQueue;
use waybill_runtime::Shutdown;
use waybill_runtime::grpc::{Listener, Peer};
use waybill_storage::Db;
use waybill_vectors::Vectors;

use crate::app_config::AppConfig;

/// Runs ingestion until `shutdown`.
pub(crate) async fn ingestion(
    config: &AppConfig,
    db: Db,
    listener: Listener,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let deps = waybill_ingestion::Deps { db };
    waybill_ingestion::run(config.ingestion.clone(), deps, listener, shutdown).await
}

/// Runs embedding and search until `shutdown`.
pub(crate) async fn embedding(
    config: &AppConfig,
    db: Db,
    listener: Listener,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let deps = waybill_embedding::Deps { db, vectors: vectors(config)? };
    waybill_embedding::run(config.embedding.clone(), deps, listener, shutdown).await
}

/// Runs extraction until `shutdown`.
pub(crate) async fn extraction(
    config: &AppConfig,
    db: Db,
    listener: Listener,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let deps = waybill_extraction::Deps { db, queue: queue(config)? };
    waybill_extraction::run(config.extraction.clone(), deps, listener, shutdown).await
}

/// Runs the relay until `shutdown`. `embedding` leads to the embedding service.
pub(crate) async fn relay(
    config: &AppConfig,
    db: Db,
    embedding: Peer,
    listener: Listener,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let deps = waybill_relay::Deps { db, vectors: vectors(config)?, embedding, queue: queue(config)? };
    waybill_relay::run(config.relay.clone(), deps, listener, shutdown).await
}

fn vectors(config: &AppConfig) -> anyhow::Result<Vectors> {
    Vectors::connect(&config.qdrant()?).context("read qdrant.url")
}

fn queue(config: &AppConfig) -> anyhow::Result<LlmQueue> {
    LlmQueue::connect(&config.queue()?).context("read redis.url")
}
