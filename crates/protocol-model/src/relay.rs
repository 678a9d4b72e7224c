//! What a relay remembers and concludes: `outbox::core`, and the engine's holdings.

use crate::{
    Mutation,
    state::{
        Database, Delivery, KeyLog, LaneLog, Mask, Phase, Reader, Relay, Segment, Settlement, Write, bit, range, small,
    },
};

impl LaneLog {
    fn closed(&self, mutation: Mutation) -> u8 {
        if self.unsettled == 0 || mutation == Mutation::ClosedIgnoresUnsettled {
            return self.verified;
        }
        self.verified.min(small(self.unsettled.trailing_zeros() as usize))
    }
}

impl Relay {
    pub(crate) fn new(lanes: usize, keys: usize) -> Self {
        Self {
            usable: 0,
            held: vec![0; lanes],
            lanes: vec![None; lanes],
            reader: Reader::default(),
            keys: vec![KeyLog::default(); keys],
            settling: None,
        }
    }

    pub(crate) fn holds_any(&self) -> bool {
        self.held.iter().any(|&epoch| epoch != 0)
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.keys.iter().any(|key| key.delivery.is_some())
    }

    pub(crate) fn is_lane_busy(&self, lane: usize, key_lanes: &[usize]) -> bool {
        self.keys.iter().zip(key_lanes).any(|(key, &of)| of == lane && key.delivery.is_some())
    }

    /// Says whether a delivery that began in this epoch may still be sent.
    pub(crate) fn permits(&self, lane: usize, epoch: u8) -> bool {
        self.usable > 0 && self.held[lane] == epoch
    }

    /// Begins with a lane where its last owner left it. Its keys must have been dropped.
    pub(crate) fn take_lane(&mut self, lane: usize, epoch: u8, closed: u8) {
        self.held[lane] = epoch;
        self.lanes[lane] = Some(LaneLog { epoch, verified: closed, seen: 0, unsettled: 0, written: closed });
        let lowest = self.lanes.iter().flatten().map(|lane| lane.verified).min().unwrap_or(0);
        self.reader = Reader { verified: lowest, scanned: lowest, ..Reader::default() };
    }

    /// Forgets what is known of a lane. Deliveries under way settle nothing, and until they
    /// end their keys are not delivered again.
    pub(crate) fn drop_log(&mut self, lane: usize, key_lanes: &[usize], mutation: Mutation) {
        self.lanes[lane] = None;
        for (key, _) in self.keys.iter_mut().zip(key_lanes).filter(|(_, of)| **of == lane) {
            key.waiting = 0;
            key.early = None;
            if mutation == Mutation::ForgetDeliveriesOfLostLanes {
                key.delivery = None;
            }
            if let Some(delivery) = &mut key.delivery {
                delivery.covers = 0;
            }
        }
        if self.lanes.iter().all(Option::is_none) {
            self.reader = Reader::default();
        }
    }

    /// Loses a lane: the lease is not relied on any more.
    pub(crate) fn lose_lane(&mut self, lane: usize, key_lanes: &[usize], mutation: Mutation) {
        self.held[lane] = 0;
        self.drop_log(lane, key_lanes, mutation);
        if !self.holds_any() {
            self.usable = 0;
        }
    }

    /// Takes the rows that a read of (`after`, `upto`] has found.
    fn absorb(&mut self, db: &Database, after: u8, upto: u8, key_lanes: &[usize], mutation: Mutation) {
        for (seq, key) in db.outbox().filter(|(seq, _)| (after + 1..=upto).contains(seq)) {
            let Some(lane) = &mut self.lanes[key_lanes[key]] else { continue };
            if seq <= lane.verified || lane.seen & bit(seq) != 0 {
                continue;
            }
            lane.seen |= bit(seq);
            lane.unsettled |= bit(seq);
            self.keys[key].waiting |= bit(seq);
            if mutation == Mutation::StateReadBeforeDelivery {
                self.keys[key].early.get_or_insert(db.rows[key]);
            }
        }
    }

