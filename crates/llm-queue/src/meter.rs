//! What is measured of the connections to Redis.

use std::time::Duration;

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Histogram, Meter},
};
use waybill_domain::bounds::WAIT_SECONDS;

use crate::manager::Pool;

#[derive(Debug)]
pub(crate) struct PoolMeter {
    pool: KeyValue,
    wait: Histogram<f64>,
    timeouts: Counter<u64>,
}

impl PoolMeter {
    pub(crate) fn new(meter: &Meter, pool: &'static str, pools: [Pool; 2]) -> Self {
        let pool = KeyValue::new("pool", pool);
        let timeouts = meter
            .u64_counter("waybill_redis_pool_timeouts_total")
            .with_description("Callers that got no connection to Redis in time")
            .build();
        timeouts.add(0, std::slice::from_ref(&pool));
        let most: usize = pools.iter().map(|pool| pool.status().max_size).sum();
        let name = pool.clone();
        meter
            .u64_observable_gauge("waybill_redis_pool_max_connections")
            .with_description("The most connections to Redis that the process opens")
            .with_callback(move |gauge| gauge.observe(most as u64, std::slice::from_ref(&name)))
            .build();
        let name = pool.clone();
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
                gauge.observe(idle as u64, &[name.clone(), KeyValue::new("state", "idle")]);
                gauge.observe(open.saturating_sub(idle) as u64, &[name.clone(), KeyValue::new("state", "used")]);
            })
            .build();
        let wait = meter
            .f64_histogram("waybill_redis_pool_wait_seconds")
            .with_description("How long callers waited for a connection to Redis")
            .with_boundaries(WAIT_SECONDS.to_vec())
            .build();
        Self { pool, wait, timeouts }
    }

    /// Counts a caller's wait, and whether it was in vain.
    pub(crate) fn waited(&self, wait: Duration, in_vain: bool) {
        let pool = std::slice::from_ref(&self.pool);
        self.wait.record(wait.as_secs_f64(), pool);
        if in_vain {
            self.timeouts.add(1, pool);
        }
    }
}
