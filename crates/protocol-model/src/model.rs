//! What can happen, and what comes of it.

use stateright::{Model, Property};

use crate::{
    Config, Mutation, properties,
    state::{DEAD, Op, Phase, Relay, Request, State, TxPhase, WIRE_SLACK, Write, number, small},
};

/// One step of somebody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// A writer takes its xid, the row's lock and a version.
    Begin(usize, u8, Op),
    /// Its trigger inserts the outbox row.
    Sequence(usize),
    /// It commits.
    Commit(usize),
    /// It rolls back.
    Abort(usize),
    /// All of it in one step.
    Write(usize, u8, Op),
    /// Time goes on.
    Tick,
    /// A relay renews its leases, and takes a lane if there is one to take.
    Beat(usize, Option<usize>),
    /// A relay's leases could not be renewed in time, or its reader's connection broke.
    LoseLanes(usize),
    /// A relay stops working on a lane, for another one to have it,
    Leave(usize, usize),
    /// and gives it back when nothing is under way in it.
    Release(usize, usize),
    /// A relay dies and starts anew.
    Crash(usize),
    /// A relay looks which writers have ended.
    Observe(usize),
    /// It reads where the log ends,
    FencePosition(usize),
    /// takes an xid, with the list of who is writing,
    FenceXid(usize),
    /// and reads up to there.
    ReadPass(usize),
    /// It reads a segment once more.
    Recheck(usize),
    /// It begins to deliver a key and reads its row,
    Deliver(usize, usize),
    /// once more, if there was none,
    Reload(usize, usize),
    /// and sends a request, if the permit allows it.
    Send(usize, usize),
    /// The permit doesn't.
    Refuse(usize, usize),
    /// The sink applies a request and its answer arrives, if anybody waits for it.
    Answer(Request),
    /// It applies it, and the answer is lost.
    LoseAnswer(Request),
    /// A request outlives its deadline.
    Delay(Request),
    /// A relay waits no longer for an answer.
    GiveUp(usize, usize),
    /// It begins to settle what was confirmed.
    BeginSettle(usize),
    /// Postgres does so.
    Settle(usize),
    /// It does so, and the answer is lost.
    LoseSettleAnswer(usize),
}

impl Model for Config {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::start(self)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.writer_actions(state, actions);
        for (index, relay) in state.relays.iter().enumerate() {
            self.lease_actions(state, index, relay, actions);
            self.reader_actions(state, index, relay, actions);
            self.delivery_actions(state, index, relay, actions);
        }
        for request in &state.wire {
            actions.push(Action::Answer(request.clone()));
            if state.faults_left > 0 && request.waiter.is_some() {
                actions.push(Action::LoseAnswer(request.clone()));
            }
            if state.late_left > 0 && !request.late {
                actions.push(Action::Delay(request.clone()));
            }
        }
        if state.db.cursors.iter().any(|cursor| cursor.lease > 0) || state.wire.iter().any(|request| request.left > 0) {
            actions.push(Action::Tick);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        self.step(&mut state, action)?;
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}

impl Config {
    fn writer_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let db = &state.db;
        if let Some(tx) = db.next_tx() {
            for key in 0..small(self.key_lanes.len()) {
                let action = if self.slow_writers { Action::Begin } else { Action::Write };
                let ops = [Op::Put, Op::Delete].into_iter().filter(|&op| db.can_begin(key, op, self.mutation));
                actions.extend(ops.map(|op| action(tx, key, op)));
            }
        }
        for (tx, phase) in db.txs.iter().map(|tx| tx.phase).enumerate() {
            match phase {
                TxPhase::Begun => actions.push(Action::Sequence(tx)),
                TxPhase::Sequenced => {
                    actions.push(Action::Commit(tx));
                    if self.aborts {
                        actions.push(Action::Abort(tx));
                    }
                }
                TxPhase::Waiting | TxPhase::Committed | TxPhase::Aborted => {}
            }
        }
    }

