//! What is measured of puts.

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Meter, MeterProvider, NoopMeterProvider};
use waybill_domain::PutOutcome;
use waybill_storage::sources::PutResult;

use crate::backlog::Backlog;

/// Counts sources that were put.
#[derive(Debug, Clone)]
pub(crate) struct PutMeter(Counter<u64>);

impl PutMeter {
    pub(crate) fn none() -> Self {
        Self::new(&NoopMeterProvider::new().meter("none"))
    }

    pub(crate) fn new(meter: &Meter) -> Self {
        let sources = meter
            .u64_counter("waybill_ingestion_sources_total")
            .with_description("Sources that were put, and what that changed")
            .build();
        for outcome in ["created", "updated", "unchanged"] {
            sources.add(0, &[KeyValue::new("outcome", outcome)]);
        }
        Self(sources)
    }

    pub(crate) fn put(&self, result: &PutResult) {
        let outcome = match result.outcome {
            PutOutcome::Created => "created",
            PutOutcome::Changed => "updated",
            PutOutcome::Unchanged => "unchanged",
        };
        self.0.add(1, &[KeyValue::new("outcome", outcome)]);
    }
}

/// Has the backlog told, as it was measured last, and its limits.
pub(crate) fn observe_backlog(meter: &Meter, backlog: &Backlog) {
    let measured = backlog.clone();
    meter
        .u64_observable_gauge("waybill_ingestion_backlog_rows")
        .with_description("Changes that Qdrant has yet to confirm, estimated as puts come in")
        .with_callback(move |gauge| gauge.observe(measured.rows(), &[]))
        .build();
    let limit = backlog.hard_limit();
    meter
        .u64_observable_gauge("waybill_ingestion_backlog_limit_rows")
        .with_description("The backlog beyond which puts are refused; 0: never")
        .with_callback(move |gauge| gauge.observe(limit, &[]))
        .build();
}
