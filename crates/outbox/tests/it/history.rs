//! The pure core against a model of Postgres: every history of writers, readers, crashes and
//! lost leases has to deliver each key after its last commit, one delivery at a time.

mod postgres;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::Duration,
};

use chrono::DateTime;
use proptest::prelude::*;
use uuid::Uuid;
use waybill_domain::{Kind, Lane, ProjectId};
use waybill_outbox::{
    Key,
    core::{Batch, Limits, Log, Plan, PlanKind},
};
use waybill_storage::{
    failures::Parked,
    lease::{LaneLease, TakenLane},
    outbox::{Fence, OutboxRow, Tail},
};

use self::postgres::Postgres;

/// Keys of three lanes, two in each.
const KEYS: u8 = 6;
const LANES: u8 = 3;
const RELAYS: usize = 2;
/// Keys that wait for another try and are remembered: fewer than there can be.
const PARKED_KEYS_MAX: usize = 2;
/// How far clocks step.
const CLOCK_MAX_S: u64 = 7_200;

fn key(n: u8) -> Key {
    let mut bytes = [7; 16];
    bytes[0] = n;
    bytes[15] = n % LANES;
    Key { kind: Kind::Chunk, id: Uuid::from_bytes(bytes) }
}

/// Two projects, each with keys of every lane.
fn project(key: Key) -> ProjectId {
    ProjectId::from_uuid(Uuid::from_bytes([key.id.as_bytes()[0] / LANES; 16]))
}

/// One thing that happens. Numbers are taken modulo what there is.
#[derive(Debug, Clone)]
enum Step {
    /// A writer begins: it has an xid, and no row yet.
    Begin,
    /// A running writer changes a key: takes a position.
    Write { writer: usize, key: u8 },
    /// A running writer commits or aborts: then its positions stay empty.
    End { writer: usize, commit: bool },
    /// A relay looks at the end of the log, and takes a fence if there is news. Between the
    /// position and the xid of the fence, a writer may begin and write.
    Look { relay: usize, between: Option<u8> },
    /// A relay reads a page.
    Read { relay: usize, page: usize },
    /// A relay begins a delivery.
    Deliver { relay: usize, most: usize },
    /// A delivery reads the current rows.
    Load { relay: usize, nth: usize },
    /// A delivery that has loaded is confirmed and settled.
    Settle { relay: usize, nth: usize },
    /// A delivery fails, and nothing can be said of its keys.
    HandBack { relay: usize, nth: usize },
    /// A delivery is refused by a sink that works: in parts, or, if it is one key, for now or
    /// for good.
    Refuse { relay: usize, nth: usize, for_good: bool },
    /// A relay looks up what waits for another try.
    LookUp { relay: usize },
    /// A relay's clock steps to a time, forwards or back, and what waits is looked at.
    Clock { relay: usize, to: u64 },
    /// An operator has a key that was given up delivered again.
    Redrive { nth: usize },
    /// Cursors are written.
    WriteCursors { relay: usize },
    /// A lane moves to another relay, when what its holder has under way there has ended: that
    /// is what lease and grace are for.
    Move { lane: u8, relay: usize },
    /// A relay dies: its memory and its deliveries are gone.
    Crash { relay: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let relay = 0..RELAYS;
    prop_oneof![
        3 => Just(Step::Begin),
        6 => (0..8usize, 0..KEYS).prop_map(|(writer, key)| Step::Write { writer, key }),
        4 => (0..8usize, prop::bool::weighted(0.75)).prop_map(|(writer, commit)| Step::End { writer, commit }),
        6 => (relay.clone(), prop::option::of(0..KEYS)).prop_map(|(relay, between)| Step::Look { relay, between }),
        8 => (relay.clone(), 1..5usize).prop_map(|(relay, page)| Step::Read { relay, page }),
        4 => (relay.clone(), 1..4usize).prop_map(|(relay, most)| Step::Deliver { relay, most }),
        4 => (relay.clone(), 0..4usize).prop_map(|(relay, nth)| Step::Load { relay, nth }),
        4 => (relay.clone(), 0..4usize).prop_map(|(relay, nth)| Step::Settle { relay, nth }),
        1 => (relay.clone(), 0..4usize).prop_map(|(relay, nth)| Step::HandBack { relay, nth }),
        3 => (relay.clone(), 0..4usize, any::<bool>()).prop_map(|(relay, nth, for_good)| Step::Refuse { relay, nth, for_good }),
        1 => relay.clone().prop_map(|relay| Step::LookUp { relay }),
        2 => (relay.clone(), 0..CLOCK_MAX_S).prop_map(|(relay, to)| Step::Clock { relay, to }),
        1 => (0..4usize).prop_map(|nth| Step::Redrive { nth }),
        2 => relay.clone().prop_map(|relay| Step::WriteCursors { relay }),
        1 => (0..LANES, relay.clone()).prop_map(|(lane, relay)| Step::Move { lane, relay }),
        1 => relay.prop_map(|relay| Step::Crash { relay }),
    ]
}

#[derive(Debug)]
struct Delivery {
    batch: Batch,
    /// The versions loaded, with the moment of loading.
    loaded: Option<(Vec<u64>, u64)>,
}

#[derive(Debug)]
struct Relay {
    log: Log,
    plan: Option<Plan>,
    deliveries: Vec<Delivery>,
    /// The time that it is told.
    now: Duration,
    /// It has looked up what waits for another try since it took a lane: before, it delivers nothing.
    knows_parked: bool,
}

impl Relay {
    fn new() -> Self {
        let log = Log::new(Limits { outstanding_rows: 64, parked_keys: PARKED_KEYS_MAX });
        Self { log, plan: None, deliveries: Vec::new(), now: Duration::ZERO, knows_parked: false }
    }
}

struct World {
    pg: Postgres,
    relays: Vec<Relay>,
    /// What the sink shows.
    shown: HashMap<Key, u64>,
    /// Per row: settled by a delivery that loaded after the row's commit.
    settled: HashSet<i64>,
    /// More keys waited for another try than a relay remembers: of some it may know too little.
    has_overflown: bool,
}

impl World {
    fn new() -> Self {
        let mut pg = Postgres { next_xid: 10, last_ended: 9, ..Postgres::default() };
        pg.cursors = (0..LANES).filter_map(Lane::new).map(|lane| (lane, (0, 0, None))).collect();
        let mut world = Self {
            pg,
            relays: (0..RELAYS).map(|_| Relay::new()).collect(),
            shown: HashMap::new(),
            settled: HashSet::new(),
            has_overflown: false,
        };
        world.take((0..LANES).filter_map(Lane::new).collect(), 0);
        world
    }