    fn lease_actions(&self, state: &State, index: usize, relay: &Relay, actions: &mut Vec<Action>) {
        let holds_any = relay.holds_any();
        if holds_any {
            let is_fresh = |lane: usize| relay.held[lane] == 0 || state.db.cursors[lane].lease == self.term;
            if relay.usable < self.usable() || !(0..self.lanes()).all(is_fresh) {
                actions.push(Action::Beat(index, None));
            }
            if relay.usable == 0 || state.faults_left > 0 {
                actions.push(Action::LoseLanes(index));
            }
        }
        if state.faults_left > 0 {
            actions.push(Action::Crash(index));
        }
        for lane in 0..self.lanes() {
            if relay.held[lane] == 0 {
                if state.db.is_free(lane, index, self) {
                    actions.push(Action::Beat(index, Some(lane)));
                }
            } else if relay.lanes[lane].is_some() {
                actions.push(Action::Leave(index, lane));
            } else if !relay.is_lane_busy(lane, &self.key_lanes) {
                actions.push(Action::Release(index, lane));
            }
        }
    }

    fn reader_actions(&self, state: &State, index: usize, relay: &Relay, actions: &mut Vec<Action>) {
        // What begins only while the leases are relied on: an engine looks at that first.
        if relay.usable == 0 {
            return;
        }
        let reader = &relay.reader;
        if reader.segments.iter().any(|segment| segment.running & state.db.ended() != 0) {
            actions.push(Action::Observe(index));
        }
        if reader.segments.iter().any(|segment| segment.due) {
            actions.push(Action::Recheck(index));
        }
        if reader.pass.is_some() {
            actions.push(Action::ReadPass(index));
        } else if reader.fence.is_some() {
            actions.push(Action::FenceXid(index));
        } else if relay.lanes.iter().any(Option::is_some) && state.db.last_seq > reader.scanned {
            actions.push(Action::FencePosition(index));
        }
    }

    fn delivery_actions(&self, state: &State, index: usize, relay: &Relay, actions: &mut Vec<Action>) {
        for (key, log) in relay.keys.iter().enumerate() {
            let Some(delivery) = &log.delivery else {
                if log.waiting != 0 && relay.usable > 0 {
                    actions.push(Action::Deliver(index, key));
                }
                continue;
            };
            match delivery.phase {
                Phase::Absent(_) => actions.push(Action::Reload(index, key)),
                Phase::Loaded(_) => actions.push(if self.may_send(relay, key, delivery.epoch) {
                    Action::Send(index, key)
                } else {
                    Action::Refuse(index, key)
                }),
                Phase::Sent => {
                    if !state.wire.iter().any(|request| request.is_awaited(index, key) && !request.late) {
                        actions.push(Action::GiveUp(index, key));
                    }
                }
                Phase::Confirmed(_) | Phase::Settling(_) => {}
            }
        }
        if relay.settling.is_some() {
            actions.push(Action::Settle(index));
            if state.faults_left > 0 {
                actions.push(Action::LoseSettleAnswer(index));
            }
        } else if relay.has_to_settle(self.mutation) && (relay.usable > 0 || !relay.holds_any()) {
            actions.push(Action::BeginSettle(index));
        }
    }

    fn may_send(&self, relay: &Relay, key: usize, epoch: u8) -> bool {
        self.mutation == Mutation::NoPermit || relay.permits(self.key_lanes[key], epoch)
    }

