//! What the relay says of itself: gauges over what engines and the database know, whether it
//! has come to a stand, and the span of a delivery.
//!
//! A background task reads the database; a scrape reads what it read.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use opentelemetry::{KeyValue, metrics::Meter};
use tokio_util::sync::CancellationToken;
use tracing::Span;
use waybill_domain::{Clock, SinkName, SystemClock};
use waybill_outbox::{BreakerState, Key, Stats, StatsReading};
use waybill_runtime::{Components, Sample, Signals, trace};
use waybill_storage::{
    Db, StorageError,
    gauges::{self, ServerGauges, SinkGauges},
};

use crate::verify::report::FindingKind;

/// How often the database is read: some milliseconds of its time, for each relay.
const SAMPLE_EVERY: Duration = Duration::from_secs(10);

/// How often it is looked whether delivery stands still.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How long ago a sink may have asked to be left alone and be meant by it still: longer than it
/// is obeyed.
const THROTTLED: Duration = Duration::from_secs(90);

/// How long a relay may be without lanes that it should have: they change hands in that time.
const LANES_PATIENCE: Duration = Duration::from_secs(30);

/// What is known of each sink.
type Sinks = HashMap<SinkName, SinkGauges>;

/// Measures the relay.
pub(crate) struct Monitor {
    db: Db,
    signals: Signals,
    engines: Vec<(SinkName, Stats)>,
    stalled_after: Duration,
    sinks: Sample<Sinks>,
    server: Sample<Server>,
    stalled: Sample<Vec<SinkName>>,
}

/// How the database server is, in figures.
#[derive(Debug, Clone)]
struct Server {
    gauges: ServerGauges,
    held_back_s: f64,
    clock_skew_s: f64,
}

impl Monitor {
    /// Registers everything.
    pub(crate) fn new(db: Db, signals: Signals, engines: Vec<(SinkName, Stats)>, stalled_after: Duration) -> Self {
        let monitor = Self {
            db,
            signals,
            engines,
            stalled_after,
            sinks: Sample::default(),
            server: Sample::default(),
            stalled: Sample::default(),
        };
        monitor.observe_engines();
        monitor.observe_sinks();
        monitor.observe_server();
        monitor
    }