    fn take(&mut self, lanes: BTreeSet<Lane>, relay: usize) {
        let mut taken = Vec::new();
        for lane in lanes {
            let cursor = self.pg.cursors.get_mut(&lane).expect("lane");
            cursor.1 += 1;
            cursor.2 = Some(relay);
            taken.push(TakenLane { lease: LaneLease { lane, epoch: cursor.1 }, closed_seq: cursor.0 });
        }
        self.relays[relay].log.take_lanes(&taken);
        self.relays[relay].knows_parked = false;
    }

    fn look(&mut self, relay: usize, between: Option<u8>) {
        let tail = self.pg.tail();
        let log = &mut self.relays[relay].log;
        log.observe(&tail.snapshot);
        if !log.wants_pass(tail.last_seq) {
            return;
        }
        // The fence: first the position ...
        let last_seq = self.pg.last_seq;
        if let Some(n) = between {
            let xid = self.pg.begin();
            self.pg.write(xid, key(n));
        }
        // ... then an xid of the reader's own, which ends with its statement.
        let xid = self.pg.next_xid;
        self.pg.next_xid += 1;
        let snapshot = self.pg.tail().snapshot;
        self.pg.last_ended = self.pg.last_ended.max(xid);
        self.relays[relay]
            .log
            .begin_pass(&Fence { tail: Tail { last_seq, snapshot, paused_at: None, is_bulk: false }, xid });
    }