    fn step(&self, state: &mut State, action: Action) -> Option<()> {
        let mutation = self.mutation;
        let State { db, relays, .. } = state;
        match action {
            Action::Begin(tx, key, op) => db.begin(tx, key, op, mutation),
            Action::Sequence(tx) => return db.sequence(tx, mutation),
            Action::Commit(tx) => db.commit(tx),
            Action::Abort(tx) => db.abort(tx),
            Action::Write(tx, key, op) => {
                db.begin(tx, key, op, mutation);
                db.sequence(tx, mutation)?;
                db.commit(tx);
            }
            Action::Tick => tick(state),
            Action::Beat(relay, take) => return self.beat(state, relay, take),
            Action::LoseLanes(relay) => {
                if relays[relay].usable > 0 {
                    state.faults_left -= 1;
                }
                for lane in 0..self.lanes() {
                    relays[relay].lose_lane(lane, &self.key_lanes, mutation);
                }
            }
            Action::Leave(relay, lane) => relays[relay].drop_log(lane, &self.key_lanes, mutation),
            Action::Release(relay, lane) => {
                let epoch = relays[relay].held[lane];
                relays[relay].lose_lane(lane, &self.key_lanes, mutation);
                let cursor = &mut db.cursors[lane];
                if cursor.is_held(relay, epoch) {
                    (cursor.owner, cursor.lease) = (0, 0);
                }
            }
            Action::Crash(relay) => self.crash(state, relay),
            Action::Observe(relay) => return relays[relay].observe(db.ended(), mutation),
            Action::FencePosition(relay) => relays[relay].reader.fence = Some(db.last_seq),
            Action::FenceXid(relay) => {
                let reader = &mut relays[relay].reader;
                let upto = reader.fence.take()?;
                reader.pass = Some((upto, db.running(mutation)));
            }
            Action::ReadPass(relay) => return relays[relay].read_pass(db, &self.key_lanes, mutation),
            Action::Recheck(relay) => return relays[relay].recheck(db, &self.key_lanes, mutation),
            Action::Deliver(relay, key) => {
                return relays[relay].begin_delivery(key, self.key_lanes[key], db, mutation);
            }
            Action::Reload(relay, key) => return relays[relay].reload(key, db, mutation),
            Action::Send(relay, key) => return self.send(state, relay, key),
            Action::Refuse(relay, key) => relays[relay].hand_back(key),
            Action::Answer(request) => self.apply(state, &request, true),
            Action::LoseAnswer(request) => {
                state.faults_left -= 1;
                self.apply(state, &request, false);
            }
            Action::Delay(request) => {
                state.late_left -= 1;
                replace(&mut state.wire, &request, Some(Request { late: true, left: 0, ..request.clone() }));
            }
            Action::GiveUp(relay, key) => {
                relays[relay].hand_back(key);
                if let Some(request) = state.wire.iter().find(|request| request.is_awaited(relay, key)).cloned() {
                    replace(&mut state.wire, &request, Some(Request { waiter: None, ..request.clone() }));
                }
            }
            Action::BeginSettle(relay) => relays[relay].begin_settle(&self.key_lanes, mutation),
            Action::Settle(relay) => return self.settle(state, relay, true),
            Action::LoseSettleAnswer(relay) => {
                state.faults_left -= 1;
                return self.settle(state, relay, false);
            }
        }
        Some(())
    }

    fn beat(&self, state: &mut State, index: usize, take: Option<usize>) -> Option<()> {
        let State { db, relays, .. } = state;
        let relay = &mut relays[index];
        let held_none = !relay.holds_any();
        for lane in 0..self.lanes() {
            let epoch = relay.held[lane];
            if epoch != 0 && !db.renew(lane, index, epoch, self.term) {
                relay.lose_lane(lane, &self.key_lanes, self.mutation);
            }
        }
        if let Some(lane) = take {
            // A lane whose deliveries from before are still under way is not taken again yet.
            if held_none && relay.is_busy() {
                return None;
            }
            let cursor = db.take(lane, index, self)?;
            relay.take_lane(lane, cursor.epoch, cursor.closed);
        }
        relay.usable = if relay.holds_any() { self.usable() } else { 0 };
        Some(())
    }

    fn crash(&self, state: &mut State, index: usize) {
        state.faults_left -= 1;
        state.relays[index] = Relay::new(self.lanes(), self.key_lanes.len());
        for cursor in state.db.cursors.iter_mut().filter(|cursor| cursor.owner == number(index)) {
            cursor.owner = if cursor.lease == 0 { 0 } else { DEAD };
        }
        for request in state.wire.iter_mut().filter(|request| request.waiter == Some(small(index))) {
            request.waiter = None;
        }
        state.wire.sort_unstable();
    }

