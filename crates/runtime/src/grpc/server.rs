use std::time::Duration;

use anyhow::Context;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;

use super::call::{CallLayer, Stops};
use super::health::Health;
use super::listener::Listener;
use super::measure::CallMeter;
use crate::auth::{Denials, Policy};
use crate::connection::incoming;
use crate::metrics::Signals;
use crate::shutdown::Shutdown;

/// How often a quiet connection is asked whether its peer is still there, and how long the
/// answer may take: a caller's machine that vanished is noticed within 40 seconds.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Open calls on one connection; a caller that opens more waits. RFC 9113 asks for at least 100.
const MAX_CONCURRENT_STREAMS: u32 = 256;

/// Calls of one connection that may be inside handlers before their first answer byte, so
/// that one busy caller can't take every database connection.
const CONCURRENCY_PER_CONNECTION: usize = 64;

/// How long, after the hard stage, the last statuses may take to reach their callers before
/// the connections are cut.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How long the ends of operators' actions may take to be noted when the server stops.
const LAST_NOTES: Duration = Duration::from_secs(1);
/// Who holds a process not ready until its server takes calls: [`crate::Components::hold`] it before.
pub const STARTING: &str = "starting";

/// What a gRPC server says about itself.
#[derive(Debug, Clone)]
pub struct GrpcOptions {
    /// The full names of its services ("waybill.ingestion.v1.IngestionService"), for health.
    pub services: &'static [&'static str],
    /// The encoded `FileDescriptorSet` of those services, for reflection.
    pub descriptor_set: &'static [u8],
    /// The configuration key of the message size limit, named when a message is over it.
    pub limit_key: Option<&'static str>,
    health: Health,
    signals: Signals,
}

impl GrpcOptions {
    /// Makes options for `services`, described by `descriptor_set`.
    #[must_use]
    pub fn new(services: &'static [&'static str], descriptor_set: &'static [u8]) -> Self {
        Self { services, descriptor_set, limit_key: None, health: Health::new(services), signals: Signals::default() }
    }

    /// Names the configuration key of the message size limit ("ingestion.max_message_bytes").
    #[must_use]
    pub fn with_limit_key(mut self, key: &'static str) -> Self {
        self.limit_key = Some(key);
        self
    }

    /// Has calls measured, and the process said to be ready while they are taken.
    #[must_use]
    pub fn with_signals(mut self, signals: &Signals) -> Self {
        self.signals = signals.clone();
        self
    }

    /// Returns the handle by which a service says that it can't take calls for now.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health.clone()
    }
}

/// Serves `routes` on `listener`, to those whom it lets in, with reflection, health, request ids
/// and traces, until `shutdown`: at soft it stops accepting and finishes what is in flight, at hard it answers
/// the rest UNAVAILABLE and cuts the connections.
///
/// A handler whose stream has no end of its own should end it at [`Shutdown::soft`], or it
/// holds the stop up to the deadline.
///
/// # Errors
/// When `descriptor_set` is not a descriptor set.
pub async fn serve(
    listener: impl Into<Listener>,
    routes: Routes,
    opts: GrpcOptions,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let Listener { tcp, tls, guard } = listener.into();
    let policy = Policy::read(opts.descriptor_set).context("read who may call what")?;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(opts.descriptor_set)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let routes = routes
        .add_service(reflection().build_v1().context("read the descriptor set")?)
        .add_service(reflection().build_v1alpha().context("read the descriptor set")?)
        .add_service(opts.health.server());

    opts.health.start().await;
    let components = opts.signals.components.clone();
    components.release(STARTING);
    let stops = Stops { hard: shutdown.hard(), watches: CancellationToken::new() };
    let cut = CancellationToken::new();
    let soft = shutdown.soft();
    let stopping = async {
        soft.cancelled().await;
        // In this order: who watches health hears NOT_SERVING before the stream ends.
        opts.health.stop().await;
        components.hold("stopping", "what is under way is finished");
        stops.watches.cancel();
    };
    let known: Vec<&str> = opts.services.iter().copied().chain(["grpc.health.v1.Health"]).collect();
    let denials = Denials::new(&opts.signals.meter);
    let meter =
        CallMeter::new(&opts.signals.meter, &known, &[opts.descriptor_set, tonic_health::pb::FILE_DESCRIPTOR_SET]);
    let serving = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .concurrency_limit_per_connection(CONCURRENCY_PER_CONNECTION)
        .layer(CallLayer::new(stops.clone(), opts.limit_key, guard.clone(), policy, meter, denials))
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming(tcp, tls, cut.clone()), stopping);

    let last_words = async {
        stops.hard.cancelled().await;
        tokio::time::sleep(LAST_WORDS).await;
    };
    tokio::pin!(serving);
    let served = tokio::select! {
        served = &mut serving => served,
        () = last_words => {
            cut.cancel();
            serving.await
        }
    };
    if let Some(auditor) = guard.auditor() {
        // What was done is done: a log that does not answer must not hold the stop up.
        let _noted = tokio::time::timeout(LAST_NOTES, auditor.finish()).await;
    }
    served.context("serve gRPC")
}
