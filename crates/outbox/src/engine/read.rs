//! Reading the log, and what waits beside it.

use std::time::Duration;

use tokio::time::Instant;
use waybill_storage::{
    StorageError,
    failures::{self, Parked},
    outbox::{OutboxReader, Tail},
};

use super::{Engine, PARKED_KEYS_MAX};
use crate::reading::{Answer, Step, read_step};

/// How often keys that wait for another try are looked up. Mostly they are known; not those
/// beyond [`PARKED_KEYS_MAX`].
const PARKING_INTERVAL: Duration = Duration::from_secs(30);
/// The pause after a look that failed.
const PARKING_PAUSE: Duration = Duration::from_secs(1);

impl Engine {
    pub(super) fn start_read(&mut self, now: Instant) {
        if self.reading.is_some() || self.log.leases().next().is_none() {
            return;
        }
        let step = if let Some(plan) = self.log.plan_read() {
            Step::Read(plan, i64::from(self.config.read_rows_max))
        } else if self.log.wants_pass(self.last_seq) {
            Step::Fence
        } else if now >= self.next_poll {
            self.next_poll = now + self.poll_interval;
            let max = Duration::from_millis(self.config.poll_max_ms);
            self.poll_interval = (self.poll_interval * 2).min(max);
            Step::Tail
        } else {
            return;
        };
        let reader = self.reader.take();
        self.reading =
            Some(Box::pin(read_step(self.db.clone(), self.sink.name(), reader, step, self.config.statement_timeout())));
    }

    pub(super) fn on_read(&mut self, reader: Option<OutboxReader>, answer: Result<Answer, StorageError>) {
        self.reader = reader;
        match answer {
            Ok(Answer::Tail(tail)) => {
                let shortest = Duration::from_millis(self.config.poll_min_ms);
                if tail.last_seq != self.last_seq {
                    self.poll_interval = shortest;
                } else if self.log.is_waiting_for_writers() {
                    // Their rows are found by looking, should nobody ring.
                    self.poll_interval = self.poll_interval.min(shortest * 4);
                }
                self.observe_tail(&tail);
            }
            Ok(Answer::Fence(fence)) => {
                self.observe_tail(&fence.tail);
                self.log.begin_pass(&fence);
            }
            Ok(Answer::Rows(plan, rows, read_upto)) => self.log.absorb(&plan, &rows, read_upto),
            Err(error) => {
                self.stats.error(format!("read the outbox: {error}"));
                self.lose_everything("the reader's connection broke");
            }
        }
    }

    fn observe_tail(&mut self, tail: &Tail) {
        self.last_seq = tail.last_seq;
        self.log.observe(&tail.snapshot);
        let sink = self.sink.name();
        if tail.paused_at != self.paused_at {
            self.paused_at = tail.paused_at;
            if let Some(since) = tail.paused_at {
                tracing::warn!(%sink, %since, "paused: nothing is delivered");
            } else {
                tracing::info!(%sink, "resumed");
            }
        }
        if tail.is_bulk != self.is_bulk {
            self.is_bulk = tail.is_bulk;
            self.batch_keys = self.batch_keys.min(self.batch_keys_max());
            tracing::info!(%sink, is_bulk = tail.is_bulk, batch_keys_max = self.batch_keys_max(), "bulk mode");
        }
    }

    /// Looks up the keys of the lanes held that failed before, under this relay or another.
    pub(super) fn start_parking(&mut self, now: Instant) {
        if self.parking.is_some() || now < self.next_parking {
            return;
        }
        let lanes: Vec<_> = self.log.leases().map(|lease| lease.lane).collect();
        if lanes.is_empty() {
            return;
        }
        self.next_parking = now + PARKING_INTERVAL;
        let (db, sink) = (self.db.clone(), self.sink.name());
        self.parking = Some(Box::pin(async move { failures::parked(&db, sink, &lanes, PARKED_KEYS_MAX as i64).await }));
    }

    pub(super) fn on_parked(&mut self, parked: Result<Vec<Parked>, StorageError>) {
        match parked {
            Ok(parked) => {
                self.knows_parked = self.next_parking > Instant::now();
                self.log.park(&parked, self.now());
            }
            Err(error) => {
                tracing::debug!(sink = %self.sink.name(), %error, "keys to be tried again not looked up");
                self.next_parking = Instant::now() + PARKING_PAUSE;
            }
        }
    }
}
