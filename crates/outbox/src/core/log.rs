use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use roaring::RoaringTreemap;
use waybill_domain::{Lane, ProjectId};
use waybill_storage::{
    failures::Parked,
    lease::{LaneLease, TakenLane},
    outbox::{Fence, OutboxRow, Snapshot},
    settle::CursorMove,
};

use super::{
    Key,
    quarantine::Quarantine,
    reader::{Plan, PlanKind, Reader},
    rows::{Rows, add_origin},
};

/// Transactions that are remembered of one delivery: as many links as its span has.
pub const ORIGINS_MAX: usize = 32;

/// How much of the log is held in memory.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Rows read and not settled, after which reading waits.
    pub outstanding_rows: usize,
    /// Keys remembered that wait for another try. Those beyond are looked up when they are due.
    pub parked_keys: usize,
}

/// Names one delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// Keys to be delivered together. Their current state must be read after this was made.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Hand it back with the outcome.
    pub ticket: Ticket,
    /// The keys, each once.
    pub keys: Vec<Key>,
    /// The lanes of the keys, as they are held now.
    pub leases: Vec<LaneLease>,
    /// The headers of the transactions that it carries on, each once, at most [`ORIGINS_MAX`].
    pub origins: Vec<Arc<str>>,
}

/// One sink's side of the protocol: the lanes that are held and what is known of their rows.
///
/// It upholds: a key is in one delivery at a time; a delivery covers only rows that were read
/// before it began; a lane is closed only up to where everything is settled and verified.
#[derive(Debug)]
pub struct Log {
    limits: Limits,
    lanes: BTreeMap<Lane, LaneLog>,
    reader: Reader,
    keys: HashMap<Key, KeyState>,
    /// Keys in a delivery that has not ended, also of lanes that were lost since.
    busy: HashMap<Key, Ticket>,
    ready: VecDeque<Key>,
    quarantine: Quarantine,
    delayed: BTreeSet<(Duration, Key)>,
    outstanding: usize,
    next_ticket: u64,
}

#[derive(Debug)]
struct LaneLog {
    epoch: i64,
    /// Nothing unread is at or below it.
    verified: i64,
    /// Rows read above `verified`.
    seen: RoaringTreemap,
    unsettled: BTreeSet<i64>,
    /// The cursor as it was last written.
    written: i64,
}

impl LaneLog {
    fn closed(&self) -> i64 {
        self.unsettled.first().map_or(self.verified, |first| self.verified.min(first - 1))
    }
}

#[derive(Debug)]
struct KeyState {
    project: ProjectId,
    /// Rows that the next delivery covers.
    waiting: Rows,
    /// Rows that the current delivery covers.
    flying: Option<(Ticket, Rows)>,
    attempts: u32,
    /// It waits to be tried again, with whatever rows come meanwhile.
    delayed_until: Option<Duration>,
    /// It is tried again, even without a row that asks for it.
    is_due: bool,
    queued: bool,
}

impl KeyState {
    fn new(project: ProjectId) -> Self {
        Self {
            project,
            waiting: Rows::default(),
            flying: None,
            attempts: 0,
            delayed_until: None,
            is_due: false,
            queued: false,
        }
    }
}

