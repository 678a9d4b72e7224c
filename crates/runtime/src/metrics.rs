//! Metrics of a process: OpenTelemetry instruments, scraped by Prometheus or pushed.
//!
//! An instrument's name is the name that Prometheus shows: `waybill_<area>_<what>_<unit>`, and
//! `_total` behind what only grows. docs/metrics.md lists all of them, and a test compares it
//! with what a running system says.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use opentelemetry::metrics::{Meter, MeterProvider, NoopMeterProvider};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Registry, TextEncoder};

use crate::Components;
use crate::telemetry::Push;

/// What a service measures with, and where it says how it is. Clones share both.
#[derive(Debug, Clone)]
pub struct Signals {
    /// Makes instruments.
    pub meter: Meter,
    /// How what this process needs is.
    pub components: Components,
}

impl Default for Signals {
    /// Measures nothing, for tests and tools.
    fn default() -> Self {
        Self { meter: NoopMeterProvider::new().meter("waybill"), components: Components::default() }
    }
}

/// Renders what was measured. One without a meter behind it renders nothing.
#[derive(Debug, Clone, Default)]
pub struct Scrape {
    registry: Registry,
    /// What is measured ends with its provider.
    _provider: Option<SdkMeterProvider>,
}

impl Scrape {
    /// Returns all metrics in Prometheus' text format. Reads memory alone.
    ///
    /// # Errors
    /// When two instruments contradict each other.
    pub fn render(&self) -> anyhow::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather()).context("write the metrics")
    }
}

/// The metrics of a process.
pub(crate) struct Metrics {
    pub(crate) provider: SdkMeterProvider,
    pub(crate) scrape: Scrape,
}

impl Metrics {
    pub(crate) fn start(resource: Resource, push: Option<Push>) -> anyhow::Result<Self> {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            // Names carry unit and suffix themselves, so that they are the same where they are pushed.
            .without_units()
            .without_counter_suffixes()
            .without_target_info()
            .scope_info_enabled(false)
            .build()
            .context("set up the metrics")?;
        let mut provider = SdkMeterProvider::builder().with_resource(resource).with_reader(exporter);
        if let Some(push) = push {
            provider = provider.with_reader(push);
        }
        let provider = provider.build();
        Ok(Self { scrape: Scrape { registry, _provider: Some(provider.clone()) }, provider })
    }
}

impl Signals {
    /// Makes signals that are measured, and what renders them, for a test of its own.
    ///
    /// # Errors
    /// When the metrics can't be set up.
    pub fn measured() -> anyhow::Result<(Self, Scrape)> {
        let Metrics { provider, scrape } = Metrics::start(Resource::builder_empty().build(), None)?;
        let signals = Self { meter: provider.meter("waybill"), components: Components::default() };
        signals.components.observe(&signals.meter);
        Ok((signals, scrape))
    }
}

/// What a background task read last, for gauges that must not wait for a store. Clones share it.
#[derive(Debug)]
pub struct Sample<T>(Arc<Mutex<Option<(Instant, T)>>>);

/// A sample that is older says nothing about now: the gauge is left out until there is a new one.
const SAMPLE_MAX_AGE: Duration = Duration::from_secs(120);

impl<T> Clone for Sample<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Sample<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Clone> Sample<T> {
    /// Replaces it.
    pub fn set(&self, value: T) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), value));
    }

    /// Returns it, unless there is none or it is too old.
    #[must_use]
    pub fn get(&self) -> Option<T> {
        let sample = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sample.as_ref().filter(|(at, _)| at.elapsed() < SAMPLE_MAX_AGE).map(|(_, value)| value.clone())
    }
}
