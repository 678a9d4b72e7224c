//! Runs the protocol for one sink: one task that owns all state and waits for IO.

mod deliver;
mod lanes;
mod read;
mod settle;

use std::{collections::HashSet, pin::Pin, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use futures::future::pending;
use opentelemetry::metrics::Meter;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use waybill_domain::{Backoff, Lane, RelayId, SinkName};
use waybill_storage::{
    Db, StorageError,
    failures::Parked,
    lease::{Heartbeat, TakenLane},
    outbox::OutboxReader,
    settle::Settlement,
};

use crate::{
    DeliveryError, EngineConfig, Sink, Stats,
    breaker::Breaker,
    core::{Limits, Log, Ticket},
    delivery::{Delivered, ToSettle, Vitals},
    meter::EngineMeter,
    reading::Answer,
    sink::Holdings,
    stats::Observed,
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

/// Keys that wait for another try and are held in memory; some 200 bytes each.
const PARKED_KEYS_MAX: usize = 10_000;

/// Delivers what the outbox says to one sink, together with the engines of other relays.
pub struct Engine {
    db: Db,
    sink: Arc<dyn Sink>,
    config: EngineConfig,
    owner: RelayId,
    stats: Stats,
    meter: EngineMeter,
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
    breaker: Breaker,
    vitals: Vitals,
    probing: Slot<Result<(), DeliveryError>>,
    /// The delivery of suspects that is under way: one at a time.
    suspects: Option<Ticket>,
    /// Since when the sink is paused, if it is.
    paused_at: Option<DateTime<Utc>>,
    /// The pause of which the others were told that nothing is under way here.
    still_for: Option<DateTime<Utc>>,
    /// Somebody loads very much.
    is_bulk: bool,

    /// Keys that wait for another try are looked up.
    parking: Slot<Result<Vec<Parked>, StorageError>>,
    next_parking: Instant,
    /// Whether that was done for all lanes: else a key could be delivered of which nobody knows
    /// how often it has failed.
    knows_parked: bool,

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
            log: Log::new(Limits { outstanding_rows: config.outstanding_rows_max, parked_keys: PARKED_KEYS_MAX }),
            batch_keys: config.batch_keys_max.min(64),
            poll_interval: Duration::from_millis(config.poll_min_ms),
            breaker: config.breaker(),
            meter: EngineMeter::none(sink.name()),
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
            vitals: Vitals::default(),
            probing: None,
            suspects: None,
            paused_at: None,
            still_for: None,
            is_bulk: false,
            parking: None,
            next_parking: now,
            knows_parked: false,
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

    /// Has it counted what becomes of deliveries.
    #[must_use]
    pub fn measured(mut self, meter: &Meter) -> Self {
        self.meter = EngineMeter::new(self.sink.name(), meter);
        self
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
                parked = filled(&mut self.parking) => { self.parking = None; self.on_parked(parked); }
                answer = filled(&mut self.probing) => { self.probing = None; self.on_probed(answer); }
                (parts, settlement, result) = filled(&mut self.settling) => {
                    self.settling = None;
                    self.on_settled(parts, &settlement, result);
                }
                Some(done) = self.deliveries.join_next() => match done {
                    Ok(done) => self.on_delivered(done),
                    // Without the error: it has the panic's message, which may quote data.
                    Err(_) => {
                        // A panic in a sink: nothing is known of its keys, and nothing here can be
                        // trusted to name them. Begin anew from the cursors.
                        tracing::error!(%sink, "delivery panicked");
                        self.lose_everything("a delivery panicked");
                    }
                },
            }
            self.stats.observe(&Observed {
                in_flight: self.log.in_flight(),
                delayed: self.log.delayed(),
                breaker: self.breaker.state(Instant::now()),
                is_paused: self.paused_at.is_some(),
                has_work: self.log.ready() > 0 || self.log.in_flight() > 0,
                lanes: self.holdings.len(),
            });
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
            (
                !stopping && self.paused_at.is_none() && self.deliveries.is_empty() && self.log.ready() > 0,
                self.breaker.resumes(),
            ),
            (!stopping && self.parking.is_none() && holds_lanes, self.next_parking),
            (self.settling.is_none() && !self.to_settle.is_empty(), self.settle_resumes),
        ];
        let probe = self.breaker.probe_at(Instant::now()).filter(|_| !stopping && self.probing.is_none());
        let next = timers.into_iter().filter_map(|(waits, at)| waits.then_some(at)).chain(probe).min();
        // The bound is for nothing but a mistake in the list above.
        next.unwrap_or_else(|| Instant::now() + Duration::from_secs(1)).max(Instant::now() + Duration::from_millis(1))
    }

    /// Starts whatever can be started.
    fn start_work(&mut self, stopping: bool) {
        let now = Instant::now();
        if now >= self.holdings.valid_until() && self.holdings.len() > 0 {
            self.lose_everything("the leases could not be renewed in time");
        }
        if self.beating.is_none() && self.still() != self.still_for {
            self.next_heartbeat = now;
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
            self.start_parking(now);
            self.start_deliveries(now);
        }
        self.start_settle(now, stopping);
    }

    /// Returns the pause since which nothing is under way here.
    fn still(&self) -> Option<DateTime<Utc>> {
        self.paused_at.filter(|_| self.deliveries.is_empty())
    }

    /// The most keys in one delivery, as things are.
    const fn batch_keys_max(&self) -> usize {
        if self.is_bulk { self.config.bulk_batch_keys_max } else { self.config.batch_keys_max }
    }

    /// How long Postgres is left alone.
    const fn backoff(&self) -> Backoff {
        self.config.backoff()
    }

    /// How long a key is left alone that was refused by itself.
    const fn key_backoff(&self) -> Backoff {
        Backoff {
            base: Duration::from_millis(self.config.key_retry_base_ms),
            max: Duration::from_millis(self.config.key_retry_max_ms),
        }
    }
}

async fn filled<T>(slot: &mut Slot<T>) -> T {
    match slot {
        Some(work) => work.await,
        None => pending().await,
    }
}
