//! Telling producers that the index falls behind.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use waybill_domain::SinkName;
use waybill_runtime::status;
use waybill_storage::{Db, backlog};

use crate::Config;

/// The pause between two measurements while puts come in.
const INTERVAL: Duration = Duration::from_millis(250);

/// The pause while none does. The first put after it hears of a backlog this old at most.
const IDLE_INTERVAL: Duration = Duration::from_secs(5);

/// How long a measurement may take: some milliseconds is usual.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The shortest wait that is suggested: a measurement later things may look otherwise.
const SLOW_DOWN_MIN: Duration = Duration::from_millis(100);

/// The longest.
const SLOW_DOWN_MAX: Duration = Duration::from_secs(10);

/// What the vector store has yet to confirm, measured in the background. Clones share it.
///
/// The queue of language model requests is left out: it is as long as a job is large, by
/// design, and says nothing about puts.
#[derive(Debug, Clone)]
pub(crate) struct Backlog {
    db: Db,
    soft_limit: u64,
    hard_limit: u64,
    rows: Arc<AtomicU64>,
    /// Somebody has asked since the last measurement.
    asked: Arc<Notify>,
}

impl Backlog {
    pub(crate) fn new(db: Db, config: &Config) -> Self {
        Self {
            db,
            soft_limit: config.backlog_soft_limit,
            hard_limit: config.backlog_hard_limit,
            rows: Arc::default(),
            asked: Arc::default(),
        }
    }

    /// Measures until `stopping`.
    pub(crate) async fn run(self, stopping: CancellationToken) -> anyhow::Result<()> {
        let measuring = async {
            loop {
                self.measure().await;
                sleep(INTERVAL).await;
                // Running out of time is the other way of going on.
                let _ = timeout(IDLE_INTERVAL, self.asked.notified()).await;
            }
        };
        stopping.run_until_cancelled(measuring).await;
        Ok(())
    }

    /// Measures once. If that fails, what was measured before stands: puts fail by themselves
    /// while Postgres is away.
    pub(crate) async fn measure(&self) {
        match timeout(TIMEOUT, backlog::estimate(&self.db, SinkName::Qdrant)).await {
            Ok(Ok(rows)) => self.rows.store(rows, Ordering::Relaxed),
            Ok(Err(error)) => tracing::debug!(%error, "backlog not measured"),
            Err(_) => tracing::debug!("backlog not measured in time"),
        }
    }

    /// Returns the rows as they were measured last.
    pub(crate) fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    pub(crate) const fn hard_limit(&self) -> u64 {
        self.hard_limit
    }

    /// Returns the rows, and how long a producer should wait before its next put, if at all.
    pub(crate) fn hint(&self) -> (u64, Option<Duration>) {
        self.asked.notify_one();
        let rows = self.rows.load(Ordering::Relaxed);
        let beyond = self.soft_limit > 0 && rows > self.soft_limit;
        (rows, beyond.then(|| slow_down(rows, self.soft_limit)))
    }

    /// Refuses a put while the backlog is beyond the hard limit.
    pub(crate) fn admit(&self) -> Result<(), Status> {
        self.asked.notify_one();
        let rows = self.rows.load(Ordering::Relaxed);
        if self.hard_limit == 0 || rows <= self.hard_limit {
            return Ok(());
        }
        let wait = slow_down(rows, self.hard_limit);
        let limit = self.hard_limit;
        let description = format!(
            "the index is behind by {rows} changes, over the limit of {limit} (ingestion.backlog_hard_limit): nothing was written, try again in {} ms",
            wait.as_millis()
        );
        Err(status::resource_exhausted("BACKLOG", description, Some(wait)))
    }
}

/// A second for each time that the backlog exceeds the limit by as much again.
#[expect(clippy::cast_precision_loss, reason = "a suggestion")]
fn slow_down(rows: u64, limit: u64) -> Duration {
    let excess = rows.saturating_sub(limit) as f64 / limit.max(1) as f64;
    Duration::from_secs_f64(excess.min(SLOW_DOWN_MAX.as_secs_f64())).clamp(SLOW_DOWN_MIN, SLOW_DOWN_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_further_behind_waits_longer_within_bounds() {
        assert_eq!(slow_down(1_001, 1_000), SLOW_DOWN_MIN);
        assert_eq!(slow_down(3_000, 1_000), Duration::from_secs(2));
        assert_eq!(slow_down(u64::MAX, 1), SLOW_DOWN_MAX);
    }
}
