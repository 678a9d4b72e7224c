use std::time::Duration;

use http::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use tonic::metadata::{KeyAndValueRef, MetadataKey, MetadataMap};
use waybill_tls::{ClientTls, ClientTlsConfig};

use crate::config::{ConfigError, Secret};

/// Where traces and metrics are sent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// An OpenTelemetry collector, over gRPC: `http://collector:4317`. Empty: nothing is sent.
    pub otlp_endpoint: String,
    /// Sent with each export, such as a key: `name=value,name=value`.
    pub otlp_headers: Secret,
    /// How an `https://` collector is checked, and what it is shown.
    pub tls: ClientTlsConfig,
    /// Whether traces are sent.
    pub traces: bool,
    /// The share of traces that begin here and are sent, 0 to 1. Of a call that comes with a
    /// trace, the caller decides.
    pub trace_ratio: f64,
    /// Whether metrics are sent too. They can be scraped all the same.
    pub metrics_push: bool,
    /// How often metrics are sent.
    pub metrics_interval_ms: u64,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            otlp_endpoint: String::new(),
            otlp_headers: Secret::default(),
            tls: ClientTlsConfig::default(),
            traces: true,
            trace_ratio: 1.0,
            metrics_push: false,
            metrics_interval_ms: 60_000,
        }
    }
}

impl TelemetryConfig {
    /// Checks the values. `section` is the key it stands under, for messages.
    ///
    /// # Errors
    /// Names the key, what is wrong with it and the fix.
    pub fn validate(&self, section: &str) -> Result<(), ConfigError> {
        let key = |name: &str| format!("{section}.{name}");
        let url = self.otlp_endpoint.as_str();
        if !url.is_empty() && url.parse::<http::Uri>().map_or(true, |uri| uri.host().is_none() || !is_http(&uri)) {
            let fix = "write http://host:4317, or https://; empty sends nothing";
            return Err(ConfigError::invalid(
                key("otlp_endpoint"),
                format!("{url:?}"),
                "is no address of a collector",
                fix,
            ));
        }
        self.tls.validate(&key("tls"))?;
        if url.starts_with("http://") && self.tls.is_set() {
            let fix = "begin it with https://, or leave telemetry.tls out";
            return Err(ConfigError::invalid(key("otlp_endpoint"), format!("{url:?}"), "speaks no TLS", fix));
        }
        if !(0.0..=1.0).contains(&self.trace_ratio) {
            let fix = "write a share from 0 to 1";
            return Err(ConfigError::invalid(key("trace_ratio"), self.trace_ratio, "is no share", fix));
        }
        if !(1_000..=3_600_000).contains(&self.metrics_interval_ms) {
            let fix = "write 1000 to 3600000";
            return Err(ConfigError::invalid(
                key("metrics_interval_ms"),
                self.metrics_interval_ms,
                "is out of range",
                fix,
            ));
        }
        if self.metadata().is_none() {
            let fix = "write name=value,name=value in ASCII, names in lower case";
            return Err(ConfigError::invalid(key("otlp_headers"), "[hidden]", "can't be sent as headers", fix));
        }
        Ok(())
    }

    /// Returns what an exporter needs for TLS.
    #[must_use]
    pub fn client_tls(&self) -> ClientTls {
        self.tls.of("telemetry.tls")
    }

    pub(super) fn exports_traces(&self) -> bool {
        self.traces && !self.otlp_endpoint.is_empty()
    }

    pub(super) fn pushes_metrics(&self) -> bool {
        self.metrics_push && !self.otlp_endpoint.is_empty()
    }

    pub(super) const fn metrics_interval(&self) -> Duration {
        Duration::from_millis(self.metrics_interval_ms)
    }

    /// Reads the headers; `None` if they are none.
    pub(super) fn metadata(&self) -> Option<MetadataMap> {
        let mut headers = http::HeaderMap::new();
        for pair in self.otlp_headers.expose().split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=')?;
            let name = name.trim();
            // gRPC's own rule: such a name announces bytes.
            if name.ends_with("-bin") || MetadataKey::<tonic::metadata::Ascii>::from_bytes(name.as_bytes()).is_err() {
                return None;
            }
            let mut value: HeaderValue = value.trim().parse().ok()?;
            value.set_sensitive(true);
            headers.insert(name.parse::<HeaderName>().ok()?, value);
        }
        let metadata = MetadataMap::from_headers(headers);
        let all_ascii = metadata.iter().all(|pair| matches!(pair, KeyAndValueRef::Ascii(..)));
        all_ascii.then_some(metadata)
    }
}

fn is_http(uri: &http::Uri) -> bool {
    matches!(uri.scheme_str(), Some("http" | "https"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_pairs() {
        let of = |text: &str| TelemetryConfig { otlp_headers: Secret::new(text), ..TelemetryConfig::default() };
        let metadata = of("x-key=abc=d, tenant = t1,").metadata().unwrap();
        assert_eq!((metadata.len(), metadata.get("x-key").unwrap().to_str().unwrap()), (2, "abc=d"));
        for bad in ["secret", "a b=c", "x=\u{1}", "a-bin=x"] {
            let error = of(bad).validate("telemetry").unwrap_err().to_string();
            assert!(error.contains("telemetry.otlp_headers") && !error.contains(bad), "{error}");
        }
    }

    #[test]
    fn what_is_no_address_or_share_is_refused() {
        let ok = TelemetryConfig { otlp_endpoint: "http://collector:4317".into(), ..TelemetryConfig::default() };
        ok.validate("telemetry").unwrap();
        for (config, key) in [
            (TelemetryConfig { otlp_endpoint: "collector:4317".into(), ..ok.clone() }, "otlp_endpoint"),
            (TelemetryConfig { trace_ratio: 1.5, ..ok.clone() }, "trace_ratio"),
            (TelemetryConfig { metrics_interval_ms: 0, ..ok }, "metrics_interval_ms"),
        ] {
            let error = config.validate("telemetry").unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }
}
