//! What is measured of calls to Qdrant.

use std::time::Duration;

use opentelemetry::{
    KeyValue,
    metrics::{Histogram, Meter, UpDownCounter},
};
use waybill_domain::bounds::CALL_SECONDS;

use crate::VectorError;

#[derive(Debug)]
pub(crate) struct CallMeter {
    in_flight: UpDownCounter<i64>,
    duration: Histogram<f64>,
}

impl CallMeter {
    pub(crate) fn new(meter: &Meter) -> Self {
        let in_flight = meter
            .i64_up_down_counter("waybill_qdrant_calls_in_flight")
            .with_description("Calls to Qdrant that were not answered yet")
            .build();
        in_flight.add(0, &[]);
        let duration = meter
            .f64_histogram("waybill_qdrant_call_duration_seconds")
            .with_description("How long Qdrant took to answer, by operation, and whether it did what it was asked")
            .with_boundaries(CALL_SECONDS.to_vec())
            .build();
        Self { in_flight, duration }
    }

    /// Counts a call until what is returned is dropped: it may be given up.
    pub(crate) fn begin(&self) -> InFlight<'_> {
        self.in_flight.add(1, &[]);
        InFlight(self)
    }

    pub(crate) fn ended<T>(&self, operation: &'static str, elapsed: Duration, result: &Result<T, VectorError>) {
        let outcome = match result {
            Ok(_) => "ok",
            Err(error) => error.class().as_str(),
        };
        let labels = [KeyValue::new("operation", operation), KeyValue::new("outcome", outcome)];
        self.duration.record(elapsed.as_secs_f64(), &labels);
    }
}

pub(crate) struct InFlight<'a>(&'a CallMeter);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.add(-1, &[]);
    }
}
