//! Sending to an OpenTelemetry collector, over OTLP and gRPC.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use opentelemetry_otlp::{MetricExporter, SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{PeriodicReader, Temporality};
use opentelemetry_sdk::trace::{SpanData, SpanExporter as ExportsSpans};

use super::TelemetryConfig;

/// How long a collector may take for one batch, before what it holds is dropped.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Sends metrics now and then.
pub(crate) type Push = PeriodicReader<SaidOnce<MetricExporter>>;

pub(super) fn spans(config: &TelemetryConfig) -> anyhow::Result<SaidOnce<SpanExporter>> {
    let exporter = to_collector(SpanExporter::builder().with_tonic(), config)?.build();
    Ok(SaidOnce::new("traces", exporter.context("use telemetry.otlp_endpoint for traces")?))
}

pub(super) fn metrics(config: &TelemetryConfig) -> anyhow::Result<Push> {
    let exporter = to_collector(MetricExporter::builder().with_tonic(), config)?.build();
    let exporter = SaidOnce::new("metrics", exporter.context("use telemetry.otlp_endpoint for metrics")?);
    Ok(PeriodicReader::builder(exporter).with_interval(config.metrics_interval()).build())
}

/// Says where the collector is, and how it is spoken to, whatever is sent. Connections are ours, so
/// that each has the newest certificates. Without pings: a collector in Go ends a connection on which
/// nothing else is sent.
fn to_collector<B: WithExportConfig + WithTonicConfig>(exporter: B, config: &TelemetryConfig) -> anyhow::Result<B> {
    let channel = waybill_tls::channel_with(&config.otlp_endpoint, &config.client_tls(), EXPORT_TIMEOUT, |endpoint| {
        endpoint.timeout(EXPORT_TIMEOUT)
    });
    Ok(exporter
        .with_channel(channel.context("use telemetry.otlp_endpoint")?)
        .with_timeout(EXPORT_TIMEOUT)
        .with_metadata(config.metadata().unwrap_or_default()))
}

/// An exporter whose failures are said once, and that it does its work again: the library has an
/// error of each batch that is not taken, so it is told of none.
#[derive(Debug)]
pub(crate) struct SaidOnce<E> {
    exporter: E,
    /// What is sent.
    signal: &'static str,
    fails: AtomicBool,
}

impl<E> SaidOnce<E> {
    fn new(signal: &'static str, exporter: E) -> Self {
        Self { exporter, signal, fails: AtomicBool::new(false) }
    }

    fn note(&self, sent: &OTelSdkResult) {
        let signal = self.signal;
        match sent {
            Err(error) if !self.fails.swap(true, Ordering::Relaxed) => {
                tracing::warn!(signal, %error, "collector does not take what is sent, it is dropped until it does");
            }
            Ok(()) if self.fails.swap(false, Ordering::Relaxed) => tracing::info!(signal, "collector is back"),
            _ => {}
        }
    }
}

impl<E: ExportsSpans> ExportsSpans for SaidOnce<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.note(&self.exporter.export(batch).await);
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl<E: PushMetricExporter> PushMetricExporter for SaidOnce<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        self.note(&self.exporter.export(metrics).await);
        Ok(())
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
    }
}
