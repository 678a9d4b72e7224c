//! Writing down what became of deliveries.

use std::{collections::HashSet, time::Duration};

use tokio::time::Instant;
use waybill_domain::{Clock, Lane, SystemClock};
use waybill_storage::{
    StorageError,
    lease::LaneLease,
    settle::{self, Settlement},
};

use super::Engine;
use crate::delivery::{ToSettle, Verdict};

/// Confirmed keys settled in one transaction, so that it stays short.
const SETTLE_KEYS_MAX: usize = 4_096;

impl Engine {
    pub(super) fn start_settle(&mut self, now: Instant, stopping: bool) {
        if self.settling.is_some() || now < self.settle_resumes {
            return;
        }
        let write_cursors = now >= self.next_cursor_write || stopping;
        let cursors = if write_cursors { self.log.cursor_moves() } else { Vec::new() };
        if write_cursors {
            self.next_cursor_write = now + Duration::from_millis(self.config.cursor_write_ms);
        }
        if self.to_settle.is_empty() && (cursors.is_empty() || stopping) {
            return;
        }
        let mut keys = 0;
        let count = self
            .to_settle
            .iter()
            .take_while(|part| {
                keys += part.keys.len();
                keys <= SETTLE_KEYS_MAX
            })
            .count()
            .max(1);
        let parts: Vec<_> = self.to_settle.drain(..count.min(self.to_settle.len())).collect();
        // What was delivered under an older lease may have been overtaken since by another relay.
        let held: HashSet<LaneLease> = self.holdings.leases().into_iter().collect();
        let mut leases = HashSet::new();
        let (mut confirmed, mut refused) = (Vec::new(), Vec::new());
        for part in &parts {
            let valid: HashSet<Lane> =
                part.leases.iter().filter(|lease| held.contains(lease)).map(|lease| lease.lane).collect();
            leases.extend(part.leases.iter().filter(|lease| held.contains(lease)));
            match &part.verdict {
                Verdict::Confirmed(keys) => {
                    confirmed.extend(keys.iter().filter(|c| valid.contains(&Lane::of(c.key))).cloned());
                }
                Verdict::Refused(key, _) => refused.extend(valid.contains(&Lane::of(key.key)).then(|| key.clone())),
            }
        }
        let settlement = Settlement { leases: leases.into_iter().collect(), confirmed, refused, cursors };
        let (db, sink, owner, timeout) =
            (self.db.clone(), self.sink.name(), self.owner, self.config.statement_timeout());
        self.settling = Some(Box::pin(async move {
            let result = settle::settle(&db, sink, owner, &settlement, timeout).await;
            (parts, settlement, result)
        }));
    }

    pub(super) fn on_settled(
        &mut self,
        parts: Vec<ToSettle>,
        settlement: &Settlement,
        result: Result<HashSet<Lane>, StorageError>,
    ) {
        match result {
            Ok(held) => {
                self.settle_failures = 0;
                for part in &parts {
                    match &part.verdict {
                        Verdict::Confirmed(_) => {
                            let now = SystemClock.now();
                            for began in self.log.settled(part.ticket, &part.keys, &held) {
                                self.meter.confirmed_after((now - began).to_std().unwrap_or_default());
                            }
                            self.stats.confirmed(part.keys.iter().filter(|key| held.contains(&key.lane())).count());
                        }
                        Verdict::Refused(_, again_at) => {
                            for &key in &part.keys {
                                self.log.refused(part.ticket, key, &held, *again_at);
                            }
                        }
                    }
                }
                self.log.cursors_written(&settlement.cursors);
                for lease in &settlement.leases {
                    if !held.contains(&lease.lane) {
                        tracing::warn!(sink = %self.sink.name(), lane = %lease.lane, "lane lost, what was delivered in it is not settled");
                        self.holdings.remove(lease.lane);
                        self.log.drop_lane(lease.lane);
                        self.meter.lanes_lost(1);
                    }
                }
            }
            Err(error) => {
                self.settle_failures = self.settle_failures.saturating_add(1);
                let wait = self.backoff().wait(self.settle_failures, &mut rand::rng());
                self.settle_resumes = Instant::now() + wait;
                tracing::warn!(sink = %self.sink.name(), %error, class = %error.class(), "settle failed, tried again");
                self.stats.error(format!("settle: {error}"));
                // The sink has confirmed these; only the record is missing.
                self.to_settle.splice(0..0, parts);
            }
        }
    }
}
