//! Runs the protocol for one sink: one task that owns all state and waits for IO.

use std::{collections::HashSet, pin::Pin, sync::Arc, time::Duration};

use futures::future::pending;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use waybill_domain::{Backoff, ErrorClass, Lane, RelayId, SinkName};
use waybill_storage::{
    Db, StorageError,
    lease::{self, Heartbeat, LaneLease, TakenLane},
    outbox::OutboxReader,
    settle::{self, Settlement},
};

use crate::{
    DeliveryError, EngineConfig, Permit, Sink, Stats,
    core::{Limits, Log, fair_share},
    delivery::{Delivered, ToSettle, deliver},
    reading::{Answer, Step, read_step},
    sink::Holdings,
    wake::Wake,
};

/// Work of which there is at most one at a time.
type Slot<T> = Option<Pin<Box<dyn Future<Output = T> + Send>>>;

/// A read that has ended, with the connection unless that broke.
type Read = (Option<OutboxReader>, Result<Answer, StorageError>);

/// A settle that has ended: what it was for, what was asked, which lanes still stood.
type Settled = (Vec<ToSettle>, Settlement, Result<HashSet<Lane>, StorageError>);

/// A heartbeat that has ended: what it found, what was taken, when it was asked.
type Beat = Result<(Heartbeat, Vec<TakenLane>, Instant), StorageError>;

/// The least time that is worth a request to a sink.
const REQUEST_TIME_LEAST: Duration = Duration::from_millis(200);
/// The smallest batch that slow deliveries shrink to.
const BATCH_KEYS_MIN: usize = 8;
/// Confirmed keys settled in one transaction, so that it stays short.
const SETTLE_KEYS_MAX: usize = 4_096;

/// Delivers what the outbox says to one sink, together with the engines of other relays.
pub struct Engine {
    db: Db,
    sink: Arc<dyn Sink>,
    config: EngineConfig,
    owner: RelayId,
    stats: Stats,
    log: Log,
    holdings: Holdings,
    started: Instant,

    reader: Option<OutboxReader>,
    reading: Slot<Read>,
    /// The end of the log when it was looked at last.
    last_seq: i64,
    next_poll: Instant,
    poll_interval: Duration,

    deliveries: JoinSet<Delivered>,
    batch_keys: usize,
    /// A sink that is down is left alone until then.
    sink_resumes: Instant,
    sink_failures: u32,

    to_settle: Vec<ToSettle>,
    settling: Slot<Settled>,
    next_cursor_write: Instant,
    settle_resumes: Instant,
    settle_failures: u32,

    beating: Slot<Beat>,
    next_heartbeat: Instant,
    /// Lanes to be given up once their deliveries have ended.
    leaving: HashSet<Lane>,
}

impl Engine {
    /// Makes an engine for `sink`. `owner` names this relay among the others.
    #[must_use]
    pub fn new(db: Db, sink: Arc<dyn Sink>, config: EngineConfig, owner: RelayId) -> Self {
        let now = Instant::now();
        Self {
            log: Log::new(Limits { outstanding_rows: config.outstanding_rows_max }),
            batch_keys: config.batch_keys_max.min(64),
            poll_interval: Duration::from_millis(config.poll_min_ms),
            db,
            sink,
            config,
            owner,
            stats: Stats::default(),
            holdings: Holdings::new(),
            started: now,
            reader: None,
            reading: None,
            last_seq: 0,
            next_poll: now,
            deliveries: JoinSet::new(),
            sink_resumes: now,
            sink_failures: 0,
            to_settle: Vec::new(),
            settling: None,
            next_cursor_write: now,
            settle_resumes: now,
            settle_failures: 0,
            beating: None,
            next_heartbeat: now,
            leaving: HashSet::new(),
        }
    }

    /// Returns the sink that it delivers to.
    #[must_use]
    pub fn sink(&self) -> SinkName {
        self.sink.name()
    }