    fn read(&mut self, relay: usize, page: usize) -> bool {
        let state = &mut self.relays[relay];
        let Some(plan) = state.plan.take().or_else(|| state.log.plan_read()) else {
            return false;
        };
        let visible: Vec<OutboxRow> = self
            .pg
            .log
            .range(plan.after + 1..=plan.upto)
            .map(|(_, (row, _))| row)
            .filter(|row| plan.lanes.contains(&row.key.lane()))
            .map(|row| OutboxRow {
                seq: row.seq,
                lane: row.key.lane(),
                kind: row.key.kind,
                key: row.key.id,
                project_id: project(row.key),
                created_at: DateTime::UNIX_EPOCH,
                headers: None,
            })
            .collect();
        if matches!(plan.kind, PlanKind::Recheck { seen: Some(seen) } if seen == visible.len() as u64) {
            let upto = plan.upto;
            state.log.absorb(&plan, &[], upto);
            return true;
        }
        let rows = &visible[..visible.len().min(page)];
        let upto = if rows.len() == page { rows[page - 1].seq } else { plan.upto };
        state.log.absorb(&plan, rows, upto);
        true
    }

    fn deliver(&mut self, relay: usize, most: usize) -> bool {
        if !self.relays[relay].knows_parked {
            self.look_up(relay);
        }
        let log = &mut self.relays[relay].log;
        let Some(batch) = log.take_suspects(most).or_else(|| log.take_batch(most)) else {
            return false;
        };
        for other in self.relays.iter().flat_map(|relay| &relay.deliveries) {
            for key in &batch.keys {
                assert!(!other.batch.keys.contains(key), "two deliveries of {key:?} at once");
            }
        }
        self.relays[relay].deliveries.push(Delivery { batch, loaded: None });
        true
    }

    fn load(&mut self, relay: usize, nth: usize) {
        let (versions, moment) = (&self.pg.versions, self.pg.moment);
        let deliveries = &mut self.relays[relay].deliveries;
        let Some(nth) = nth.checked_rem(deliveries.len()) else {
            return;
        };
        let delivery = &mut deliveries[nth];
        if delivery.loaded.is_none() {
            let loaded = delivery.batch.keys.iter().map(|key| versions.get(key).copied().unwrap_or(0)).collect();
            delivery.loaded = Some((loaded, moment));
        }
    }

    fn settle(&mut self, relay: usize, nth: usize) {
        let deliveries = &mut self.relays[relay].deliveries;
        let Some(nth) = nth.checked_rem(deliveries.len()) else {
            return;
        };
        if deliveries[nth].loaded.is_none() {
            return;
        }
        let Delivery { batch, loaded } = deliveries.swap_remove(nth);
        let (versions, moment) = loaded.expect("loaded");
        let mut held = HashSet::new();
        for lease in &batch.leases {
            let (_, epoch, owner) = self.pg.cursors[&lease.lane];
            if owner == Some(relay) && epoch == lease.epoch {
                held.insert(lease.lane);
            }
        }
        for (key, version) in batch.keys.iter().zip(versions) {
            if held.contains(&key.lane()) {
                let shown = self.shown.entry(*key).or_default();
                assert!(*shown <= version, "{key:?} went back from {shown} to {version}");
                *shown = version;
                let covered = self.pg.log.values().filter(|(row, at)| row.key == *key && *at <= moment);
                self.settled.extend(covered.map(|(row, _)| row.seq));
                self.pg.retries.remove(key);
                self.pg.letters.remove(key);
            }
        }
        self.relays[relay].log.settled(batch.ticket, &batch.keys, &held);
    }

    fn hand_back(&mut self, relay: usize, nth: usize) {
        let state = &mut self.relays[relay];
        let Some(nth) = nth.checked_rem(state.deliveries.len()) else {
            return;
        };
        let Delivery { batch, .. } = state.deliveries.swap_remove(nth);
        state.log.handed_back(batch.ticket, &batch.keys);
    }

