//! Logs and traces of a process.

use std::io::IsTerminal;

use anyhow::Context;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// The variable that holds the log filter, in the syntax of `RUST_LOG`.
pub const FILTER_VARIABLE: &str = "WAYBILL_LOG";

/// What is logged when [`FILTER_VARIABLE`] is not set. `sqlx` logs a line for every slow
/// acquire, `h2` and `hyper` for every odd peer, and the vector engine for
/// every reopened collection: they drown what matters.
const DEFAULT_FILTER: &str = "info,sqlx=warn,h2=warn,hyper=warn,tower=warn,qdrant_edge=error";

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

/// Flushes the spans that are left when it is dropped. Keep it until the end of `main`.
#[derive(Debug)]
#[must_use = "telemetry ends when the guard is dropped"]
pub struct TelemetryGuard {
    provider: SdkTracerProvider,
}

impl Drop for TelemetryGuard {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::warn!(%error, "traces not flushed");
        }
    }
}

/// Starts logs (to stderr, as stdout belongs to the command's answer) and W3C trace
/// propagation for the process. `service` names it in traces ("waybill-relay").
///
/// # Errors
/// When [`FILTER_VARIABLE`] can't be parsed, or a subscriber is installed already.
pub fn init(service: &'static str, format: Format) -> anyhow::Result<TelemetryGuard> {
    let filter = match std::env::var(FILTER_VARIABLE) {
        Ok(text) => EnvFilter::try_new(&text).with_context(|| {
            format!("{FILTER_VARIABLE} is {text:?}: write a filter such as \"info,waybill_relay=debug\"")
        })?,
        Err(_) => EnvFilter::new(DEFAULT_FILTER),
    };
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    // No exporter yet: spans are made all the same, so that trace ids travel between services.
    let provider =
        SdkTracerProvider::builder().with_resource(Resource::builder().with_service_name(service).build()).build();
    let traces = tracing_opentelemetry::layer().with_tracer(provider.tracer("waybill"));

    let human = match format {
        Format::Auto => std::io::stderr().is_terminal(),
        Format::Human => true,
        Format::Json => false,
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = if human {
        lines.with_target(false).with_ansi(std::io::stderr().is_terminal()).boxed()
    } else {
        lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed()
    };
    // Two filters: one on both would cut traces wherever a line is not wanted. Spans stop at
    // info, as h2 alone opens several below that for every frame.
    tracing_subscriber::registry()
        .with(traces.with_filter(LevelFilter::INFO))
        .with(lines.with_filter(filter))
        .try_init()
        .context("install the log subscriber")?;
    Ok(TelemetryGuard { provider })
}
