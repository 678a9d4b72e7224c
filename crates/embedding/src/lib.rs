//! Embedding and search: text to vectors, questions to passages.
//!
//! `EmbeddingService` stands between everybody who has text and the models. It knows nothing
//! of projects or documents. `SearchService` embeds a query, asks the vector store, and reads
//! what a hit says from Postgres at that moment: a point is a pointer, never a source of truth.

mod batcher;
mod cache;
mod config;
mod embed;
mod freshness;
mod grpc;
mod limits;
mod meter;
mod registry;
mod search;
mod vector;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use waybill_api::FILE_DESCRIPTOR_SET;
use waybill_api::embedding::v1::{
    embedding_service_server::EmbeddingServiceServer, search_service_server::SearchServiceServer,
};
use waybill_runtime::grpc::{GrpcOptions, Listener, serve};
use waybill_runtime::{Shutdown, Signals};
use waybill_storage::Db;
use waybill_vectors::Vectors;

pub use config::{BatchingConfig, CacheConfig, Config};

use self::cache::VectorCache;
use self::embed::Embedder;
use self::grpc::{EmbeddingGrpc, SearchGrpc};
use self::meter::{CacheMeter, SearchMeter};
use self::registry::Registry;
use self::search::Searcher;

const SERVICES: &[&str] = &["waybill.embedding.v1.EmbeddingService", "waybill.embedding.v1.SearchService"];

/// What the services work with.
#[derive(Debug, Clone)]
pub struct Deps {
    /// Postgres: the cache, and what hits say.
    pub db: Db,
    /// The vector store.
    pub vectors: Vectors,
    /// What the services measure with, and where they say how they are.
    pub signals: Signals,
}

/// Serves embedding and search on `listener` until `shutdown`.
///
/// Waits for the models first: a server that can't be reached yet is tried again. Postgres and
/// the vector store may be away; calls that need them fail until they are back.
///
/// # Errors
/// If the configuration is invalid, a model can't be used, or a background task fails.
pub async fn run(config: Config, deps: Deps, listener: impl Into<Listener>, shutdown: Shutdown) -> anyhow::Result<()> {
    config.validate()?;
    let Deps { db, vectors, signals } = deps;
    let (writer, write_behind) = cache::write_behind(&db, &config.cache);
    let registry = Arc::new(Registry::build(&config, &writer, &signals, &shutdown).await?);
    let cache = VectorCache::new(db.clone(), &config.cache, writer, CacheMeter::new(&signals.meter));
    let embedder = Arc::new(Embedder::new(cache));
    let searcher = Searcher::new(db.clone(), vectors, Arc::clone(&registry), Arc::clone(&embedder), &config)
        .measured(SearchMeter::new(&signals.meter));

    // Ends the background tasks after the last call, whose vectors they write.
    let calls_done = CancellationToken::new();
    let tasks = shutdown.tasks();
    tasks.spawn("cache writer", {
        let stop = calls_done.clone();
        async move {
            write_behind.run(stop).await;
            Ok(())
        }
    });
    if config.cache.enabled {
        let evict = cache::evict(db, config.cache.clone(), calls_done.clone());
        tasks.spawn("cache eviction", async move {
            evict.await;
            Ok(())
        });
    }

    let embedding = EmbeddingServiceServer::new(EmbeddingGrpc::new(registry, embedder))
        .max_decoding_message_size(config.max_message_bytes);
    let search = SearchServiceServer::new(SearchGrpc::new(Arc::new(searcher)));
    let options = GrpcOptions::new(SERVICES, FILE_DESCRIPTOR_SET)
        .with_limit_key("embedding.max_message_bytes")
        .with_signals(&signals);
    let served = serve(listener, Routes::new(embedding).add_service(search), options, shutdown).await;
    calls_done.cancel();
    tasks.finish().await?;
    served
}