    /// Samples and looks until `stopping`.
    pub(crate) async fn run(self, stopping: CancellationToken) {
        let sampling = async {
            let mut slots = Slots::default();
            loop {
                // Statements have a limit that Postgres keeps; a network that swallows them keeps none.
                match tokio::time::timeout(SAMPLE_EVERY, self.sample(&mut slots)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(%error, "metrics of the database not read"),
                    Err(_) => tracing::debug!("metrics of the database not read in time"),
                }
                tokio::time::sleep(SAMPLE_EVERY).await;
            }
        };
        let looking = async {
            let mut without_lanes = None;
            loop {
                self.look();
                self.look_at_lanes(&mut without_lanes);
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let both = Box::pin(async { tokio::join!(sampling, looking) });
        stopping.run_until_cancelled(both).await;
        self.signals.components.release(STALLED);
    }

    async fn sample(&self, slots: &mut Slots) -> Result<(), StorageError> {
        let mut sinks = Sinks::new();
        for (sink, _) in &self.engines {
            sinks.insert(*sink, gauges::sink(&self.db, *sink).await?);
        }
        self.sinks.set(sinks);
        let asked = unix_s();
        let gauges = gauges::server(&self.db).await?;
        // Its clock was read about half-way.
        let clock_skew_s = gauges.now_unix_s - f64::midpoint(asked, unix_s());
        let held_back_s = gauges.oldest_transaction_s.max(slots.oldest_s(&gauges.slots));
        self.server.set(Server { gauges, held_back_s, clock_skew_s });
        Ok(())
    }

    /// Says which sinks have come to a stand, and that the relay is not ready then.
    fn look(&self) {
        let sinks = self.sinks.get().unwrap_or_default();
        let down = down(&self.signals.components);
        let mut stalled = Vec::new();
        let mut reasons = Vec::new();
        for (sink, stats) in &self.engines {
            let reading = stats.read();
            let lag_s = sinks.get(sink).map_or(0.0, |gauges| gauges.lag_s);
            if is_stalled(*sink, &reading, lag_s, &down, self.stalled_after) {
                stalled.push(*sink);
                let waited = reading.waiting.max(self.stalled_after).as_secs();
                let error = if reading.last_error.is_empty() { "no error was met" } else { &reading.last_error };
                reasons.push(format!("nothing was confirmed to {sink} for {waited} s though there is work: {error}"));
            }
        }
        if stalled.is_empty() {
            self.signals.components.release(STALLED);
        } else {
            self.signals.components.hold(STALLED, reasons.join("; "));
        }
        self.stalled.set(stalled);
    }

    fn look_at_lanes(&self, without_since: &mut Option<Instant>) {
        let lacking: Vec<&str> = self
            .engines
            .iter()
            .filter(|(_, stats)| {
                let reading = stats.read();
                reading.lanes == 0 && reading.lanes_due > 0
            })
            .map(|(sink, _)| sink.as_str())
            .collect();
        let held = || {
            let of = |(sink, stats): &(SinkName, Stats)| format!("{sink} {}", stats.read().lanes);
            self.engines.iter().map(of).collect::<Vec<_>>().join(", ")
        };
        if lacking.is_empty() {
            *without_since = None;
            return self.signals.components.set("lanes", Ok(held()));
        }
        let since = *without_since.get_or_insert_with(Instant::now);
        if since.elapsed() > LANES_PATIENCE {
            self.signals.components.set("lanes", Err(format!("no lane is held of {}", lacking.join(" and "))));
        }
    }

    fn observe_engines(&self) {
        let meter = &self.signals.meter;
        let engines = &self.engines;
        let gauge = |name, about, read: fn(&StatsReading) -> u64| engine_gauge(meter, engines, name, about, read);
        gauge("waybill_relay_in_flight_keys", "Keys that are being delivered", |reading| reading.in_flight as u64);
        gauge("waybill_relay_lanes_owned", "Lanes of the sink that this relay holds", |reading| reading.lanes.into());
        gauge("waybill_relay_paused", "1 while an operator has stopped the sink", |reading| reading.is_paused.into());
        gauge(
            "waybill_relay_breaker_state",
            "Whether the sink is tried: 0 closed (yes), 1 half open (once), 2 open (no)",
            |reading| match reading.breaker {
                BreakerState::Closed => 0,
                BreakerState::HalfOpen => 1,
                BreakerState::Open => 2,
            },
        );
        let (stalled, names) = (self.stalled.clone(), self.names());
        meter
            .u64_observable_gauge("waybill_relay_stalled")
            .with_description(
                "1 if there is work, the sink is well and not paused, and nothing was confirmed for relay.stalled_after_s",
            )
            .with_callback(move |gauge| {
                for sink in &names {
                    let is_stalled = stalled.get().is_some_and(|stalled| stalled.contains(sink));
                    gauge.observe(is_stalled.into(), &[label(*sink)]);
                }
            })
            .build();
    }

    fn observe_sinks(&self) {
        let meter = &self.signals.meter;
        let count = |name: &'static str, about: &'static str, read: fn(&SinkGauges) -> u64| {
            let sinks = self.sinks.clone();
            let observe = move |gauge: &dyn opentelemetry::metrics::AsyncInstrument<u64>| {
                for (sink, gauges) in sinks.get().unwrap_or_default() {
                    gauge.observe(read(&gauges), &[label(sink)]);
                }
            };
            if name.ends_with("_total") {
                meter.u64_observable_counter(name).with_description(about).with_callback(observe).build();
            } else {
                meter.u64_observable_gauge(name).with_description(about).with_callback(observe).build();
            }
        };
        count("waybill_relay_lag_rows", "Changes that the sink has yet to confirm", |gauges| gauges.lag_rows);
        count("waybill_relay_retry_keys", "Keys that were refused and wait for another try", |gauges| {
            gauges.retry_keys
        });
        count("waybill_relay_dead_letters", "Keys that were given up and stand among the dead letters", |gauges| {
            gauges.dead_letters
        });
        count("waybill_relay_dead_letters_total", "Keys that were ever given up, counted in Postgres", |gauges| {
            gauges.dead_letters_total
        });
        let age = |name: &'static str, about: &'static str, read: fn(&SinkGauges) -> f64| {
            let sinks = self.sinks.clone();
            meter
                .f64_observable_gauge(name)
                .with_description(about)
                .with_callback(move |gauge| {
                    for (sink, gauges) in sinks.get().unwrap_or_default() {
                        gauge.observe(read(&gauges), &[label(sink)]);
                    }
                })
                .build();
        };
        age("waybill_relay_lag_seconds", "Age of the oldest change that was not refused before", |gauges| gauges.lag_s);
        age(
            "waybill_relay_oldest_unconfirmed_age_seconds",
            "Age of the oldest change that is neither confirmed nor given up",
            |gauges| gauges.oldest_unconfirmed_s,
        );
    }

    fn observe_server(&self) {
        let meter = &self.signals.meter;
        let number = |name: &'static str, about: &'static str, read: fn(&Server) -> Option<f64>| {
            let server = self.server.clone();
            meter
                .f64_observable_gauge(name)
                .with_description(about)
                .with_callback(move |gauge| {
                    if let Some(value) = server.get().as_ref().and_then(read) {
                        gauge.observe(value, &[]);
                    }
                })
                .build();
        };
        number(
            "waybill_postgres_vacuum_held_back_seconds",
            "Age of the oldest transaction or replication slot that keeps vacuum from its work",
            |server| Some(server.held_back_s),
        );
        number("waybill_postgres_clock_skew_seconds", "How far Postgres' clock is ahead of this machine's", |server| {
            Some(server.clock_skew_s)
        });
        number(
            "waybill_relay_verify_last_pass_timestamp_seconds",
            "When the last complete comparison of the stores ended, in seconds of the Unix epoch",
            |server| server.gauges.last_pass_unix_s,
        );
        let server = self.server.clone();
        meter
            .u64_observable_gauge("waybill_postgres_dead_tuples")
            .with_description("Rows that vacuum has yet to remove, as Postgres estimates them")
            .with_callback(move |gauge| {
                for (table, dead) in server.get().map(|server| server.gauges.dead_tuples).unwrap_or_default() {
                    gauge.observe(dead, &[KeyValue::new("table", table)]);
                }
            })
            .build();
        let server = self.server.clone();
        meter
            .u64_observable_counter("waybill_relay_verify_findings_total")
            .with_description("What comparisons in the background have ever found, counted in Postgres")
            .with_callback(move |counter| {
                let Some(server) = server.get() else { return };
                for kind in FindingKind::NAMES {
                    let found = server.gauges.findings.iter().find(|(name, _)| name == kind);
                    counter.observe(found.map_or(0, |(_, count)| *count), &[KeyValue::new("kind", kind)]);
                }
            })
            .build();
    }

    fn names(&self) -> Vec<SinkName> {
        self.engines.iter().map(|(sink, _)| *sink).collect()
    }
}

/// Who holds the relay not ready when it has come to a stand.
const STALLED: &str = "delivery";

fn label(sink: SinkName) -> KeyValue {
    KeyValue::new("sink", sink.as_str())
}

fn engine_gauge(
    meter: &Meter,
    engines: &[(SinkName, Stats)],
    name: &'static str,
    about: &'static str,
    read: fn(&StatsReading) -> u64,
) {
    let engines = engines.to_vec();
    meter
        .u64_observable_gauge(name)
        .with_description(about)
        .with_callback(move |gauge| {
            for (sink, stats) in &engines {
                gauge.observe(read(&stats.read()), &[label(*sink)]);
            }
        })
        .build();
}

/// Says whether a sink's delivery stands still for no reason that lies outside of the relay.
fn is_stalled(sink: SinkName, reading: &StatsReading, lag_s: f64, down: &[&'static str], after: Duration) -> bool {
    let needs: &[&str] = match sink {
        SinkName::Qdrant => &["postgres", "qdrant", "embedding"],
        SinkName::Llm => &["postgres", "redis"],
    };
    let is_excused = reading.is_paused
        || reading.breaker != BreakerState::Closed
        || reading.throttled.is_some_and(|at| at.elapsed() < THROTTLED)
        || needs.iter().any(|component| down.contains(component));
    // What it knows of waits; or there is what it should know of, and it has confirmed nothing.
    let misses_work = lag_s > after.as_secs_f64() && reading.lanes_due > 0 && reading.confirmed_per_second == 0.0;
    !is_excused && (reading.waiting > after || misses_work)
}

fn down(components: &Components) -> Vec<&'static str> {
    components.report().components.iter().filter(|component| !component.up).map(|component| component.name).collect()
}

fn unix_s() -> f64 {
    SystemClock.now().timestamp_micros() as f64 / 1e6
}

/// Replication slots that hold back vacuum. Postgres tells their position and not since when they
/// have been there, so that is remembered.
#[derive(Default)]
struct Slots(HashMap<(String, String), Instant>);

impl Slots {
    fn oldest_s(&mut self, seen: &[(String, String)]) -> f64 {
        self.0.retain(|slot, _| seen.contains(slot));
        for slot in seen {
            self.0.entry(slot.clone()).or_insert_with(Instant::now);
        }
        self.0.values().map(|since| since.elapsed().as_secs_f64()).fold(0.0, f64::max)
    }
}

/// Makes the span of a delivery, linked to the traces whose changes it carries on.
pub(crate) fn delivery_span(sink: SinkName, keys: &[Key], origins: &[Arc<str>]) -> Span {
    let span = tracing::info_span!(
        parent: None,
        "deliver",
        otel.name = %format_args!("deliver {sink}"),
        otel.kind = "consumer",
        sink = %sink,
        keys = keys.len(),
    );
    trace::link(&span, origins.iter().map(|headers| &**headers));
    span
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading() -> StatsReading {
        StatsReading { waiting: Duration::from_secs(61), lanes_due: 64, lanes: 64, ..Stats::default().read() }
    }

    #[test]
    fn who_waits_for_a_store_or_an_operator_is_not_stalled() {
        let after = Duration::from_secs(60);
        let stalled =
            |reading: &StatsReading, down: &[&'static str]| is_stalled(SinkName::Qdrant, reading, 0.0, down, after);
        assert!(stalled(&reading(), &[]));
        assert!(stalled(&reading(), &["redis"]), "that is nothing to this sink");
        for store in ["postgres", "qdrant", "embedding"] {
            assert!(!stalled(&reading(), &[store]), "{store}");
        }
        assert!(!stalled(&StatsReading { is_paused: true, ..reading() }, &[]));
        assert!(!stalled(&StatsReading { breaker: BreakerState::Open, ..reading() }, &[]));
        assert!(!stalled(&StatsReading { throttled: Some(tokio::time::Instant::now()), ..reading() }, &[]));
        assert!(!stalled(&StatsReading { waiting: Duration::from_secs(59), ..reading() }, &[]));
    }

    #[test]
    fn work_that_a_relay_should_know_of_counts() {
        let after = Duration::from_secs(60);
        let idle = StatsReading { waiting: Duration::ZERO, ..reading() };
        assert!(!is_stalled(SinkName::Llm, &idle, 59.0, &[], after));
        assert!(is_stalled(SinkName::Llm, &idle, 61.0, &[], after));
        let spare = StatsReading { lanes_due: 0, ..idle.clone() };
        assert!(!is_stalled(SinkName::Llm, &spare, 61.0, &[], after), "others hold all the lanes");
        let busy = StatsReading { confirmed_per_second: 1.0, ..idle };
        assert!(!is_stalled(SinkName::Llm, &busy, 61.0, &[], after), "a backlog is being worked off");
    }

    #[test]
    fn a_slot_is_as_old_as_it_has_stood_still() {
        let mut slots = Slots::default();
        let at = |xmin: &str| [("standby".to_owned(), xmin.to_owned())];
        assert!(slots.oldest_s(&at("1")) < 1.0);
        if let Some(since) = slots.0.values_mut().next() {
            *since = Instant::now().checked_sub(Duration::from_secs(100)).unwrap();
        }
        assert!(slots.oldest_s(&at("1")) >= 100.0);
        assert!(slots.oldest_s(&at("2")) < 1.0, "it has moved");
    }
}