    fn send(&self, state: &mut State, index: usize, key: usize) -> Option<()> {
        let relay = &mut state.relays[index];
        let left = relay.usable.max(1) + WIRE_SLACK;
        let delivery = relay.keys[key].delivery.as_mut()?;
        let Phase::Loaded(write) = delivery.phase else { return None };
        let waits = self.mutation != Mutation::SettleBeforeConfirm;
        delivery.phase = if waits { Phase::Sent } else { Phase::Confirmed(write) };
        let waiter = waits.then_some(small(index));
        state.wire.push(Request { waiter, key: small(key), write, epoch: delivery.epoch, left, late: false });
        state.wire.sort_unstable();
        Some(())
    }

    fn apply(&self, state: &mut State, request: &Request, answered: bool) {
        let shown = &mut state.sink[usize::from(request.key)];
        let tombstone = &mut state.tombstones[usize::from(request.key)];
        match request.write {
            Write::Upsert(version) => {
                if (*shown).max(*tombstone) < version || self.mutation == Mutation::UnconditionalUpsert {
                    *shown = version;
                    *tombstone = 0;
                }
            }
            Write::Delete(bound) => {
                if *shown <= bound || self.mutation == Mutation::UnboundedDelete {
                    *shown = 0;
                    if self.mutation == Mutation::Tombstones {
                        *tombstone = (*tombstone).max(bound);
                    }
                }
            }
        }
        replace(&mut state.wire, request, None);
        if let Some(waiter) = request.waiter.filter(|_| answered)
            && let Some(delivery) = &mut state.relays[usize::from(waiter)].keys[usize::from(request.key)].delivery
        {
            delivery.phase = Phase::Confirmed(request.write);
        }
    }

    fn settle(&self, state: &mut State, index: usize, answered: bool) -> Option<()> {
        let State { db, relays, stale_settle, .. } = state;
        let relay = &mut relays[index];
        let settlement = relay.settling.take()?;
        let mut held = vec![false; self.lanes()];
        for &(key, epoch, covers, write) in &settlement.parts {
            let lane = self.key_lanes[usize::from(key)];
            let stands = db.cursors[lane].is_held(index, epoch);
            if stands || self.mutation == Mutation::NoEpochCheck {
                held[lane] = true;
                let before = db.clone();
                db.settle(usize::from(key), covers, write);
                *stale_settle |= !stands && *db != before;
            }
        }
        for &(lane, epoch, closed) in &settlement.cursors {
            let cursor = &mut db.cursors[usize::from(lane)];
            let stands = cursor.is_held(index, epoch);
            if stands || self.mutation == Mutation::NoEpochCheck {
                *stale_settle |= !stands && closed > cursor.closed;
                cursor.closed = cursor.closed.max(closed);
            }
        }
        if answered {
            relay.settled(&settlement, &held, &self.key_lanes, self.mutation);
        } else {
            relay.settle_failed();
        }
        Some(())
    }
}

impl Request {
    fn is_awaited(&self, relay: usize, key: usize) -> bool {
        self.waiter == Some(small(relay)) && usize::from(self.key) == key
    }
}

/// Lets a tick pass: leases and deadlines come nearer, and what is past its deadline is lost.
fn tick(state: &mut State) {
    for cursor in &mut state.db.cursors {
        cursor.lease = cursor.lease.saturating_sub(1);
        if cursor.lease == 0 && cursor.owner == DEAD {
            cursor.owner = 0;
        }
    }
    for relay in &mut state.relays {
        relay.usable = relay.usable.saturating_sub(1);
    }
    for request in &mut state.wire {
        request.left = request.left.saturating_sub(1);
    }
    state.wire.retain(|request| request.late || request.left > 0);
    state.wire.sort_unstable();
}

fn replace(wire: &mut Vec<Request>, request: &Request, with: Option<Request>) {
    if let Some(at) = wire.iter().position(|other| other == request) {
        wire.remove(at);
    }
    wire.extend(with);
    wire.sort_unstable();
}
