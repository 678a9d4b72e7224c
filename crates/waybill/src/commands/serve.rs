//! `waybill serve`.

use anyhow::Context;
use tokio::net::TcpListener;
use waybill_runtime::config::ConfigError;
use waybill_runtime::grpc::{Listener, peer};
use waybill_runtime::{Shutdown, telemetry};
use waybill_storage::Db;

use crate::access::{self, AuthMode, Front};
use crate::app_config::AppConfig;
use crate::cli::{ServeArgs, ServiceName};
use crate::exit::Usage;
use crate::services;

/// Runs the command, until a signal or until the service fails.
pub(crate) async fn run(args: ServeArgs) -> anyhow::Result<()> {
    let mut config = AppConfig::load(args.source.config.as_deref())?;
    if args.insecure_no_keys {
        config.auth.mode = AuthMode::Open;
    }
    let (name, application) = match args.service {
        ServiceName::Ingestion => ("ingestion", "waybill-ingestion"),
        ServiceName::Embedding => ("embedding", "waybill-embedding"),
        ServiceName::Extraction => ("extraction", "waybill-extraction"),
        ServiceName::Relay => ("relay", "waybill-relay"),
    };
    let database = config.db(application)?;
    check_stores(&config, args.service)?;
    let _telemetry = telemetry::init(application, config.log.format.into())?;
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
    db.check_schema().await.context("check the schema of the database")?;
    let address = listener.local_addr()?;
    let front = Front::open(&config.auth, &config.tls, &db, &[address]).await?;
    tracing::info!(service = name, listen = %address, keys = front.asks_for_keys(), tls = front.is_secure(), "serving");
    let served = serve(args.service, &config, db.clone(), front.listener(listener), shutdown).await;
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
    listener: Listener,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    match service {
        ServiceName::Ingestion => services::ingestion(config, db, listener, shutdown).await,
        ServiceName::Embedding => services::embedding(config, db, listener, shutdown).await,
        ServiceName::Extraction => services::extraction(config, db, listener, shutdown).await,
        ServiceName::Relay => {
            let options = access::between_services(&config.auth, &config.tls);
            let embedding = peer(&config.endpoints.embedding, &options).context("read endpoints.embedding")?;
            services::relay(config, db, embedding, listener, shutdown).await
        }
    }
}
