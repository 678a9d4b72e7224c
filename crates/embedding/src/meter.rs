//! What is measured of embedding and search.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter};
use waybill_domain::bounds::{CALL_SECONDS, COUNTS};
use waybill_models::ModelError;

/// Bounds of how full a batch was.
const RATIOS: [f64; 10] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

/// Counts what the cache knew.
#[derive(Debug, Clone)]
pub(crate) struct CacheMeter(Counter<u64>);

impl CacheMeter {
    pub(crate) fn new(meter: &Meter) -> Self {
        let lookups = meter.u64_counter("waybill_embedding_cache_lookups_total");
        Self(
            lookups.with_description("Texts looked up in the cache of embeddings, and whether they were there").build(),
        )
    }

    /// `key` names the model and its dimensions, as the cache does.
    pub(crate) fn looked_up(&self, key: &str, hits: usize, misses: usize) {
        let model = key.rsplit_once('/').map_or(key, |(model, _)| model);
        for (result, count) in [("hit", hits), ("miss", misses)] {
            let labels = [KeyValue::new("model", model.to_owned()), KeyValue::new("result", result)];
            self.0.add(count as u64, &labels);
        }
    }
}

/// Measures the calls of one model.
#[derive(Debug, Clone)]
pub(crate) struct ModelMeter {
    model: KeyValue,
    duration: Histogram<f64>,
    texts: Histogram<u64>,
    fill: Histogram<f64>,
    pub(crate) meter: Meter,
}

impl ModelMeter {
    pub(crate) fn new(meter: &Meter, model: &str) -> Self {
        Self {
            model: KeyValue::new("model", model.to_owned()),
            duration: meter
                .f64_histogram("waybill_embedding_call_duration_seconds")
                .with_description("How long a model took for a batch, and how that ended")
                .with_boundaries(CALL_SECONDS.to_vec())
                .build(),
            texts: meter
                .u64_histogram("waybill_embedding_batch_texts")
                .with_description("Texts of a batch")
                .with_boundaries(COUNTS.to_vec())
                .build(),
            fill: meter
                .f64_histogram("waybill_embedding_batch_fill_ratio")
                .with_description("Texts of a batch as a share of the most that it may have")
                .with_boundaries(RATIOS.to_vec())
                .build(),
            meter: meter.clone(),
        }
    }

    /// Has the queue's length told, and its limit.
    pub(crate) fn observe_queue(&self, capacity: usize, waiting: impl Fn() -> Option<usize> + Send + Sync + 'static) {
        let model = self.model.clone();
        self.meter
            .u64_observable_gauge("waybill_embedding_queue_texts")
            .with_description("Texts that wait for a model")
            .with_callback(move |gauge| {
                if let Some(waiting) = waiting() {
                    gauge.observe(waiting as u64, std::slice::from_ref(&model));
                }
            })
            .build();
        let model = self.model.clone();
        self.meter
            .u64_observable_gauge("waybill_embedding_queue_capacity_texts")
            .with_description("The most texts that may wait for a model, of documents and of queries each")
            .with_callback(move |gauge| gauge.observe(capacity as u64, std::slice::from_ref(&model)))
            .build();
    }

    pub(crate) fn called<T>(&self, texts: usize, most: usize, elapsed: Duration, result: &Result<T, ModelError>) {
        let model = std::slice::from_ref(&self.model);
        self.texts.record(texts as u64, model);
        #[expect(clippy::cast_precision_loss, reason = "a ratio of small numbers")]
        self.fill.record(texts as f64 / most.max(1) as f64, model);
        let outcome = match result {
            Ok(_) => "ok",
            Err(error) => error.class().as_str(),
        };
        self.duration.record(elapsed.as_secs_f64(), &[self.model.clone(), KeyValue::new("outcome", outcome)]);
    }
}

/// Counts points that were passed over.
#[derive(Debug, Clone)]
pub(crate) struct SearchMeter(Arc<Counter<u64>>);

impl SearchMeter {
    pub(crate) fn new(meter: &Meter) -> Self {
        let stale = meter
            .u64_counter("waybill_search_stale_hits_total")
            .with_description("Hits that were left out because their row is gone or another version by now")
            .build();
        stale.add(0, &[]);
        Self(Arc::new(stale))
    }

    pub(crate) fn stale(&self, hits: usize) {
        self.0.add(hits as u64, &[]);
    }
}