impl Log {
    /// Makes a log that holds no lane.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            lanes: BTreeMap::new(),
            reader: Reader::default(),
            keys: HashMap::new(),
            busy: HashMap::new(),
            ready: VecDeque::new(),
            quarantine: Quarantine::default(),
            delayed: BTreeSet::new(),
            outstanding: 0,
            next_ticket: 0,
        }
    }

    /// Begins with lanes that were just taken, where their last owner left them.
    pub fn take_lanes(&mut self, taken: &[TakenLane]) {
        for lane in taken {
            self.drop_lane(lane.lease.lane);
            self.lanes.insert(
                lane.lease.lane,
                LaneLog {
                    epoch: lane.lease.epoch,
                    verified: lane.closed_seq,
                    seen: RoaringTreemap::new(),
                    unsettled: BTreeSet::new(),
                    written: lane.closed_seq,
                },
            );
        }
        // Lanes held before are read again from the lowest point; what they have seen they skip.
        if let Some(lowest) = self.lanes.values().map(|lane| lane.verified).min() {
            self.reader.restart(lowest);
        }
    }

    /// Forgets a lane. Deliveries of its keys that are under way settle nothing, and until
    /// they end their keys are not delivered again.
    pub fn drop_lane(&mut self, lane: Lane) {
        if self.lanes.remove(&lane).is_none() {
            return;
        }
        let outstanding = &mut self.outstanding;
        let delayed = &mut self.delayed;
        self.keys.retain(|key, state| {
            if key.lane() != lane {
                return true;
            }
            *outstanding -= state.waiting.seqs.len() + state.flying.as_ref().map_or(0, |(_, rows)| rows.seqs.len());
            if let Some(until) = state.delayed_until {
                delayed.remove(&(until, *key));
            }
            false
        });
        self.ready.retain(|key| key.lane() != lane);
        self.quarantine.retain(|key| key.lane() != lane);
    }

    /// Lists the lanes that are held.
    pub fn leases(&self) -> impl Iterator<Item = LaneLease> {
        self.lanes.iter().map(|(&lane, log)| LaneLease { lane, epoch: log.epoch })
    }

    /// Says whether the log has rows that were never looked for, up to `last_seq`: take a
    /// fence and call [`Self::begin_pass`].
    #[must_use]
    pub fn wants_pass(&self, last_seq: i64) -> bool {
        !self.lanes.is_empty() && self.reader.wants_pass(last_seq)
    }

    /// Begins to read up to the fence.
    pub fn begin_pass(&mut self, fence: &Fence) {
        self.reader.begin_pass(fence);
    }

    /// Takes note of which transactions have ended: their rows are looked for.
    pub fn observe(&mut self, snapshot: &Snapshot) {
        self.reader.observe(snapshot);
    }

    /// Says whether there are writers that may still commit rows behind what was read.
    #[must_use]
    pub fn is_waiting_for_writers(&self) -> bool {
        self.reader.is_waiting()
    }

    /// Returns what to read now, unless there is nothing or enough is held in memory.
    pub fn plan_read(&mut self) -> Option<Plan> {
        if self.lanes.is_empty() || self.outstanding >= self.limits.outstanding_rows {
            return None;
        }
        let (after, upto, recheck) = self.reader.next()?;
        let kind = if recheck { PlanKind::Recheck { seen: self.seen_between(after, upto) } } else { PlanKind::Pass };
        Some(Plan {
            kind,
            after,
            upto,
            lanes: self.lanes.keys().copied().collect(),
            generation: self.reader.generation,
        })
    }

    fn seen_between(&self, after: i64, upto: i64) -> Option<u64> {
        let below = |seen: &RoaringTreemap, seq: i64| seen.rank(seq.unsigned_abs());
        self.lanes
            .values()
            .map(|lane| (lane.verified <= after).then(|| below(&lane.seen, upto) - below(&lane.seen, after)))
            .sum()
    }

    /// Takes the rows that a plan asked for: all there are in (`plan.after`, `read_upto`].
    pub fn absorb(&mut self, plan: &Plan, rows: &[OutboxRow], read_upto: i64) {
        if plan.generation != self.reader.generation {
            return;
        }
        for row in rows {
            let key = Key { kind: row.kind, id: row.key };
            let Some(lane) = self.lanes.get_mut(&key.lane()) else {
                continue;
            };
            if row.seq <= lane.verified || !lane.seen.insert(row.seq.unsigned_abs()) {
                continue;
            }
            lane.unsettled.insert(row.seq);
            self.outstanding += 1;
            self.keys.entry(key).or_insert_with(|| KeyState::new(row.project_id)).waiting.push(row);
            self.enqueue(key);
        }
        self.reader.done(plan.kind, plan.upto, read_upto);
        let verified = self.reader.verified();
        for lane in self.lanes.values_mut() {
            if lane.verified < verified {
                lane.verified = verified;
                lane.seen.remove_range(..=verified.unsigned_abs());
            }
        }
    }

    /// Lines a key up, if there is something to deliver and nothing that forbids it.
    fn enqueue(&mut self, key: Key) {
        let Some(state) = self.keys.get_mut(&key) else {
            return;
        };
        let is_wanted = state.is_due || !state.waiting.is_empty();
        if state.queued || !is_wanted || state.delayed_until.is_some() || self.busy.contains_key(&key) {
            return;
        }
        state.queued = true;
        if state.is_due || state.attempts > 0 {
            // It failed before: alone, it spoils no batch.
            self.quarantine.push_group(state.project, vec![key]);
        } else if self.quarantine.holds(state.project) {
            self.quarantine.push_fresh(state.project, key);
        } else {
            self.ready.push_back(key);
        }
    }

    /// Returns how many keys could be delivered now.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.ready.len() + self.quarantine.len()
    }

    /// Returns how many keys wait to be tried again.
    #[must_use]
    pub fn delayed(&self) -> usize {
        self.delayed.len()
    }

    /// Returns how many keys are in deliveries.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.busy.len()
    }

    /// Makes the delayed keys whose time has come ready, and returns when the next is due.
    pub fn wake_delayed(&mut self, now: Duration) -> Option<Duration> {
        while let Some(&(at, key)) = self.delayed.first() {
            if at > now {
                return Some(at);
            }
            self.delayed.pop_first();
            if let Some(state) = self.keys.get_mut(&key) {
                state.delayed_until = None;
                state.is_due = true;
                self.enqueue(key);
            }
        }
        None
    }

    /// Takes up to `most` keys for a delivery.
    pub fn take_batch(&mut self, most: usize) -> Option<Batch> {
        let count = most.min(self.ready.len());
        let keys = self.ready.drain(..count).collect();
        self.begin(keys)
    }

    /// Takes keys for a delivery of their own: some that failed together with others, or that
    /// belong to a project of such. At most `most`, unless they failed together.
    pub fn take_suspects(&mut self, most: usize) -> Option<Batch> {
        let keys = self.quarantine.pop(most)?;
        self.begin(keys)
    }

    fn begin(&mut self, keys: Vec<Key>) -> Option<Batch> {
        if keys.is_empty() {
            return None;
        }
        let ticket = Ticket(self.next_ticket);
        let mut lanes = BTreeSet::new();
        let mut origins = Vec::new();
        for key in &keys {
            if let Some(state) = self.keys.get_mut(key) {
                state.queued = false;
                state.is_due = false;
                let rows = std::mem::take(&mut state.waiting);
                for headers in &rows.origins {
                    add_origin(&mut origins, headers, ORIGINS_MAX);
                }
                state.flying = Some((ticket, rows));
            }
            self.busy.insert(*key, ticket);
            lanes.insert(key.lane());
        }
        self.next_ticket += 1;
        let leases = lanes.iter().filter_map(|lane| self.lease(*lane)).collect();
        Some(Batch { ticket, keys, leases, origins })
    }

    fn lease(&self, lane: Lane) -> Option<LaneLease> {
        self.lanes.get(&lane).map(|log| LaneLease { lane, epoch: log.epoch })
    }

    /// Ends the delivery of `keys`: they are settled, if their lane is in `held`. A lane that
    /// isn't has been lost. Returns, for each key that a row had asked for, when that began.
    pub fn settled(&mut self, ticket: Ticket, keys: &[Key], held: &HashSet<Lane>) -> Vec<DateTime<Utc>> {
        let mut began = Vec::with_capacity(keys.len());
        for &key in keys {
            if let Some(rows) = self.settle(ticket, key, held) {
                began.extend(rows.since);
                if let Some(state) = self.keys.get_mut(&key) {
                    state.attempts = 0;
                    self.forget_or_enqueue(key);
                }
            }
        }
        began
    }

    /// Settles the rows that a delivery covered, and returns them. `None` if there is nothing to be
    /// done about the key any more: its lane was lost.
    fn settle(&mut self, ticket: Ticket, key: Key, held: &HashSet<Lane>) -> Option<Rows> {
        let (_, rows) = self.land(ticket, key)?;
        let lane = key.lane();
        if !held.contains(&lane) {
            self.drop_lane(lane);
            return None;
        }
        self.outstanding -= rows.seqs.len();
        if let Some(log) = self.lanes.get_mut(&lane) {
            for seq in &rows.seqs {
                log.unsettled.remove(seq);
            }
        }
        Some(rows)
    }

    fn forget_or_enqueue(&mut self, key: Key) {
        let is_idle = |state: &KeyState| state.waiting.is_empty() && state.delayed_until.is_none();
        if self.keys.get(&key).is_some_and(is_idle) {
            self.keys.remove(&key);
        } else {
            self.enqueue(key);
        }
    }

    /// Describes a key in a delivery: its project, how often its delivery failed before, and
    /// the last row that asked for it. `None` if its lane was lost.
    #[must_use]
    pub fn describe(&self, ticket: Ticket, key: Key) -> Option<(ProjectId, u32, Option<i64>)> {
        let state = self.keys.get(&key)?;
        let (_, rows) = state.flying.as_ref().filter(|(flying, _)| *flying == ticket)?;
        Some((state.project, state.attempts, rows.seqs.iter().max().copied()))
    }

    /// Ends the delivery of a key that was refused, and of which that is written down: its rows
    /// are settled. `again_at` says when it is tried again; `None` if it was given up.
    pub fn refused(&mut self, ticket: Ticket, key: Key, held: &HashSet<Lane>, again_at: Option<Duration>) {
        if self.settle(ticket, key, held).is_none() {
            return;
        }
        let has_room = self.delayed.len() < self.limits.parked_keys;
        if let Some(state) = self.keys.get_mut(&key) {
            match again_at.filter(|_| has_room) {
                Some(at) => {
                    // What comes meanwhile waits with it.
                    state.attempts = state.attempts.saturating_add(1);
                    state.delayed_until = Some(at);
                    self.delayed.insert((at, key));
                }
                None => state.attempts = 0,
            }
            self.forget_or_enqueue(key);
        }
    }

    /// Takes note of keys that failed before, under this relay or another: each is due at its
    /// time, counted from `now`. What is known already is left as it is.
    pub fn park(&mut self, parked: &[Parked], now: Duration) {
        for row in parked {
            let key = Key { kind: row.kind, id: row.key };
            if !self.lanes.contains_key(&key.lane()) || self.delayed.len() >= self.limits.parked_keys {
                continue;
            }
            let state = self.keys.entry(key).or_insert_with(|| KeyState::new(row.project_id));
            if state.delayed_until.is_some() || state.is_due || state.flying.is_some() || state.queued {
                state.attempts = state.attempts.max(row.attempts);
                continue;
            }
            state.attempts = row.attempts;
            let at = now + row.due_in;
            state.delayed_until = Some(at);
            self.delayed.insert((at, key));
        }
    }

    /// Ends the delivery of `keys` that the sink refused while it took others: they are
    /// delivered by project, and those of one project in halves.
    pub fn suspect(&mut self, ticket: Ticket, keys: &[Key]) {
        let mut projects: BTreeMap<ProjectId, Vec<Key>> = BTreeMap::new();
        for &key in keys {
            let Some((_, rows)) = self.land(ticket, key) else {
                continue;
            };
            let Some(state) = self.keys.get_mut(&key) else {
                continue;
            };
            state.waiting.extend(rows);
            state.queued = true;
            projects.entry(state.project).or_default().push(key);
        }
        let is_one = projects.len() == 1;
        for (project, mut keys) in projects {
            if is_one && keys.len() > 1 {
                let rest = keys.split_off(keys.len() / 2);
                self.quarantine.push_group(project, keys);
                self.quarantine.push_group(project, rest);
            } else {
                self.quarantine.push_group(project, keys);
            }
        }
    }

    /// Ends the delivery of `keys` that never was tried: they are ready again at once.
    pub fn handed_back(&mut self, ticket: Ticket, keys: &[Key]) {
        for &key in keys {
            let Some((_, rows)) = self.land(ticket, key) else {
                continue;
            };
            let Some(state) = self.keys.get_mut(&key) else {
                continue;
            };
            state.waiting.extend(rows);
            // A key that failed before is asked for by no row.
            state.is_due |= state.attempts > 0;
            self.enqueue(key);
        }
    }

    /// Takes a key out of its delivery, and returns the rows it covered unless the lane was
    /// lost on the way.
    fn land(&mut self, ticket: Ticket, key: Key) -> Option<(Ticket, Rows)> {
        if self.busy.get(&key) == Some(&ticket) {
            self.busy.remove(&key);
        }
        let state = self.keys.get_mut(&key)?;
        if state.flying.as_ref().is_some_and(|(flying, _)| *flying == ticket) {
            return state.flying.take();
        }
        // The lane was lost and taken again: what was read since could not start till now.
        self.enqueue(key);
        None
    }

    /// Lists the cursors that have moved since they were written.
    #[must_use]
    pub fn cursor_moves(&self) -> Vec<CursorMove> {
        self.lanes
            .iter()
            .filter(|(_, log)| log.closed() > log.written)
            .map(|(&lane, log)| CursorMove { lease: LaneLease { lane, epoch: log.epoch }, closed_seq: log.closed() })
            .collect()
    }

    /// Takes note that cursors were written.
    pub fn cursors_written(&mut self, moves: &[CursorMove]) {
        for cursor in moves {
            if let Some(log) = self.lanes.get_mut(&cursor.lease.lane)
                && log.epoch == cursor.lease.epoch
            {
                log.written = log.written.max(cursor.closed_seq);
            }
        }
    }

    /// Says whether a key of the lane is in a delivery.
    #[must_use]
    pub fn is_lane_busy(&self, lane: Lane) -> bool {
        self.busy.keys().any(|key| key.lane() == lane)
    }
}
