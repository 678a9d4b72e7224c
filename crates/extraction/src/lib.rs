//! The extraction service: has a language model read chunks, and hands out the facts and
//! entities that it found. Its workers take requests from the queue in Redis; what Redis has
//! lost they send again.

mod config;
mod governor;
mod grpc;
mod provider;
mod signals;
mod sweep;
mod worker;
#[cfg(test)]
mod worker_tests;

use std::sync::Arc;

use anyhow::anyhow;
use tonic::service::Routes;
use waybill_api::{FILE_DESCRIPTOR_SET, extraction::v1::extraction_service_server::ExtractionServiceServer};
use waybill_llm_queue::LlmQueue;
use waybill_runtime::{
    Shutdown, Signals,
    grpc::{GrpcOptions, Listener, serve},
};
use waybill_storage::{Bell, Db};

pub use config::{Config, ProviderName};

use crate::{
    governor::Governor,
    grpc::{ForeignWorkers, Grpc},
    signals::{LlmMeter, Monitor},
    worker::Worker,
};

/// What the service works on.
#[derive(Clone)]
pub struct Deps {
    /// The database, migrated.
    pub db: Db,
    /// The queue of requests.
    pub queue: LlmQueue,
    /// What the service measures with, and where it says how it is.
    pub signals: Signals,
}

/// Serves `ExtractionService` on `listener` and works off the queue, until `shutdown`: at
/// soft it claims nothing more and ends what is under way, and before hard it hands back
/// what has not ended.
///
/// # Errors
/// If the configuration is not valid, or the server fails.
pub async fn run(config: Config, deps: Deps, listener: impl Into<Listener>, shutdown: Shutdown) -> anyhow::Result<()> {
    config.validate().map_err(|wrong| anyhow!(wrong))?;
    let provider = provider::connect(&config)?;
    let governor = Arc::new(Governor::new(&config));
    let bell = Bell::start(&deps.db);

    let tasks = shutdown.tasks();
    let meter = LlmMeter::new(&deps.signals.meter, provider.llm.name());
    let monitor = Monitor::new(&deps, Arc::clone(&governor), provider.llm.name());
    tasks.spawn("metrics", Box::pin(monitor.run(shutdown.soft())));
    tasks.spawn(
        "find what redis lost",
        sweep::run(deps.db.clone(), deps.queue.clone(), config.clone(), bell.clone(), meter.clone(), shutdown.soft()),
    );
    let foreign = ForeignWorkers::new(config.clone(), deps.clone(), provider.clone(), bell.clone());
    let worker = Worker::new(config.clone(), deps.clone(), provider, Arc::clone(&governor), bell.clone(), meter);
    let (provider, model) = (worker.provider_name(), worker.model());
    if config.worker_enabled {
        tasks.spawn("worker", worker.run(shutdown.clone()));
    }
    let service = Grpc {
        config,
        db: deps.db,
        governor: Arc::clone(&governor),
        provider,
        model,
        bell,
        shutdown: shutdown.clone(),
        foreign,
    };
    let routes = Routes::new(ExtractionServiceServer::new(service));
    let options = GrpcOptions::new(&[grpc::SERVICE], FILE_DESCRIPTOR_SET).with_signals(&deps.signals);
    let served = serve(listener, routes, options, shutdown.clone()).await;
    // A server that could not start must not leave a worker running alone.
    shutdown.trigger();
    tasks.finish().await?;
    served
}
