//! What an engine counts.

use std::time::Duration;

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Histogram, Meter, MeterProvider, NoopMeterProvider},
};
use waybill_domain::{
    SinkName,
    bounds::{COUNTS, LONG_SECONDS},
};

/// How a delivery ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Confirmed,
    Retried,
    Dead,
}

#[derive(Debug, Clone)]
pub(crate) struct EngineMeter {
    sink: KeyValue,
    deliveries: Counter<u64>,
    latency: Histogram<f64>,
    batch_keys: Histogram<u64>,
    lanes_lost: Counter<u64>,
}

impl EngineMeter {
    pub(crate) fn none(sink: SinkName) -> Self {
        Self::new(sink, &NoopMeterProvider::new().meter("none"))
    }

    pub(crate) fn new(sink: SinkName, meter: &Meter) -> Self {
        let measured = Self {
            sink: KeyValue::new("sink", sink.as_str()),
            deliveries: meter
                .u64_counter("waybill_relay_deliveries_total")
                .with_description(
                    "Deliveries that ended: confirmed, to be tried again, or given up; with the error's class",
                )
                .build(),
            latency: meter
                .f64_histogram("waybill_relay_commit_to_confirmed_seconds")
                .with_description(
                    "From the beginning of a change's transaction until its key was confirmed and settled",
                )
                .with_boundaries(LONG_SECONDS.to_vec())
                .build(),
            batch_keys: meter
                .u64_histogram("waybill_relay_batch_keys")
                .with_description("Keys of a delivery")
                .with_boundaries(COUNTS.to_vec())
                .build(),
            lanes_lost: meter
                .u64_counter("waybill_relay_lanes_lost_total")
                .with_description("Lanes that were lost rather than given back")
                .build(),
        };
        measured.lanes_lost(0);
        measured.count(0, Ending::Confirmed, "none");
        measured.count(0, Ending::Retried, "transient");
        measured.count(0, Ending::Dead, "permanent");
        measured
    }

    pub(crate) fn began(&self, keys: usize) {
        self.batch_keys.record(keys as u64, std::slice::from_ref(&self.sink));
    }

    pub(crate) fn ended(&self, ending: Ending, class: &'static str) {
        self.count(1, ending, class);
    }

    fn count(&self, count: u64, ending: Ending, class: &'static str) {
        let outcome = match ending {
            Ending::Confirmed => "confirmed",
            Ending::Retried => "retried",
            Ending::Dead => "dead",
        };
        let labels = [self.sink.clone(), KeyValue::new("outcome", outcome), KeyValue::new("class", class)];
        self.deliveries.add(count, &labels);
    }

    pub(crate) fn confirmed_after(&self, latency: Duration) {
        self.latency.record(latency.as_secs_f64(), std::slice::from_ref(&self.sink));
    }

    pub(crate) fn lanes_lost(&self, lanes: usize) {
        self.lanes_lost.add(lanes as u64, std::slice::from_ref(&self.sink));
    }
}
