//! Taking, keeping and giving up lanes.

use std::time::Duration;

use tokio::time::Instant;
use waybill_storage::{
    lease::{self, LaneLease},
    settle::{self, Settlement},
};

use super::{Beat, Engine};
use crate::core::fair_share;

impl Engine {
    pub(super) fn start_heartbeat(&mut self) {
        let leaves: Vec<LaneLease> = self
            .holdings
            .leases()
            .into_iter()
            .filter(|lease| self.leaving.contains(&lease.lane) && !self.log.is_lane_busy(lease.lane))
            .collect();
        for lease in &leaves {
            self.leaving.remove(&lease.lane);
            self.holdings.remove(lease.lane);
        }
        let held = self.holdings.leases();
        // A lane whose deliveries from before are still under way is not taken again yet.
        let any_busy = self.log.in_flight() > 0;
        let (db, sink, owner) = (self.db.clone(), self.sink.name(), self.owner);
        let (term, timeout) = (self.config.term(), self.config.statement_timeout());
        self.next_heartbeat = Instant::now() + term / 3;
        // Nothing begins while it is paused, so this is true until the pause ends.
        let still_for = self.still();
        self.still_for = still_for;
        self.beating = Some(Box::pin(async move {
            if !leaves.is_empty() {
                lease::release(&db, sink, owner, &leaves, timeout).await?;
            }
            // Counted from before the request: the lease can't have begun later.
            let asked = Instant::now();
            let beat = lease::heartbeat(&db, sink, owner, &held, still_for, term, timeout).await?;
            let room =
                fair_share(beat.members, beat.rank).saturating_sub(u32::try_from(beat.held.len()).unwrap_or(u32::MAX));
            let taken = if room > 0 && beat.free > 0 && !(any_busy && held.is_empty()) {
                lease::take(&db, sink, owner, &beat.held, room, term, timeout).await?
            } else {
                Vec::new()
            };
            Ok((beat, taken, asked))
        }));
    }

    pub(super) fn on_heartbeat(&mut self, beat: Beat) {
        let sink = self.sink.name();
        let (beat, taken, asked) = match beat {
            Ok(beat) => beat,
            Err(error) => {
                tracing::warn!(%sink, %error, "heartbeat failed, tried again");
                self.stats.error(format!("heartbeat: {error}"));
                self.next_heartbeat = self.next_heartbeat.min(Instant::now() + Duration::from_millis(500));
                // Whether it was written down is not known; it is written again.
                return;
            }
        };
        for lease in self.holdings.leases() {
            if !beat.held.contains(&lease) && !taken.iter().any(|lane| lane.lease.lane == lease.lane) {
                tracing::warn!(%sink, lane = %lease.lane, "lane lost to another relay");
                self.holdings.remove(lease.lane);
                self.leaving.remove(&lease.lane);
                self.log.drop_lane(lease.lane);
                self.meter.lanes_lost(1);
            }
        }
        self.holdings.renew_until(asked + self.config.usable());
        if !taken.is_empty() {
            for lane in &taken {
                self.holdings.insert(lane.lease);
                self.leaving.remove(&lane.lease.lane);
            }
            tracing::info!(%sink, lanes = taken.len(), held = self.holdings.len(), members = beat.members, "lanes taken");
            self.log.take_lanes(&taken);
            self.next_poll = Instant::now();
            self.next_parking = Instant::now();
            self.knows_parked = false;
        }
        let share = fair_share(beat.members, beat.rank);
        self.stats.share(share);
        let excess = u32::try_from(beat.held.len()).unwrap_or(u32::MAX).saturating_sub(share);
        let excess = excess.saturating_sub(u32::try_from(self.leaving.len()).unwrap_or(u32::MAX));
        let mut give: Vec<LaneLease> = self.log.leases().collect();
        give.sort_unstable_by(|a, b| b.cmp(a));
        for lease in give.into_iter().take(excess as usize) {
            self.leaving.insert(lease.lane);
            self.log.drop_lane(lease.lane);
        }
        let mut next = self.config.term() / 3;
        if let Some(expiry) = beat.next_expiry {
            // Far off while its holder lives. A dead one's lanes are taken as soon as they can be.
            next = next.min(expiry + Duration::from_millis(20));
        }
        if share > self.holdings.len() {
            // Somebody holds more than a fair share and is about to give it up.
            next = next.min((self.config.term() / 10).max(Duration::from_millis(100)));
        }
        if !self.leaving.is_empty() {
            tracing::info!(%sink, lanes = self.leaving.len(), members = beat.members, "giving up lanes to another relay");
            next = next.min(Duration::from_millis(100));
        }
        self.next_heartbeat = self.next_heartbeat.min(Instant::now() + next);
    }

    /// Drops every lane without giving it back: another relay may take it when its lease ends,
    /// and this one, under a new epoch, as soon as its deliveries have ended.
    pub(super) fn lose_everything(&mut self, reason: &str) {
        let lanes = self.holdings.leases();
        if !lanes.is_empty() {
            tracing::warn!(sink = %self.sink.name(), lanes = lanes.len(), reason, "lanes dropped, to be taken anew");
            self.meter.lanes_lost(lanes.len());
        }
        for lease in lanes {
            self.holdings.remove(lease.lane);
            self.log.drop_lane(lease.lane);
        }
        self.leaving.clear();
        self.last_seq = 0;
        self.next_heartbeat = self.next_heartbeat.min(Instant::now() + Duration::from_millis(200));
    }

    pub(super) async fn say_goodbye(&mut self) {
        let (sink, timeout) = (self.sink.name(), self.config.statement_timeout());
        let cursors = self.log.cursor_moves();
        let leases = self.holdings.leases();
        let goodbye = async {
            if !cursors.is_empty() {
                settle::settle(&self.db, sink, self.owner, &Settlement { cursors, ..Settlement::default() }, timeout)
                    .await?;
            }
            lease::release(&self.db, sink, self.owner, &leases, timeout).await?;
            lease::leave(&self.db, sink, self.owner, timeout).await
        };
        if let Err(error) = goodbye.await {
            tracing::warn!(%sink, %error, "lanes not given back, they are free when their leases end");
        }
    }
}
