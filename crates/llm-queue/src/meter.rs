//! What is measured of the connections to Redis.

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Histogram, Meter},
};

use crate::manager::Pool;

/// Bounds in seconds: a connection that is free is there in microseconds.
const WAIT_SECONDS: [f64; 9] = [0.000_1, 0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 5.0];

#[derive(Debug)]
pub(crate) struct PoolMeter {
    pub(crate) wait: Histogram<f64>,
    pub(crate) timeouts: Counter<u64>,
}

impl PoolMeter {
    pub(crate) fn new(meter: &Meter, pools: [Pool; 2]) -> Self {
        let timeouts = meter
            .u64_counter("waybill_redis_pool_timeouts_total")
            .with_description("Callers that got no connection to Redis in time")
            .build();
        timeouts.add(0, &[]);
        let most: usize = pools.iter().map(|pool| pool.status().max_size).sum();
        meter
            .u64_observable_gauge("waybill_redis_pool_max_connections")
            .with_description("The most connections to Redis that the process opens")
            .with_callback(move |gauge| gauge.observe(most as u64, &[]))
            .build();
        meter
            .u64_observable_gauge("waybill_redis_pool_connections")
            .with_description("Open connections to Redis: idle, or in use")
            .with_callback(move |gauge| {
                let (mut open, mut idle) = (0, 0);
                for pool in &pools {
                    let status = pool.status();
                    open += status.size;
                    idle += status.available;
                }
                gauge.observe(idle as u64, &[KeyValue::new("state", "idle")]);
                gauge.observe(open.saturating_sub(idle) as u64, &[KeyValue::new("state", "used")]);
            })
            .build();
        let wait = meter
            .f64_histogram("waybill_redis_pool_wait_seconds")
            .with_description("How long callers waited for a connection to Redis")
            .with_boundaries(WAIT_SECONDS.to_vec())
            .build();
        Self { wait, timeouts }
    }
}
