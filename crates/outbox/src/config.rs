use std::time::Duration;

use serde::{Deserialize, Serialize};
use waybill_domain::Backoff;

use crate::breaker::Breaker;

/// How a relay reads, delivers and holds its lanes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    /// How long a lease stands without renewal: the time after which another relay takes a
    /// dead one's lanes. Renewed at a third of it.
    pub lease_ms: u64,
    /// The end of each lease that its holder does not use, so that whatever it sent has
    /// ended when the next one begins.
    pub grace_ms: u64,
    /// The most keys in one delivery. Smaller ones are made while deliveries take long.
    pub batch_keys_max: usize,
    /// The same while somebody loads in bulk.
    pub bulk_batch_keys_max: usize,
    /// Deliveries under way at once: while one is embedded, another is sent.
    pub deliveries_max: usize,
    /// How long a delivery should take; batches grow and shrink towards it.
    pub delivery_target_ms: u64,
    /// Rows fetched in one read.
    pub read_rows_max: u32,
    /// Rows read and not settled, after which reading waits. About 200 bytes each.
    pub outstanding_rows_max: usize,
    /// The shortest and the longest time between two looks at the log when nobody rings.
    pub poll_min_ms: u64,
    /// See `poll_min_ms`.
    pub poll_max_ms: u64,
    /// Whether to LISTEN for writers. A transaction pooler does not carry it: then turn it off.
    pub listen: bool,
    /// How often cursors that have moved are written.
    pub cursor_write_ms: u64,
    /// The bound of each statement.
    pub statement_timeout_ms: u64,
    /// How long settled rows are kept for people to look at.
    pub retention_s: u64,
    /// How long a deleted key's tombstone is kept.
    pub tombstone_retention_s: u64,
    /// The first wait after a failure.
    pub retry_base_ms: u64,
    /// The longest wait of a sink that is down.
    pub retry_max_ms: u64,
    /// Failures in a row after which a sink is left alone.
    pub breaker_failures: u32,
    /// How long it is left alone, unless a probe finds it well before. Probes are
    /// `retry_max_ms` apart.
    pub breaker_open_ms: u64,
    /// How long a probe may take.
    pub probe_timeout_ms: u64,
    /// The first wait of a key that is refused by itself.
    pub key_retry_base_ms: u64,
    /// The longest.
    pub key_retry_max_ms: u64,
    /// Failed deliveries after which a key is given up: it is then a dead letter.
    pub attempts_max: u32,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            lease_ms: 10_000,
            grace_ms: 2_000,
            batch_keys_max: 512,
            bulk_batch_keys_max: 2_048,
            deliveries_max: 5,
            delivery_target_ms: 1_000,
            read_rows_max: 2_000,
            outstanding_rows_max: 50_000,
            poll_min_ms: 50,
            poll_max_ms: 1_000,
            listen: true,
            cursor_write_ms: 500,
            statement_timeout_ms: 10_000,
            retention_s: 3_600,
            tombstone_retention_s: 86_400,
            retry_base_ms: 100,
            retry_max_ms: 5_000,
            breaker_failures: 5,
            breaker_open_ms: 60_000,
            probe_timeout_ms: 10_000,
            key_retry_base_ms: 1_000,
            key_retry_max_ms: 300_000,
            attempts_max: 10,
        }
    }
}

impl EngineConfig {
    /// Checks what the types don't say.
    ///
    /// # Errors
    /// Names the key, its value and the fix.
    pub fn validate(&self) -> Result<(), String> {
        let at_least = |key: &str, value: u64, least: u64| {
            if value < least { Err(format!("{key} is {value}: set it to {least} or more")) } else { Ok(()) }
        };
        at_least("lease_ms", self.lease_ms, 1_000)?;
        if self.grace_ms == 0 || self.grace_ms > self.lease_ms / 2 {
            return Err(format!(
                "grace_ms is {}: set it to between 1 and half of lease_ms ({})",
                self.grace_ms, self.lease_ms
            ));
        }
        at_least("batch_keys_max", self.batch_keys_max as u64, 1)?;
        at_least("bulk_batch_keys_max", self.bulk_batch_keys_max as u64, self.batch_keys_max as u64)?;
        at_least("deliveries_max", self.deliveries_max as u64, 1)?;
        at_least("delivery_target_ms", self.delivery_target_ms, 1)?;
        at_least("read_rows_max", self.read_rows_max.into(), 1)?;
        at_least("outstanding_rows_max", self.outstanding_rows_max as u64, self.read_rows_max.into())?;
        at_least("poll_min_ms", self.poll_min_ms, 1)?;
        at_least("poll_max_ms", self.poll_max_ms, self.poll_min_ms)?;
        at_least("statement_timeout_ms", self.statement_timeout_ms, 100)?;
        at_least("cursor_write_ms", self.cursor_write_ms, 1)?;
        at_least("retry_base_ms", self.retry_base_ms, 1)?;
        at_least("retry_max_ms", self.retry_max_ms, self.retry_base_ms)?;
        at_least("breaker_failures", self.breaker_failures.into(), 1)?;
        at_least("breaker_open_ms", self.breaker_open_ms, self.retry_max_ms)?;
        at_least("probe_timeout_ms", self.probe_timeout_ms, 100)?;
        at_least("key_retry_base_ms", self.key_retry_base_ms, 1)?;
        at_least("key_retry_max_ms", self.key_retry_max_ms, self.key_retry_base_ms)?;
        at_least("attempts_max", self.attempts_max.into(), 1)
    }

    pub(crate) const fn backoff(&self) -> Backoff {
        Backoff { base: Duration::from_millis(self.retry_base_ms), max: Duration::from_millis(self.retry_max_ms) }
    }

    pub(crate) fn breaker(&self) -> Breaker {
        Breaker::new(self.breaker_failures, Duration::from_millis(self.breaker_open_ms), self.backoff())
    }

    pub(crate) const fn probe_timeout(&self) -> Duration {
        Duration::from_millis(self.probe_timeout_ms)
    }

    pub(crate) const fn term(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }

    pub(crate) const fn statement_timeout(&self) -> Duration {
        Duration::from_millis(self.statement_timeout_ms)
    }

    /// How long after it was asked for a lease is relied on.
    pub(crate) const fn usable(&self) -> Duration {
        Duration::from_millis(self.lease_ms - self.grace_ms)
    }
}