    fn verify(&mut self) {
        let reader = &mut self.reader;
        while let Some(first) = reader.segments.first()
            && first.running == 0
            && !first.due
        {
            reader.verified = first.upto;
            reader.segments.remove(0);
        }
        reader.join();
        for lane in self.lanes.iter_mut().flatten() {
            if lane.verified < reader.verified {
                lane.verified = reader.verified;
                lane.seen &= !range(0, reader.verified);
            }
        }
    }

    /// Reads a pass to its end.
    pub(crate) fn read_pass(&mut self, db: &Database, key_lanes: &[usize], mutation: Mutation) -> Option<()> {
        let (upto, running) = self.reader.pass.take()?;
        self.absorb(db, self.reader.scanned, upto, key_lanes, mutation);
        self.reader.segments.push(Segment { upto, running, due: false });
        self.reader.scanned = upto;
        self.verify();
        Some(())
    }

    /// Reads the first segment that is due once more.
    pub(crate) fn recheck(&mut self, db: &Database, key_lanes: &[usize], mutation: Mutation) -> Option<()> {
        let due = self.reader.segments.iter().position(|segment| segment.due)?;
        let (after, upto) = (self.reader.start_of(due), self.reader.segments[due].upto);
        self.absorb(db, after, upto, key_lanes, mutation);
        self.reader.segments[due].due = false;
        self.verify();
        Some(())
    }

    /// Takes note of which transactions have ended.
    pub(crate) fn observe(&mut self, ended: Mask, mutation: Mutation) -> Option<()> {
        self.reader.observe(ended, mutation)?;
        if mutation == Mutation::SegmentReadOnce {
            self.verify();
        }
        Some(())
    }

    /// Takes a key for a delivery and reads its row.
    pub(crate) fn begin_delivery(&mut self, key: usize, lane: usize, db: &Database, mutation: Mutation) -> Option<()> {
        let epoch = self.lanes[lane].as_ref()?.epoch;
        let log = &mut self.keys[key];
        if log.waiting == 0 || log.delivery.is_some() {
            return None;
        }
        let covers = std::mem::take(&mut log.waiting);
        let early = log.early.take();
        let version = match (mutation, early) {
            (Mutation::StateReadBeforeDelivery, Some(early)) => early,
            _ => db.rows[key],
        };
        let bound = match mutation {
            Mutation::BoundOfCoveredRows | Mutation::Tombstones => db.highest_version(covers),
            _ => db.last_version(),
        };
        let phase = if version == 0 { Phase::Absent(bound) } else { Phase::Loaded(Write::Upsert(version)) };
        log.delivery = Some(Delivery { epoch, covers, phase });
        Some(())
    }

    /// Reads the row once more, after the bound.
    pub(crate) fn reload(&mut self, key: usize, db: &Database, mutation: Mutation) -> Option<()> {
        let delivery = self.keys[key].delivery.as_mut()?;
        let Phase::Absent(bound) = delivery.phase else { return None };
        let write = match (mutation, db.rows[key]) {
            (Mutation::BoundReadAfterRows, _) => Write::Delete(db.last_version()),
            (_, 0) | (Mutation::StateReadBeforeDelivery, _) => Write::Delete(bound),
            (_, version) => Write::Upsert(version),
        };
        delivery.phase = Phase::Loaded(write);
        Some(())
    }

    /// Ends a delivery that confirmed nothing: its rows wait again.
    pub(crate) fn hand_back(&mut self, key: usize) {
        if let Some(delivery) = self.keys[key].delivery.take() {
            self.keys[key].waiting |= delivery.covers;
        }
    }

