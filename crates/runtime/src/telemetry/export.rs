//! Sending to an OpenTelemetry collector, over OTLP and gRPC.

use std::time::Duration;

use anyhow::Context;
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{MetricExporter, SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::metrics::PeriodicReader;

use super::TelemetryConfig;

/// How long a collector may take for one batch, before what it holds is dropped.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn spans(config: &TelemetryConfig) -> anyhow::Result<SpanExporter> {
    to_collector(SpanExporter::builder().with_tonic(), config).build().context("use telemetry.otlp_endpoint for traces")
}

pub(super) fn metrics(config: &TelemetryConfig) -> anyhow::Result<PeriodicReader<MetricExporter>> {
    let exporter = to_collector(MetricExporter::builder().with_tonic(), config).build();
    let exporter = exporter.context("use telemetry.otlp_endpoint for metrics")?;
    Ok(PeriodicReader::builder(exporter).with_interval(config.metrics_interval()).build())
}

/// Says where the collector is, and how it is spoken to, whatever is sent.
fn to_collector<B: WithExportConfig + WithTonicConfig>(exporter: B, config: &TelemetryConfig) -> B {
    let exporter = exporter
        .with_endpoint(&config.otlp_endpoint)
        .with_timeout(EXPORT_TIMEOUT)
        .with_metadata(config.metadata().unwrap_or_default());
    if config.otlp_endpoint.starts_with("https://") {
        exporter.with_tls_config(ClientTlsConfig::new().with_enabled_roots())
    } else {
        exporter
    }
}
