//! Beginning deliveries, and what becomes of them.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tracing::Instrument;
use waybill_domain::ErrorClass;
use waybill_storage::settle::Refused;

use super::Engine;
use crate::{
    DeliveryError, Permit,
    core::{Batch, Ticket},
    delivery::{Delivered, Outcome, ToSettle, Verdict, deliver, probe},
    meter::Ending,
};

/// The least time that is worth a request to a sink.
const REQUEST_TIME_LEAST: Duration = Duration::from_millis(200);
/// The smallest batch that slow deliveries shrink to.
const BATCH_KEYS_MIN: usize = 8;
/// The longest that a sink is left alone because it asked for it.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
/// An error is stored up to this length.
const ERROR_CHARS_MAX: usize = 2_000;

impl Engine {
    pub(super) fn start_deliveries(&mut self, now: Instant) {
        if self.probing.is_none() && self.breaker.probe_at(now).is_some_and(|at| now >= at) {
            let (sink, timeout) = (Arc::clone(&self.sink), self.config.probe_timeout());
            self.probing = Some(Box::pin(async move { probe(&*sink, timeout).await }));
        }
        if self.paused_at.is_some() || !self.knows_parked {
            return;
        }
        // Suspects have a slot of their own: however long they take, the others go on.
        if self.suspects.is_none()
            && self.breaker.allows(now, self.deliveries.len())
            && let Some(batch) = self.log.take_suspects(self.batch_keys)
        {
            self.suspects = Some(batch.ticket);
            self.begin(batch);
        }
        let others = |engine: &Self| engine.deliveries.len() - usize::from(engine.suspects.is_some());
        while others(self) < self.config.deliveries_max && self.breaker.allows(now, self.deliveries.len()) {
            let Some(batch) = self.log.take_batch(self.batch_keys) else {
                return;
            };
            self.begin(batch);
        }
    }

    fn begin(&mut self, batch: Batch) {
        let permit =
            Permit { leases: batch.leases.clone(), holdings: self.holdings.clone(), least: REQUEST_TIME_LEAST };
        let timeout = self.config.probe_timeout();
        self.meter.began(batch.keys.len());
        let span = self.sink.span(&batch.keys, &batch.origins);
        let work = deliver(Arc::clone(&self.sink), batch, permit, self.vitals.clone(), timeout);
        self.deliveries.spawn(work.instrument(span));
    }

    pub(super) fn on_probed(&mut self, answer: Result<(), DeliveryError>) {
        let sink = self.sink.name();
        match &answer {
            Ok(()) => tracing::info!(%sink, "the sink is back"),
            Err(error) => tracing::debug!(%sink, %error, "the sink is still down"),
        }
        self.breaker.probed(answer.is_ok(), Instant::now(), &mut rand::rng());
    }

    pub(super) fn on_delivered(&mut self, done: Delivered) {
        let Delivered { batch, outcome, began, span } = done;
        let _in_span = span.enter();
        let ticket = batch.ticket;
        if self.suspects == Some(ticket) {
            self.suspects = None;
        }
        match outcome {
            Outcome::Confirmed(confirmed) => {
                self.breaker.succeeded();
                self.meter.ended(Ending::Confirmed, "none");
                self.fit_batch(batch.keys.len(), began.elapsed());
                let Batch { leases, keys, .. } = batch;
                self.to_settle.push(ToSettle { ticket, leases, keys, verdict: Verdict::Confirmed(confirmed) });
            }
            Outcome::Undecided(error) => {
                self.log.handed_back(ticket, &batch.keys);
                self.meter.ended(Ending::Retried, error.class.as_str());
                if error.lane_lost {
                    tracing::debug!(sink = %self.sink.name(), %error, "delivery not sent");
                } else {
                    self.pause_sink(&error, began);
                }
            }
            Outcome::Refused(error) => {
                // The sink has just shown that it works.
                self.breaker.succeeded();
                self.stats.error(error.to_string());
                if batch.keys.len() > 1 {
                    tracing::debug!(sink = %self.sink.name(), keys = batch.keys.len(), %error, "batch refused, it is delivered in parts");
                    self.meter.ended(Ending::Retried, error.class.as_str());
                    self.log.suspect(ticket, &batch.keys);
                } else {
                    self.refuse(ticket, batch, &error);
                }
            }
        }
    }

    /// Writes down that a key was refused by itself.
    fn refuse(&mut self, ticket: Ticket, batch: Batch, error: &DeliveryError) {
        let Some(&key) = batch.keys.first() else {
            return;
        };
        let Some((project_id, failed_before, seq)) = self.log.describe(ticket, key) else {
            // The lane is gone; the next owner finds out for itself.
            self.log.handed_back(ticket, &batch.keys);
            return;
        };
        let attempts = failed_before.saturating_add(1);
        let gives_up = error.class == ErrorClass::Permanent || attempts >= self.config.attempts_max;
        let wait = self.key_backoff().wait(attempts, &mut rand::rng());
        let retry_in = (!gives_up).then_some(wait);
        self.meter.ended(if gives_up { Ending::Dead } else { Ending::Retried }, error.class.as_str());
        let (sink, id) = (self.sink.name(), key.id);
        if gives_up {
            tracing::warn!(%sink, kind = %key.kind, %id, attempts, class = %error.class, %error, "key given up, its lane goes on");
        } else {
            tracing::info!(%sink, kind = %key.kind, %id, attempts, class = %error.class, %error, ?wait, "key refused, tried again later");
        }
        let refused = Refused {
            kind: key.kind,
            key: key.id,
            project_id,
            seq,
            attempts,
            retry_in,
            error: error.message.chars().take(ERROR_CHARS_MAX).collect(),
            class: error.class,
        };
        let again_at = retry_in.map(|wait| self.now() + wait);
        let Batch { leases, keys, .. } = batch;
        self.to_settle.push(ToSettle { ticket, leases, keys, verdict: Verdict::Refused(refused, again_at) });
    }

    /// Leaves the sink alone for a while. No row is written and no key is blamed.
    fn pause_sink(&mut self, error: &DeliveryError, began: Instant) {
        let (now, mut rng) = (Instant::now(), rand::rng());
        if error.class == ErrorClass::Throttled {
            self.stats.throttled();
            self.breaker.throttled(error.retry_after, RETRY_AFTER_MAX, now, &mut rng);
        } else {
            self.breaker.failed(began, now, &mut rng);
            let failures = self.breaker.failures();
            if failures == 1 || failures.is_multiple_of(20) {
                tracing::warn!(sink = %self.sink.name(), class = %error.class, %error, failures, "delivery failed, the sink is tried again");
            }
        }
        self.stats.error(error.to_string());
    }

    /// Moves the batch size towards deliveries of the target length.
    fn fit_batch(&mut self, keys: usize, elapsed: Duration) {
        let target = Duration::from_millis(self.config.delivery_target_ms);
        if elapsed > target * 3 / 2 {
            self.batch_keys = (self.batch_keys / 2).max(BATCH_KEYS_MIN);
        } else if elapsed < target / 2 && keys == self.batch_keys {
            self.batch_keys *= 2;
        }
        self.batch_keys = self.batch_keys.min(self.batch_keys_max());
    }
}