    /// Returns the figures, live.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats.clone()
    }

    /// Delivers until `soft` is cancelled; then ends what is under way, settles it, gives the
    /// lanes back and returns. Returns at once when `hard` is cancelled: what was under way is
    /// delivered again by whoever takes the lanes.
    pub async fn run(mut self, wake: Wake, soft: CancellationToken, hard: CancellationToken) {
        let sink = self.sink.name();
        tracing::info!(%sink, relay = %self.owner, "relay started");
        let trimmer = tokio::spawn(crate::trim::run(
            self.db.clone(),
            sink,
            self.config.clone(),
            self.holdings.clone(),
            soft.clone(),
        ));
        loop {
            let stopping = soft.is_cancelled();
            self.start_work(stopping);
            if stopping && self.is_idle() {
                break;
            }
            let timer = self.next_timer(stopping);
            tokio::select! {
                () = hard.cancelled() => {
                    tracing::warn!(%sink, in_flight = self.log.in_flight(), "relay stopped at once, its work is left to the next");
                    trimmer.abort();
                    return;
                }
                () = soft.cancelled(), if !stopping => {}
                () = wake.rung(), if !stopping => self.next_poll = Instant::now(),
                () = tokio::time::sleep_until(timer) => {}
                beat = filled(&mut self.beating) => { self.beating = None; self.on_heartbeat(beat); }
                (reader, answer) = filled(&mut self.reading) => { self.reading = None; self.on_read(reader, answer); }
                (parts, settlement, result) = filled(&mut self.settling) => {
                    self.settling = None;
                    self.on_settled(parts, &settlement, result);
                }
                Some(done) = self.deliveries.join_next() => match done {
                    Ok(done) => self.on_delivered(done),
                    Err(error) => {
                        // A panic in a sink: nothing is known of its keys, and nothing here can be
                        // trusted to name them. Begin anew from the cursors.
                        tracing::error!(%sink, %error, "delivery panicked");
                        self.lose_everything("a delivery panicked");
                    }
                },
            }
            self.stats.in_flight(self.log.in_flight());
        }
        trimmer.abort();
        self.say_goodbye().await;
        tracing::info!(%sink, relay = %self.owner, "relay stopped");
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn is_idle(&self) -> bool {
        self.deliveries.is_empty() && self.to_settle.is_empty() && self.settling.is_none() && self.beating.is_none()
    }

    fn next_timer(&self, stopping: bool) -> Instant {
        // What waits for a slot is started when the slot comes free; only what waits for time
        // is listed here.
        let holds_lanes = self.holdings.len() > 0;
        let timers = [
            (self.beating.is_none(), self.next_heartbeat),
            (holds_lanes, self.holdings.valid_until()),
            (!stopping && self.reading.is_none() && holds_lanes, self.next_poll),
            (!stopping && self.settling.is_none() && holds_lanes, self.next_cursor_write),
            (!stopping && self.deliveries.is_empty() && self.log.ready() > 0, self.sink_resumes),
            (self.settling.is_none() && !self.to_settle.is_empty(), self.settle_resumes),
        ];
        let next = timers.into_iter().filter_map(|(waits, at)| waits.then_some(at)).min();
        // The bound is for nothing but a mistake in the list above.
        next.unwrap_or_else(|| Instant::now() + Duration::from_secs(1)).max(Instant::now() + Duration::from_millis(1))
    }

    /// Starts whatever can be started.
    fn start_work(&mut self, stopping: bool) {
        let now = Instant::now();
        if now >= self.holdings.valid_until() && self.holdings.len() > 0 {
            self.lose_everything("the leases could not be renewed in time");
        }
        if self.beating.is_none() && now >= self.next_heartbeat {
            self.start_heartbeat();
        }
        let due = self.log.wake_delayed(self.now());
        if let Some(due) = due {
            self.next_poll = self.next_poll.min(self.started + due);
        }
        if !stopping {
            self.start_read(now);
            self.start_deliveries(now);
        }
        self.start_settle(now, stopping);
    }

    fn start_read(&mut self, now: Instant) {
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

    fn on_read(&mut self, reader: Option<OutboxReader>, answer: Result<Answer, StorageError>) {
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
                self.last_seq = tail.last_seq;
                self.log.observe(&tail.snapshot);
            }
            Ok(Answer::Fence(fence)) => {
                self.last_seq = fence.tail.last_seq;
                self.log.observe(&fence.tail.snapshot);
                self.log.begin_pass(&fence);
            }
            Ok(Answer::Rows(plan, rows, read_upto)) => self.log.absorb(&plan, &rows, read_upto),
            Err(error) => {
                self.stats.error(format!("read the outbox: {error}"));
                self.lose_everything("the reader's connection broke");
            }
        }
    }

    fn start_deliveries(&mut self, now: Instant) {
        while self.deliveries.len() < self.config.deliveries_max && now >= self.sink_resumes {
            // After a failure, one batch at a time finds out whether the sink is back.
            if self.sink_failures > 0 && !self.deliveries.is_empty() {
                return;
            }
            let Some(batch) = self.log.take_batch(self.batch_keys) else {
                return;
            };
            let permit =
                Permit { leases: batch.leases.clone(), holdings: self.holdings.clone(), least: REQUEST_TIME_LEAST };
            self.deliveries.spawn(deliver(Arc::clone(&self.sink), batch, permit));
        }
    }

    fn on_delivered(&mut self, done: Delivered) {
        let ticket = done.batch.ticket;
        let mut succeeded = true;
        for part in done.parts {
            match part.outcome {
                Ok(confirmed) => self.to_settle.push(ToSettle {
                    ticket,
                    leases: done.batch.leases.clone(),
                    keys: part.keys,
                    confirmed,
                }),
                Err(error) if error.lane_lost => {
                    tracing::debug!(sink = %self.sink.name(), %error, "delivery not sent");
                    self.log.handed_back(ticket, &part.keys);
                }
                Err(error) if error.class == ErrorClass::Permanent => {
                    let key = part.keys.first().map(|key| key.id);
                    tracing::warn!(sink = %self.sink.name(), ?key, %error, "key refused, its lane goes on");
                    self.stats.error(error.to_string());
                    let backoff = self.backoff(self.config.key_retry_max_ms);
                    let now = self.now();
                    self.log.failed(ticket, &part.keys, |attempt| now + backoff.wait(attempt, &mut rand::rng()));
                }
                Err(error) => {
                    succeeded = false;
                    self.log.handed_back(ticket, &part.keys);
                    self.pause_sink(&error);
                }
            }
        }
        if succeeded {
            self.sink_failures = 0;
            self.fit_batch(done.batch.keys.len(), done.elapsed);
        }
    }

    /// Leaves the sink alone for a while. No row is written and no key is blamed.
    fn pause_sink(&mut self, error: &DeliveryError) {
        self.sink_failures = self.sink_failures.saturating_add(1);
        let backoff = self.backoff(self.config.retry_max_ms);
        let wait = backoff.wait(self.sink_failures, &mut rand::rng());
        // What the peer asks for is obeyed, within reason.
        let wait = error.retry_after.map_or(wait, |asked| asked.clamp(wait.min(asked), Duration::from_secs(60)));
        self.sink_resumes = Instant::now() + wait;
        if self.sink_failures == 1 || self.sink_failures.is_multiple_of(20) {
            tracing::warn!(sink = %self.sink.name(), class = %error.class, %error, failures = self.sink_failures, "delivery failed, the sink is tried again");
        }
        self.stats.error(error.to_string());
    }

    const fn backoff(&self, max_ms: u64) -> Backoff {
        Backoff { base: Duration::from_millis(self.config.retry_base_ms), max: Duration::from_millis(max_ms) }
    }

    /// Moves the batch size towards deliveries of the target length.
    fn fit_batch(&mut self, keys: usize, elapsed: Duration) {
        let target = Duration::from_millis(self.config.delivery_target_ms);
        if elapsed > target * 3 / 2 {
            self.batch_keys = (self.batch_keys / 2).max(BATCH_KEYS_MIN).min(self.config.batch_keys_max);
        } else if elapsed < target / 2 && keys == self.batch_keys {
            self.batch_keys = (self.batch_keys * 2).min(self.config.batch_keys_max);
        }
    }

    fn start_settle(&mut self, now: Instant, stopping: bool) {
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
        let mut confirmed = Vec::new();
        for part in &parts {
            let valid: HashSet<Lane> =
                part.leases.iter().filter(|lease| held.contains(lease)).map(|lease| lease.lane).collect();
            leases.extend(part.leases.iter().filter(|lease| held.contains(lease)));
            confirmed.extend(part.confirmed.iter().filter(|c| valid.contains(&Lane::of(c.key))).cloned());
        }
        let settlement = Settlement { leases: leases.into_iter().collect(), confirmed, cursors };
        let (db, sink, owner, timeout) =
            (self.db.clone(), self.sink.name(), self.owner, self.config.statement_timeout());
        self.settling = Some(Box::pin(async move {
            let result = settle::settle(&db, sink, owner, &settlement, timeout).await;
            (parts, settlement, result)
        }));
    }

    fn on_settled(
        &mut self,
        parts: Vec<ToSettle>,
        settlement: &Settlement,
        result: Result<HashSet<Lane>, StorageError>,
    ) {
        match result {
            Ok(held) => {
                self.settle_failures = 0;
                for part in &parts {
                    self.log.settled(part.ticket, &part.keys, &held);
                    self.stats.confirmed(part.keys.iter().filter(|key| held.contains(&key.lane())).count());
                }
                self.log.cursors_written(&settlement.cursors);
                for lease in &settlement.leases {
                    if !held.contains(&lease.lane) {
                        tracing::warn!(sink = %self.sink.name(), lane = %lease.lane, "lane lost, what was delivered in it is not settled");
                        self.holdings.remove(lease.lane);
                        self.log.drop_lane(lease.lane);
                    }
                }
            }
            Err(error) => {
                self.settle_failures = self.settle_failures.saturating_add(1);
                let wait = self.backoff(self.config.retry_max_ms).wait(self.settle_failures, &mut rand::rng());
                self.settle_resumes = Instant::now() + wait;
                tracing::warn!(sink = %self.sink.name(), %error, class = %error.class(), "settle failed, tried again");
                self.stats.error(format!("settle: {error}"));
                // The sink has confirmed these; only the record is missing.
                self.to_settle.splice(0..0, parts);
            }
        }
    }

    fn start_heartbeat(&mut self) {
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
        self.beating = Some(Box::pin(async move {
            if !leaves.is_empty() {
                lease::release(&db, sink, owner, &leaves, timeout).await?;
            }
            // Counted from before the request: the lease can't have begun later.
            let asked = Instant::now();
            let beat = lease::heartbeat(&db, sink, owner, &held, term, timeout).await?;
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

    fn on_heartbeat(&mut self, beat: Beat) {
        let sink = self.sink.name();
        let (beat, taken, asked) = match beat {
            Ok(beat) => beat,
            Err(error) => {
                tracing::warn!(%sink, %error, "heartbeat failed, tried again");
                self.stats.error(format!("heartbeat: {error}"));
                self.next_heartbeat = self.next_heartbeat.min(Instant::now() + Duration::from_millis(500));
                return;
            }
        };
        for lease in self.holdings.leases() {
            if !beat.held.contains(&lease) && !taken.iter().any(|lane| lane.lease.lane == lease.lane) {
                tracing::warn!(%sink, lane = %lease.lane, "lane lost to another relay");
                self.holdings.remove(lease.lane);
                self.leaving.remove(&lease.lane);
                self.log.drop_lane(lease.lane);
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
        }
        let share = fair_share(beat.members, beat.rank);
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
    fn lose_everything(&mut self, reason: &str) {
        let lanes = self.holdings.leases();
        if !lanes.is_empty() {
            tracing::warn!(sink = %self.sink.name(), lanes = lanes.len(), reason, "lanes dropped, to be taken anew");
        }
        for lease in lanes {
            self.holdings.remove(lease.lane);
            self.log.drop_lane(lease.lane);
        }
        self.leaving.clear();
        self.last_seq = 0;
        self.next_heartbeat = self.next_heartbeat.min(Instant::now() + Duration::from_millis(200));
    }

    async fn say_goodbye(&mut self) {
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

async fn filled<T>(slot: &mut Slot<T>) -> T {
    match slot {
        Some(work) => work.await,
        None => pending().await,
    }
}
