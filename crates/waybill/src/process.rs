//! What every serving process has around its services: the admin port, the wait for Postgres
//! and its schema, and the watch over the stores.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use opentelemetry::KeyValue;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use waybill_llm_queue::LlmQueue;
use waybill_runtime::grpc::Peer;
use waybill_runtime::telemetry::TelemetryGuard;
use waybill_runtime::{Components, Shutdown, Signals, admin, grpc};
use waybill_storage::{Db, SCHEMA_VERSION, StorageError};
use waybill_vectors::Vectors;

use crate::app_config::AppConfig;
use crate::exit::Usage;

/// Between two looks for Postgres and its schema, at the start.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The admin port. Closed when it is dropped.
#[derive(Debug)]
pub(crate) struct AdminPort {
    address: SocketAddr,
    is_secure: bool,
    serving: JoinHandle<()>,
}

impl AdminPort {
    /// Opens the port where the configuration says; else on the loopback at `default_port`, or
    /// at a free one if that is taken: two relays on one machine are no error. `None` if it is
    /// switched off.
    pub(crate) async fn open(
        config: &AppConfig,
        default_port: u16,
        telemetry: &TelemetryGuard,
    ) -> anyhow::Result<Option<Self>> {
        if !config.admin.enabled {
            return Ok(None);
        }
        let wanted = config.admin.listen.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, default_port)));
        let listener = match TcpListener::bind(wanted).await {
            Err(error) if error.kind() == ErrorKind::AddrInUse && config.admin.listen.is_none() => {
                TcpListener::bind((wanted.ip(), 0)).await.context("listen on a free port")?
            }
            bound => bound.map_err(|error| {
                Usage(format!("can't listen on {wanted} ({error}): set `admin.listen`, or `admin.enabled` to false"))
            })?,
        };
        let address = listener.local_addr().context("read the listener's address")?;
        let tls = config.admin_tls()?;
        let is_secure = tls.is_some();
        tracing::info!(listen = %address, tls = is_secure, "admin port: /metrics, /livez, /readyz, /healthz");
        let (scrape, components) = (telemetry.scrape(), telemetry.signals().components);
        let serving = tokio::spawn(async move {
            if let Err(error) = admin::serve(listener, tls, scrape, components, CancellationToken::new()).await {
                tracing::error!(error = format!("{error:#}"), "the admin port has failed");
            }
        });
        Ok(Some(Self { address, is_secure, serving }))
    }

    /// Returns where it answers.
    pub(crate) fn url(&self) -> String {
        let mut address = self.address;
        if address.ip().is_unspecified() {
            address.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        format!("{}://{address}", if self.is_secure { "https" } else { "http" })
    }
}

impl Drop for AdminPort {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Waits until Postgres answers and has the schema that this program needs. `false` if it is
/// stopped before.
///
/// # Errors
/// If the schema is newer: no wait would mend that.
pub(crate) async fn wait_for_schema(db: &Db, components: &Components, shutdown: &Shutdown) -> anyhow::Result<bool> {
    let soft = shutdown.soft();
    let mut said = String::new();
    loop {
        let Some(checked) = soft.run_until_cancelled(db.check_schema()).await else { return Ok(false) };
        let why = match checked {
            Ok(()) => return Ok(true),
            Err(error @ StorageError::SchemaVersion { found, needed }) if found > needed => {
                return Err(error).context("check the schema of the database");
            }
            Err(error @ StorageError::SchemaVersion { .. }) => {
                components.set("schema", Err(error.to_string()));
                format!("waits for the schema: {error}")
            }
            Err(error) => {
                components.set("postgres", Err(error.to_string()));
                format!("waits for postgres: {error}")
            }
        };
        components.hold(grpc::STARTING, why.clone());
        if said != why {
            tracing::warn!("{why}");
            said = why;
        }
        if soft.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_none() {
            return Ok(false);
        }
    }
}

/// The stores that a process uses, watched until it stops.
pub(crate) struct Watch {
    signals: Signals,
    stop: CancellationToken,
}

impl Watch {
    pub(crate) fn new(signals: &Signals, shutdown: &Shutdown) -> Self {
        Self { signals: signals.clone(), stop: shutdown.soft() }
    }

    fn spawn<F>(&self, name: &'static str, probe: impl Fn() -> F + Send + 'static)
    where
        F: Future<Output = Result<String, String>> + Send + 'static,
    {
        tokio::spawn(self.signals.components.clone().watch(name, self.stop.clone(), probe));
    }

    /// Watches what every process needs.
    pub(crate) fn postgres(&self, db: &Db) {
        build_info(&self.signals);
        db.measure(&self.signals.meter);
        let of_server = db.clone();
        self.spawn("postgres", move || {
            let db = of_server.clone();
            async move { db.ping().await.map(|()| "answers".to_owned()).map_err(|error| error.to_string()) }
        });
        let db = db.clone();
        self.spawn("schema", move || {
            let db = db.clone();
            async move {
                match db.check_schema().await {
                    Err(error @ StorageError::SchemaVersion { .. }) => Err(error.to_string()),
                    Ok(()) => Ok(format!("version {SCHEMA_VERSION}")),
                    // It was that; what is wrong with Postgres is said of Postgres.
                    Err(_) => Ok(format!("version {SCHEMA_VERSION} when postgres was asked last")),
                }
            }
        });
    }

    /// Watches Redis. `pool` says whose connections these are.
    pub(crate) fn redis(&self, queue: &LlmQueue, pool: &'static str) {
        queue.measure(&self.signals.meter, pool);
        let queue = queue.clone();
        self.spawn("redis", move || {
            let queue = queue.clone();
            async move { queue.stats().await.map(|_| "answers".to_owned()).map_err(|error| error.to_string()) }
        });
    }

    pub(crate) fn qdrant(&self, vectors: &Vectors) {
        vectors.measure(&self.signals.meter);
        let vectors = vectors.clone();
        self.spawn("qdrant", move || {
            let vectors = vectors.clone();
            async move {
                vectors.health().await.map(|version| format!("version {version}")).map_err(|error| error.to_string())
            }
        });
    }

    /// Watches the embedding service, which the relay needs.
    pub(crate) fn embedding(&self, channel: &Peer) {
        let client = HealthClient::new(channel.clone());
        self.spawn("embedding", move || {
            let mut client = client.clone();
            async move {
                // The empty name asks about the server as a whole.
                let answer = client.check(HealthCheckRequest::default()).await.map_err(|error| error.to_string())?;
                match answer.get_ref().status() {
                    ServingStatus::Serving => Ok("serves".to_owned()),
                    _ => Err("it says that it does not serve".to_owned()),
                }
            }
        });
    }
}

fn build_info(signals: &Signals) {
    signals
        .meter
        .u64_observable_gauge("waybill_build_info")
        .with_description("1, with the version of the program and of the schema that it needs")
        .with_callback(|gauge| {
            let version = KeyValue::new("version", env!("CARGO_PKG_VERSION"));
            gauge.observe(1, &[version, KeyValue::new("schema", SCHEMA_VERSION.to_string())]);
        })
        .build();
}
