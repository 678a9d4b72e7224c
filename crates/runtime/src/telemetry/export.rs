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
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(&config.otlp_endpoint)
        .with_timeout(EXPORT_TIMEOUT)
        .with_metadata(config.metadata().unwrap_or_default());
    let exporter = match tls(config) {
        Some(tls) => exporter.with_tls_config(tls).build(),
        None => exporter.build(),
    };
    exporter.context("use telemetry.otlp_endpoint for traces")
}

pub(super) fn metrics(config: &TelemetryConfig) -> anyhow::Result<PeriodicReader<MetricExporter>> {
    let exporter = MetricExporter::builder()
        .with_tonic()
        .with_endpoint(&config.otlp_endpoint)
        .with_timeout(EXPORT_TIMEOUT)
        .with_metadata(config.metadata().unwrap_or_default());
    let exporter = match tls(config) {
        Some(tls) => exporter.with_tls_config(tls).build(),
        None => exporter.build(),
    };
    let exporter = exporter.context("use telemetry.otlp_endpoint for metrics")?;
    Ok(PeriodicReader::builder(exporter).with_interval(config.metrics_interval()).build())
}

fn tls(config: &TelemetryConfig) -> Option<ClientTlsConfig> {
    config.otlp_endpoint.starts_with("https://").then(|| ClientTlsConfig::new().with_enabled_roots())
}
