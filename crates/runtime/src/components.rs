//! How what a process needs is, and whether the process can take work.
//!
//! Three things are kept apart. *Live*: the process answers; nothing outside of it changes that.
//! *Degraded*: a component is down; the process goes on with what it can do, and says so.
//! *Ready*: it takes work; it does not while it starts or stops, or when its own work stands still.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use waybill_domain::{Clock, SystemClock};

/// How long a component may take to answer when it is asked how it is.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// How often components are asked.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// What a process needs, with what was heard of it last. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Components(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// By name, and by which of that name: a process may ask two providers.
    components: BTreeMap<(&'static str, String), Component>,
    /// Why the process is not ready, by who says so.
    holds: BTreeMap<&'static str, String>,
}

/// How a component is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Component {
    /// What it is: `postgres`, `redis`, `qdrant`, `provider`, `lanes`, `schema` or `embedding`.
    pub name: &'static str,
    /// Whether it does what it is for.
    pub up: bool,
    /// What is known of it, or why it is down.
    pub detail: String,
    /// Since when, in seconds of the Unix epoch.
    pub since_unix_s: u64,
}

/// How the process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// All is well.
    Ok,
    /// It works, without some of what it needs.
    Degraded,
    /// It takes no work.
    NotReady,
}

/// All that is known.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// How the process is.
    pub status: Status,
    /// Why it is not better.
    pub reasons: Vec<String>,
    /// What it needs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub components: Vec<Component>,
}

impl Components {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says how a component is: what is known of it, or why it is down. Changes are logged.
    pub fn set(&self, name: &'static str, state: Result<String, String>) {
        self.set_one(name, "", state);
    }

    /// Says how one of several components of a name is.
    pub fn set_one(&self, name: &'static str, which: &str, state: Result<String, String>) {
        let (up, detail) = match state {
            Ok(detail) => (true, detail),
            Err(why) => (false, why),
        };
        let mut inner = self.lock();
        let key = (name, which.to_owned());
        let before = inner.components.get(&key);
        let (was_up, since) = (before.map(|before| before.up), before.map(|before| before.since_unix_s));
        let since_unix_s = since.filter(|_| was_up == Some(up)).unwrap_or_else(now_unix_s);
        inner.components.insert(key, Component { name, up, detail: detail.clone(), since_unix_s });
        drop(inner);
        match (was_up, up) {
            (Some(true) | None, false) => {
                tracing::warn!(component = name, why = detail, "degraded: a component is down")
            }
            (Some(false), true) => tracing::info!(component = name, "component is back"),
            _ => {}
        }
    }

    /// Says why the process can't take work. Stands until [`Components::release`].
    pub fn hold(&self, who: &'static str, why: impl Into<String>) {
        let why = why.into();
        let before = self.lock().holds.insert(who, why.clone());
        if before.is_none() {
            tracing::info!(who, why, "not ready");
        }
    }

    /// Takes back what was said by [`Components::hold`].
    pub fn release(&self, who: &'static str) {
        let before = self.lock().holds.remove(who);
        if before.is_some() {
            tracing::info!(who, "no longer held up");
        }
    }

    /// Says whether the process takes work.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.lock().holds.is_empty()
    }

    /// Reports everything.
    #[must_use]
    pub fn report(&self) -> Report {
        let inner = self.lock();
        let down = || inner.components.values().filter(|component| !component.up);
        let status = match (inner.holds.is_empty(), down().next().is_none()) {
            (false, _) => Status::NotReady,
            (true, false) => Status::Degraded,
            (true, true) => Status::Ok,
        };
        let holds = inner.holds.iter().map(|(who, why)| format!("{who}: {why}"));
        let reasons = holds.chain(down().map(|component| format!("{} is down: {}", component.name, component.detail)));
        Report { status, reasons: reasons.collect(), components: inner.components.values().cloned().collect() }
    }

    /// Asks a component how it is, every few seconds until `stopping`.
    pub async fn watch<F>(self, name: &'static str, stopping: CancellationToken, probe: impl Fn() -> F)
    where
        F: Future<Output = Result<String, String>>,
    {
        loop {
            let asked = stopping.run_until_cancelled(tokio::time::timeout(PROBE_TIMEOUT, probe()));
            let Some(answer) = asked.await else { return };
            self.set(name, answer.unwrap_or_else(|_| Err(format!("no answer within {} s", PROBE_TIMEOUT.as_secs()))));
            if stopping.run_until_cancelled(tokio::time::sleep(PROBE_INTERVAL)).await.is_none() {
                return;
            }
        }
    }

    /// Has `waybill_component_up` say what is known.
    pub(crate) fn observe(&self, meter: &Meter) {
        let components = self.clone();
        let gauge = meter.u64_observable_gauge("waybill_component_up");
        gauge
            .with_description("1 if a component that this process needs is well, 0 if it is down")
            .with_callback(move |gauge| {
                let mut up = BTreeMap::new();
                for component in components.lock().components.values() {
                    *up.entry(component.name).or_insert(true) &= component.up;
                }
                for (name, up) in up {
                    gauge.observe(up.into(), &[KeyValue::new("component", name)]);
                }
            })
            .build();
        let started = now_unix_s();
        meter
            .u64_observable_gauge("waybill_process_start_time_seconds")
            .with_description("When this process started, in seconds of the Unix epoch")
            .with_callback(move |gauge| gauge.observe(started, &[]))
            .build();
    }
}

fn now_unix_s() -> u64 {
    u64::try_from(SystemClock.now().timestamp()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_that_is_down_degrades_and_a_hold_makes_not_ready() {
        let components = Components::default();
        assert_eq!(components.report().status, Status::Ok);
        components.set("qdrant", Ok("1.16".to_owned()));
        components.set("postgres", Err("connection refused".to_owned()));
        let report = components.report();
        assert_eq!((report.status, components.is_ready()), (Status::Degraded, true));
        assert_eq!(report.reasons, ["postgres is down: connection refused"]);

        components.hold("relay", "nothing was confirmed for 61 s");
        assert!(!components.is_ready());
        assert_eq!(components.report().status, Status::NotReady);
        components.release("relay");
        components.set("postgres", Ok("answers".to_owned()));
        assert_eq!(components.report().status, Status::Ok);
    }

    #[test]
    fn since_is_when_it_changed() {
        let components = Components::default();
        components.set("redis", Err("one".to_owned()));
        components.lock().components.values_mut().next().unwrap().since_unix_s = 7;
        components.set("redis", Err("two".to_owned()));
        let component = components.report().components.remove(0);
        assert_eq!((component.since_unix_s, component.detail.as_str()), (7, "two"));
        components.set("redis", Ok(String::new()));
        assert_ne!(components.report().components[0].since_unix_s, 7);
    }
}