    /// Says whether there is anything to settle.
    pub(crate) fn has_to_settle(&self, mutation: Mutation) -> bool {
        let is_confirmed = |delivery: &Delivery| matches!(delivery.phase, Phase::Confirmed(_));
        self.keys.iter().filter_map(|key| key.delivery.as_ref()).any(is_confirmed)
            || self.lanes.iter().flatten().any(|lane| lane.closed(mutation) > lane.written)
    }

    /// Puts a settle together out of everything that was confirmed.
    pub(crate) fn begin_settle(&mut self, key_lanes: &[usize], mutation: Mutation) {
        let cursors: Vec<_> = (0..self.lanes.len())
            .filter_map(|lane| Some((lane, self.lanes[lane].as_ref()?)))
            .filter(|(_, log)| log.closed(mutation) > log.written)
            .map(|(lane, log)| (small(lane), log.epoch, log.closed(mutation)))
            .collect();
        let mut parts = Vec::new();
        for (key, log) in self.keys.iter_mut().enumerate() {
            let Some(delivery) = &mut log.delivery else { continue };
            let Phase::Confirmed(write) = delivery.phase else { continue };
            delivery.phase = Phase::Settling(write);
            if mutation == Mutation::SettleRowsReadMeanwhile && delivery.covers != 0 {
                delivery.covers |= std::mem::take(&mut log.waiting);
            }
            // What was delivered under an older lease may have been overtaken since.
            if self.held[key_lanes[key]] == delivery.epoch {
                parts.push((small(key), delivery.epoch, delivery.covers, write));
            }
        }
        self.settling = Some(Settlement { parts, cursors });
    }

    /// Takes the answer to a settle: in which lanes it was done.
    pub(crate) fn settled(&mut self, settlement: &Settlement, held: &[bool], key_lanes: &[usize], mutation: Mutation) {
        for (key, &lane) in key_lanes.iter().enumerate() {
            let Some(delivery) = &self.keys[key].delivery else { continue };
            if !matches!(delivery.phase, Phase::Settling(_)) {
                continue;
            }
            let covers = delivery.covers;
            self.keys[key].delivery = None;
            if covers == 0 {
                continue;
            }
            if !held[lane] {
                self.lose_lane(lane, key_lanes, mutation);
            } else if let Some(log) = &mut self.lanes[lane] {
                log.unsettled &= !covers;
            }
        }
        for &(lane, epoch, closed) in &settlement.cursors {
            if let Some(log) = &mut self.lanes[usize::from(lane)]
                && log.epoch == epoch
            {
                log.written = log.written.max(closed);
            }
        }
        for &(key, epoch, ..) in &settlement.parts {
            let lane = key_lanes[usize::from(key)];
            if !held[lane] && self.held[lane] == epoch {
                self.lose_lane(lane, key_lanes, mutation);
            }
        }
    }

    /// Has no answer to a settle: it is done again.
    pub(crate) fn settle_failed(&mut self) {
        for delivery in self.keys.iter_mut().filter_map(|key| key.delivery.as_mut()) {
            if let Phase::Settling(write) = delivery.phase {
                delivery.phase = Phase::Confirmed(write);
            }
        }
    }
}

impl Reader {
    /// Returns where a segment begins.
    pub(crate) fn start_of(&self, segment: usize) -> u8 {
        if segment == 0 { self.verified } else { self.segments[segment - 1].upto }
    }

    fn observe(&mut self, ended: Mask, mutation: Mutation) -> Option<()> {
        let mut any = None;
        for segment in self.segments.iter_mut().filter(|segment| segment.running & ended != 0) {
            segment.running &= !ended;
            segment.due = mutation != Mutation::SegmentReadOnce;
            any = Some(());
        }
        self.join();
        any
    }

    /// Joins neighbours that wait for the same writers.
    fn join(&mut self) {
        let segments = std::mem::take(&mut self.segments);
        for segment in segments {
            match self.segments.last_mut() {
                Some(last) if !last.due && !segment.due && last.running == segment.running => last.upto = segment.upto,
                _ => self.segments.push(segment),
            }
        }
    }
}
