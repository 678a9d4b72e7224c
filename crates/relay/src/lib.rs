//! The outbox relay: carries what Postgres says to the stores that mirror it, and tells
//! operators what is still on its way.

mod bulk;
mod config;
mod embedder;
mod grpc;
mod grpc_verify;
mod llm_sink;
mod qdrant_sink;
mod signals;
mod target;
mod verify;

pub use config::{Config, ScrubConfig, VerifyConfig};

use std::{sync::Arc, time::Duration};

use tonic::service::Routes;
use waybill_api::{FILE_DESCRIPTOR_SET, relay::v1::relay_service_server::RelayServiceServer};
use waybill_domain::RelayId;
use waybill_llm_queue::LlmQueue;
use waybill_outbox::{Engine, Wake};
use waybill_runtime::{
    Shutdown, Signals,
    grpc::{self as server, GrpcOptions, Listener, Peer},
};
use waybill_storage::Db;
use waybill_vectors::Vectors;

use crate::{
    bulk::BulkKeeper,
    embedder::Embedder,
    grpc::RelayGrpc,
    grpc_verify::VerifyGrpc,
    llm_sink::LlmSink,
    qdrant_sink::QdrantSink,
    signals::Monitor,
    verify::{Verifier, scrub::Scrubber},
};

/// What the relay needs from outside.
#[derive(Clone)]
pub struct Deps {
    /// The source of truth.
    pub db: Db,
    /// The vector store.
    pub vectors: Vectors,
    /// The embedding service.
    pub embedding: Peer,
    /// The queue of LLM requests.
    pub queue: LlmQueue,
    /// What the relay measures with, and where it says how it is.
    pub signals: Signals,
}

/// Serves RelayService on `listener` and delivers, until `shutdown`: at soft it ends and
/// settles what is under way and gives its lanes back.
///
/// # Errors
/// When the configuration is not valid, or a task of it fails.
pub async fn run(config: Config, deps: Deps, listener: impl Into<Listener>, shutdown: Shutdown) -> anyhow::Result<()> {
    config.validate().map_err(anyhow::Error::msg)?;
    let owner = RelayId::generate();
    let embedder = Embedder::new(deps.embedding, config.model.clone(), config.embed_timeout());
    let qdrant = Arc::new(QdrantSink::new(deps.db.clone(), deps.vectors.clone(), embedder, config.alias.clone()));
    let llm = LlmSink::new(deps.db.clone(), deps.queue.clone());
    let keeper = BulkKeeper { db: deps.db.clone(), vectors: deps.vectors.clone(), alias: config.alias.clone() };
    let verifier = Verifier {
        db: deps.db.clone(),
        vectors: deps.vectors,
        queue: deps.queue.clone(),
        alias: config.alias.clone(),
        sink: Arc::clone(&qdrant),
        config: config.verify.clone(),
    };
    // An engine each: what holds one store up is nothing to the other.
    let engines = [
        Engine::new(deps.db.clone(), qdrant, config.engine.clone(), owner).measured(&deps.signals.meter),
        Engine::new(deps.db.clone(), Arc::new(llm), config.engine.clone(), owner).measured(&deps.signals.meter),
    ];
    let stats: Vec<_> = engines.iter().map(|engine| (engine.sink(), engine.stats())).collect();
    let stalled_after = Duration::from_secs(config.stalled_after_s);
    let monitor = Monitor::new(deps.db.clone(), deps.signals.clone(), stats.clone(), stalled_after);
    let verify = VerifyGrpc::new(verifier.clone(), shutdown.soft());
    let service = RelayGrpc::new(deps.db.clone(), deps.queue, owner, stats, verify, shutdown.soft());

    let tasks = shutdown.tasks();
    let scrubber = Scrubber { verifier, config: config.scrub.clone(), owner };
    let stopping = shutdown.soft();
    tasks.spawn("metrics", async {
        Box::pin(monitor.run(stopping)).await;
        Ok(())
    });
    let stopping = shutdown.soft();
    tasks.spawn("bulk keeper", async {
        keeper.run(stopping).await;
        Ok(())
    });
    let stopping = shutdown.soft();
    tasks.spawn("scrubber", async {
        scrubber.run(stopping).await;
        Ok(())
    });
    for engine in engines {
        let wake = Wake::default();
        if config.engine.listen {
            let listen = wake.clone().listen(deps.db.clone(), shutdown.soft());
            tasks.spawn("outbox ear", async {
                listen.await;
                Ok(())
            });
        }
        let (soft, hard) = (shutdown.soft(), shutdown.hard());
        tasks.spawn("relay engine", async {
            engine.run(wake, soft, hard).await;
            Ok(())
        });
    }
    let options = GrpcOptions::new(&["waybill.relay.v1.RelayService"], FILE_DESCRIPTOR_SET).with_signals(&deps.signals);
    let routes = Routes::new(RelayServiceServer::new(service));
    let served = server::serve(listener, routes, options, shutdown.clone()).await;
    // A server that could not start must not leave the engine running alone.
    shutdown.trigger();
    tasks.finish().await?;
    served
}
