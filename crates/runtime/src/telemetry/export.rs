//! Sending to an OpenTelemetry collector, over OTLP and gRPC.

use std::time::Duration;

use anyhow::Context;
use opentelemetry_otlp::{MetricExporter, SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::metrics::PeriodicReader;
use tonic::transport::Channel;

use super::TelemetryConfig;

/// How long a collector may take for one batch, before what it holds is dropped.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn spans(config: &TelemetryConfig) -> anyhow::Result<SpanExporter> {
    SpanExporter::builder()
        .with_tonic()
        .with_channel(channel(config)?)
        .with_timeout(EXPORT_TIMEOUT)
        .with_metadata(config.metadata().unwrap_or_default())
        .build()
        .context("use telemetry.otlp_endpoint for traces")
}

pub(super) fn metrics(config: &TelemetryConfig) -> anyhow::Result<PeriodicReader<MetricExporter>> {
    let exporter = MetricExporter::builder()
        .with_tonic()
        .with_channel(channel(config)?)
        .with_timeout(EXPORT_TIMEOUT)
        .with_metadata(config.metadata().unwrap_or_default())
        .build();
    let exporter = exporter.context("use telemetry.otlp_endpoint for metrics")?;
    Ok(PeriodicReader::builder(exporter).with_interval(config.metrics_interval()).build())
}

/// Connections are ours, so that each has the newest certificates. Without pings: a collector in Go
/// ends a connection on which nothing else is sent.
fn channel(config: &TelemetryConfig) -> anyhow::Result<Channel> {
    waybill_tls::channel_with(&config.otlp_endpoint, &config.client_tls(), EXPORT_TIMEOUT, |endpoint| {
        endpoint.timeout(EXPORT_TIMEOUT)
    })
    .context("use telemetry.otlp_endpoint")
}
