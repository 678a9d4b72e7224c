//! `waybill serve`.

use anyhow::Context;
use tokio::net::TcpListener;
use waybill_runtime::{Shutdown, Signals, grpc, telemetry};
use waybill_storage::Db;

use crate::app_config::AppConfig;
use crate::cli::{ServeArgs, ServiceName};
use crate::exit::Usage;
use crate::process::{self, AdminPort, Watch};
use crate::services;

/// Runs the command, until a signal or until the service fails.
pub(crate) async fn run(args: ServeArgs) -> anyhow::Result<()> {
    let config = AppConfig::load(args.source.config.as_deref())?;
    let (name, application, admin_port) = match args.service {
        ServiceName::Ingestion => ("ingestion", "waybill-ingestion", 7711),
        ServiceName::Extraction => ("extraction", "waybill-extraction", 7712),
        ServiceName::Embedding => ("embedding", "waybill-embedding", 7713),
        ServiceName::Relay => ("relay", "waybill-relay", 7714),
    };
    let database = config.db(application)?;
    if matches!(args.service, ServiceName::Embedding | ServiceName::Relay) {
        config.qdrant()?;
    }
    if matches!(args.service, ServiceName::Extraction | ServiceName::Relay) {
        config.queue()?;
    }
    let telemetry = telemetry::start(application, config.log.format.into(), &config.telemetry)?;
    let signals = telemetry.signals();
    signals.components.hold(grpc::STARTING, "it has just been started");
    // First: whoever watches the process hears why it waits.
    let _admin = AdminPort::open(&config, admin_port, &telemetry).await?;
    let shutdown = Shutdown::on_signals(config.shutdown.deadline()).context("watch for signals")?;

    let address = args.listen.unwrap_or(match args.service {
        ServiceName::Ingestion => config.listen.ingestion,
        ServiceName::Embedding => config.listen.embedding,
        ServiceName::Extraction => config.listen.extraction,
        ServiceName::Relay => config.listen.relay,
    });
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| Usage(format!("can't listen on {address} ({error}): set `listen.{name}` or --listen")))?;

    let db = Db::connect(&database).context("read database.url")?;
    if !process::wait_for_schema(&db, &signals.components, &shutdown).await? {
        return Ok(());
    }
    Watch::new(&signals, &shutdown).postgres(&db);
    tracing::info!(service = name, listen = %listener.local_addr()?, "serving");
    let served = serve(args.service, &config, db.clone(), &signals, listener, shutdown).await;
    db.close().await;
    served
}

async fn serve(
    service: ServiceName,
    config: &AppConfig,
    db: Db,
    signals: &Signals,
    listener: TcpListener,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    match service {
        ServiceName::Ingestion => services::ingestion(config, db, signals, listener, shutdown).await,
        ServiceName::Embedding => services::embedding(config, db, signals, listener, shutdown).await,
        ServiceName::Extraction => services::extraction(config, db, signals, listener, shutdown).await,
        ServiceName::Relay => {
            let embedding =
                waybill_runtime::grpc::channel(&config.endpoints.embedding).context("read endpoints.embedding")?;
            services::relay(config, db, embedding, signals, listener, shutdown).await
        }
    }
}
