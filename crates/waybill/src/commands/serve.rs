//! `waybill serve`.

use anyhow::Context;
use tokio::net::TcpListener;
use waybill_runtime::config::ConfigError;
use waybill_runtime::grpc::{self, Listener, peer};
use waybill_runtime::{Shutdown, Signals, telemetry};
use waybill_storage::Db;

use crate::access::{self, AuthMode, Front};
use crate::app_config::AppConfig;
use crate::cli::{ServeArgs, ServiceName};
use crate::exit::Usage;
use crate::process::{self, AdminPort, Watch};
use crate::services;

/// Runs the command, until a signal or until the service fails.
pub(crate) async fn run(args: ServeArgs) -> anyhow::Result<()> {
    let mut config = AppConfig::load(args.source.config.as_deref())?;
    if args.insecure_no_keys {
        config.auth.mode = AuthMode::Open;
    }
    let (name, application, admin_port) = match args.service {
        ServiceName::Ingestion => ("ingestion", "waybill-ingestion", 7711),
        ServiceName::Extraction => ("extraction", "waybill-extraction", 7712),
        ServiceName::Embedding => ("embedding", "waybill-embedding", 7713),
        ServiceName::Relay => ("relay", "waybill-relay", 7714),
    };
    let database = config.db(application)?;
    check_stores(&config, args.service)?;
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
    let address = listener.local_addr()?;
    let front = Front::open(&config, &db, &[address]).await?;
    tracing::info!(service = name, listen = %address, keys = front.asks_for_keys(), tls = front.is_secure(), "serving");
    let served = serve(args.service, &config, db.clone(), &signals, front.listener(listener), shutdown).await;
    db.close().await;
    served
}

/// Checks that every store which a service needs is configured.
pub(crate) fn check_stores(config: &AppConfig, service: ServiceName) -> Result<(), ConfigError> {
    config.db("waybill")?;
    if matches!(service, ServiceName::Embedding | ServiceName::Relay) {
        config.qdrant()?;
    }
    if matches!(service, ServiceName::Extraction | ServiceName::Relay) {
        config.queue()?;
    }
    Ok(())
}

async fn serve(
    service: ServiceName,
    config: &AppConfig,
    db: Db,
    signals: &Signals,
    listener: Listener,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    match service {
        ServiceName::Ingestion => services::ingestion(config, db, signals, listener, shutdown).await,
        ServiceName::Embedding => services::embedding(config, db, signals, listener, shutdown).await,
        ServiceName::Extraction => services::extraction(config, db, signals, listener, shutdown).await,
        ServiceName::Relay => {
            let options = access::between_services(config);
            let embedding = peer(&config.endpoints.embedding, &options).context("read endpoints.embedding")?;
            services::relay(config, db, embedding, signals, listener, shutdown).await
        }
    }
}