    fn refuse(&mut self, relay: usize, nth: usize, for_good: bool) {
        let state = &mut self.relays[relay];
        let Some(nth) = nth.checked_rem(state.deliveries.len()) else {
            return;
        };
        let Delivery { batch, .. } = state.deliveries.swap_remove(nth);
        let &[key] = batch.keys.as_slice() else {
            state.log.suspect(batch.ticket, &batch.keys);
            return;
        };
        let Some((_, failed_before, _)) = state.log.describe(batch.ticket, key) else {
            state.log.handed_back(batch.ticket, &batch.keys);
            return;
        };
        let mut held = HashSet::new();
        if let Some(lease) = batch.leases.first()
            && self.pg.cursors[&lease.lane].1 == lease.epoch
            && self.pg.cursors[&lease.lane].2 == Some(relay)
        {
            held.insert(lease.lane);
            if for_good {
                self.pg.retries.remove(&key);
                self.pg.letters.insert(key);
            } else {
                let attempts = self.pg.retries.entry(key).or_default();
                if !self.has_overflown {
                    assert_eq!(
                        failed_before, *attempts,
                        "what is known of the failures of {key:?}, and how many it had"
                    );
                }
                *attempts = (*attempts + 1).max(failed_before + 1);
            }
        }
        self.has_overflown |= self.pg.retries.len() > PARKED_KEYS_MAX;
        let again_at = (!for_good).then(|| state.now + Duration::from_secs(60));
        state.log.refused(batch.ticket, key, &held, again_at);
    }

    fn look_up(&mut self, relay: usize) {
        let parked: Vec<Parked> = self
            .pg
            .retries
            .iter()
            .map(|(key, &attempts)| Parked {
                kind: key.kind,
                key: key.id,
                project_id: project(*key),
                attempts,
                due_in: Duration::ZERO,
            })
            .collect();
        let now = self.relays[relay].now;
        self.relays[relay].log.park(&parked, now);
        self.relays[relay].knows_parked = true;
    }

    fn redrive(&mut self, nth: usize) {
        let Some(key) = nth.checked_rem(self.pg.letters.len()).and_then(|nth| self.pg.letters.iter().nth(nth)).copied()
        else {
            return;
        };
        self.pg.letters.remove(&key);
        // One transaction, which changes no row of the key.
        let xid = self.pg.begin();
        self.pg.write(xid, key);
        self.pg.end(xid, true);
    }

    fn write_cursors(&mut self, relay: usize) {
        let moves = self.relays[relay].log.cursor_moves();
        for cursor in &moves {
            let (closed, epoch, owner) = self.pg.cursors.get_mut(&cursor.lease.lane).expect("lane");
            if *owner == Some(relay) && *epoch == cursor.lease.epoch {
                *closed = (*closed).max(cursor.closed_seq);
            }
        }
        self.relays[relay].log.cursors_written(&moves);
        self.check_cursors();
    }

    /// Nothing at or below a cursor is unsettled, and nothing can still appear there.
    fn check_cursors(&self) {
        for (lane, (closed, ..)) in &self.pg.cursors {
            for (row, _) in self.pg.log.values().filter(|(row, _)| row.key.lane() == *lane && row.seq <= *closed) {
                // Of a key that was given up and is to be delivered again, a later row says so.
                let later = self.pg.log.values().any(|(other, _)| other.key == row.key && other.seq > *closed);
                let is_written_down =
                    later || self.pg.retries.contains_key(&row.key) || self.pg.letters.contains(&row.key);
                assert!(
                    is_written_down || self.settled.contains(&row.seq),
                    "row {} is closed, was never settled, and its key is not to be tried again",
                    row.seq
                );
            }
            for row in self.pg.running.values().flatten().filter(|row| row.key.lane() == *lane) {
                assert!(row.seq > *closed, "row {} of running {} is closed", row.seq, row.xid);
            }
        }
    }

