//! Logs, traces and metrics of a process.

mod config;
mod export;
mod lines;
mod panics;

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context;
use opentelemetry::KeyValue;
use opentelemetry::metrics::MeterProvider;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};
use uuid::Uuid;

pub use self::config::TelemetryConfig;
pub(crate) use self::export::Push;
pub use self::lines::{HumanLines, JsonLines};
pub use self::panics::log_panic;
pub(crate) use self::panics::panic_text;
use crate::metrics::{Metrics, Scrape};
use crate::{Components, Signals};

/// The variable that holds the log filter, in the syntax of `RUST_LOG`.
pub const FILTER_VARIABLE: &str = "WAYBILL_LOG";

/// What is logged when [`FILTER_VARIABLE`] is not set. `sqlx` logs a line for every slow
/// acquire, `h2` and `hyper` for every odd peer, and the vector engine for
/// every reopened collection: they drown what matters.
const DEFAULT_FILTER: &str = "info,sqlx=warn,h2=warn,hyper=warn,tower=warn,qdrant_edge=error";

/// How long the end of a process waits for a collector that doesn't answer: what the reader of
/// metrics takes whatever it is told.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// Links of one span: a delivery that covers more changes names the first.
pub const LINKS_MAX: usize = 32;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// Coloured lines for people.
    Human,
    /// One JSON object a line, for machines.
    Json,
}

/// Sends what is left when it is dropped. Keep it until the end of `main`.
#[derive(Debug)]
#[must_use = "telemetry ends when the guard is dropped"]
pub struct TelemetryGuard {
    traces: SdkTracerProvider,
    metrics: Option<SdkMeterProvider>,
    scrape: Scrape,
    signals: Signals,
}

impl TelemetryGuard {
    /// Returns what services measure with, and where they say how they are.
    #[must_use]
    pub fn signals(&self) -> Signals {
        self.signals.clone()
    }

    /// Returns what renders the metrics for Prometheus.
    #[must_use]
    pub fn scrape(&self) -> Scrape {
        self.scrape.clone()
    }
}

impl Drop for TelemetryGuard {
    fn drop(&mut self) {
        // Both at once: a collector that doesn't answer is waited for once.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                if let Err(error) = self.traces.shutdown_with_timeout(FLUSH_TIMEOUT) {
                    tracing::warn!(%error, "traces not flushed");
                }
            });
            if let Some(metrics) = &self.metrics
                && let Err(error) = metrics.shutdown_with_timeout(FLUSH_TIMEOUT)
            {
                tracing::warn!(%error, "metrics not flushed");
            }
        });
    }
}

/// Starts logs (to stderr, as stdout belongs to the command's answer) and W3C trace
/// propagation for a process that serves nobody: nothing is exported or measured.
///
/// # Errors
/// When [`FILTER_VARIABLE`] can't be parsed, or a subscriber is installed already.
pub fn init(service: &'static str, format: Format) -> anyhow::Result<TelemetryGuard> {
    let traces = SdkTracerProvider::builder().with_resource(resource(service)).build();
    log(format, &traces)?;
    Ok(TelemetryGuard { traces, metrics: None, scrape: Scrape::default(), signals: Signals::default() })
}

/// Starts logs, traces and metrics of a service. `service` names it in traces and metrics
/// ("waybill-relay"). Needs a tokio runtime if anything is exported.
///
/// # Errors
/// As [`init`], and when the endpoint can't be used.
pub fn start(service: &'static str, format: Format, config: &TelemetryConfig) -> anyhow::Result<TelemetryGuard> {
    let mut traces = SdkTracerProvider::builder()
        .with_resource(resource(service))
        .with_max_links_per_span(u32::try_from(LINKS_MAX).unwrap_or(u32::MAX))
        // What somebody else decided to follow is followed.
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.trace_ratio))));
    if config.exports_traces() {
        traces = traces.with_batch_exporter(export::spans(config)?);
    }
    let traces = traces.build();
    let push = config.pushes_metrics().then(|| export::metrics(config)).transpose()?;
    let Metrics { provider, scrape } = Metrics::start(resource(service), push)?;
    log(format, &traces)?;
    std::panic::set_hook(Box::new(log_panic));
    let meter = provider.meter("waybill");
    let signals = Signals { meter, components: Components::default() };
    signals.components.observe(&signals.meter);
    Ok(TelemetryGuard { traces, metrics: Some(provider), scrape, signals })
}

fn resource(service: &'static str) -> Resource {
    Resource::builder()
        .with_service_name(service)
        .with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            // Replicas push the same metrics: this tells them apart.
            KeyValue::new("service.instance.id", Uuid::now_v7().to_string()),
        ])
        .build()
}

fn log(format: Format, provider: &SdkTracerProvider) -> anyhow::Result<()> {
    let filter = match std::env::var(FILTER_VARIABLE) {
        Ok(text) => EnvFilter::try_new(&text).with_context(|| {
            format!("{FILTER_VARIABLE} is {text:?}: write a filter such as \"info,waybill_relay=debug\"")
        })?,
        Err(_) => EnvFilter::new(DEFAULT_FILTER),
    };
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let traces = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("waybill"))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false);

    let human = match format {
        Format::Auto => std::io::stderr().is_terminal(),
        Format::Human => true,
        Format::Json => false,
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = if human {
        lines.with_ansi(std::io::stderr().is_terminal()).event_format(HumanLines).boxed()
    } else {
        lines.event_format(JsonLines).boxed()
    };
    // Two filters: one on both would cut traces wherever a line is not wanted. Spans stop at
    // info, as h2 alone opens several below that for every frame.
    tracing_subscriber::registry()
        .with(traces.with_filter(LevelFilter::INFO))
        .with(lines.with_filter(filter))
        .try_init()
        .context("install the log subscriber")
}