    fn drop_deliveries(&mut self, relay: usize, lane: Option<Lane>) {
        let relay = &mut self.relays[relay];
        let (gone, kept) = std::mem::take(&mut relay.deliveries)
            .into_iter()
            .partition(|delivery| lane.is_none_or(|lane| delivery.batch.keys.iter().any(|key| key.lane() == lane)));
        relay.deliveries = kept;
        let gone: Vec<Delivery> = gone;
        for Delivery { batch, .. } in gone {
            relay.log.handed_back(batch.ticket, &batch.keys);
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Begin => {
                self.pg.begin();
            }
            Step::Write { writer, key: n } => {
                if let Some(xid) = self.pg.nth_writer(writer) {
                    self.pg.write(xid, key(n));
                }
            }
            Step::End { writer, commit } => {
                if let Some(xid) = self.pg.nth_writer(writer) {
                    self.pg.end(xid, commit);
                }
            }
            Step::Look { relay, between } => self.look(relay, between),
            Step::Read { relay, page } => {
                self.read(relay, page);
            }
            Step::Deliver { relay, most } => {
                self.deliver(relay, most);
            }
            Step::Load { relay, nth } => self.load(relay, nth),
            Step::Settle { relay, nth } => self.settle(relay, nth),
            Step::HandBack { relay, nth } => self.hand_back(relay, nth),
            Step::Refuse { relay, nth, for_good } => self.refuse(relay, nth, for_good),
            Step::LookUp { relay } => self.look_up(relay),
            Step::Clock { relay, to } => {
                let now = Duration::from_secs(to);
                self.relays[relay].now = now;
                self.relays[relay].log.wake_delayed(now);
            }
            Step::Redrive { nth } => self.redrive(nth),
            Step::WriteCursors { relay } => self.write_cursors(relay),
            Step::Move { lane, relay } => {
                let lane = Lane::new(lane).expect("lane");
                if let Some(owner) = self.pg.cursors[&lane].2.filter(|&owner| owner != relay) {
                    // The old owner may have noticed already, or notice only when it settles.
                    self.drop_deliveries(owner, Some(lane));
                    self.relays[owner].log.drop_lane(lane);
                    self.take(BTreeSet::from([lane]), relay);
                }
            }
            Step::Crash { relay } => {
                self.relays[relay] = Relay::new();
                let lanes: BTreeSet<Lane> = self
                    .pg
                    .cursors
                    .iter()
                    .filter(|(_, cursor)| cursor.2 == Some(relay))
                    .map(|(&lane, _)| lane)
                    .collect();
                if !lanes.is_empty() {
                    self.take(lanes, 1 - relay);
                }
            }
        }
    }

    /// Ends every writer but `held`, then lets the relays work until nothing is left.
    fn finish(&mut self, held: Option<u64>) {
        let writers: Vec<u64> = self.pg.running.keys().copied().filter(|&xid| Some(xid) != held).collect();
        for (n, xid) in writers.into_iter().enumerate() {
            self.pg.end(xid, n % 3 != 0);
        }
        for _ in 0..10_000 {
            let mut moved = false;
            while !self.pg.letters.is_empty() {
                self.redrive(0);
            }
            for relay in 0..RELAYS {
                self.look_up(relay);
                // Far enough for whatever a step of the clock has put off.
                self.relays[relay].now += Duration::from_secs(CLOCK_MAX_S);
                let now = self.relays[relay].now;
                self.relays[relay].log.wake_delayed(now);
                self.look(relay, None);
                while self.read(relay, 3) {
                    moved = true;
                }
                while self.deliver(relay, 3) {
                    moved = true;
                }
                while !self.relays[relay].deliveries.is_empty() {
                    moved = true;
                    self.load(relay, 0);
                    self.settle(relay, 0);
                }
                self.write_cursors(relay);
            }
            if !moved {
                return;
            }
        }
        panic!("the relays never came to rest");
    }

    fn check_equal(&self) {
        assert!(self.pg.retries.is_empty(), "delivered, and still to be tried again: {:?}", self.pg.retries);
        for (key, version) in &self.pg.versions {
            assert_eq!(self.shown.get(key), Some(version), "{key:?} is not what was committed last");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_history_ends_equal(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        world.finish(None);
        world.check_equal();
        for (lane, (closed, ..)) in &world.pg.cursors {
            prop_assert!(*closed >= world.pg.last_seq, "lane {lane} is closed at {closed} of {}", world.pg.last_seq);
        }
    }

    /// A transaction that never ends keeps back its own rows and nothing else.
    #[test]
    fn an_open_transaction_delays_nobody(before in prop::collection::vec(step(), 0..40), after in prop::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        for step in &before {
            world.step(step);
        }
        let held = world.pg.begin();
        world.pg.write(held, key(0));
        for step in &after {
            // The writer that is held is not among those that steps end.
            let rows = world.pg.running.remove(&held).expect("held");
            let is_end = matches!(step, Step::End { .. } | Step::Write { .. });
            if is_end {
                world.step(step);
                world.pg.running.insert(held, rows);
            } else {
                world.pg.running.insert(held, rows);
                world.step(step);
            }
        }
        world.finish(Some(held));
        world.check_equal();
    }
}
