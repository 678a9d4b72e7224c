use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::BreakerState;

/// Rates are averaged over this span.
const WINDOW: Duration = Duration::from_secs(10);

/// What an engine has done since it started. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Stats(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    confirmed_total: u64,
    in_flight: usize,
    delayed: usize,
    breaker: BreakerState,
    is_paused: bool,
    last_error: String,
    lanes: u32,
    lanes_due: u32,
    /// Since when something waits to be confirmed and nothing was.
    waiting_since: Option<Instant>,
    throttled_at: Option<Instant>,
    /// Confirmations of the last [`WINDOW`], in steps of a second at the most.
    recent: VecDeque<(Instant, u64)>,
}

/// A reading of [`Stats`].
#[derive(Debug, Clone, PartialEq)]
pub struct StatsReading {
    /// Keys confirmed since the start.
    pub confirmed_total: u64,
    /// Keys confirmed a second, over the last ten.
    pub confirmed_per_second: f64,
    /// Keys being delivered.
    pub in_flight: usize,
    /// Keys that were refused and wait for another try, as far as this engine remembers them.
    pub delayed: usize,
    /// Whether the sink is tried.
    pub breaker: BreakerState,
    /// Whether an operator has stopped the sink.
    pub is_paused: bool,
    /// The last error, empty after a success.
    pub last_error: String,
    /// Lanes that are held.
    pub lanes: u32,
    /// Lanes that this engine should hold, as many as are its fair share.
    pub lanes_due: u32,
    /// How long there has been something to confirm, and nothing was confirmed. Zero while it is
    /// paused.
    pub waiting: Duration,
    /// When the sink asked to be left alone last.
    pub throttled: Option<Instant>,
}

/// What an engine is at, at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Observed {
    pub(crate) in_flight: usize,
    pub(crate) delayed: usize,
    pub(crate) breaker: BreakerState,
    pub(crate) is_paused: bool,
    /// Whether there is anything to be confirmed, as far as the engine knows.
    pub(crate) has_work: bool,
    pub(crate) lanes: u32,
}

impl Stats {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the figures.
    #[must_use]
    pub fn read(&self) -> StatsReading {
        let mut inner = self.lock();
        inner.forget_old();
        let recent: u64 = inner.recent.iter().map(|(_, count)| count).sum();
        #[expect(clippy::cast_precision_loss, reason = "a rate is rounded anyway")]
        StatsReading {
            confirmed_total: inner.confirmed_total,
            confirmed_per_second: recent as f64 / WINDOW.as_secs_f64(),
            in_flight: inner.in_flight,
            delayed: inner.delayed,
            breaker: inner.breaker,
            is_paused: inner.is_paused,
            last_error: inner.last_error.clone(),
            lanes: inner.lanes,
            lanes_due: inner.lanes_due,
            waiting: inner.waiting_since.map(|since| since.elapsed()).unwrap_or_default(),
            throttled: inner.throttled_at,
        }
    }

    pub(crate) fn confirmed(&self, count: usize) {
        let mut inner = self.lock();
        let now = Instant::now();
        let count = count as u64;
        inner.confirmed_total += count;
        inner.last_error.clear();
        if count > 0 {
            inner.waiting_since = inner.waiting_since.map(|_| now);
        }
        match inner.recent.back_mut() {
            Some((at, recent)) if now.saturating_duration_since(*at) < Duration::from_secs(1) => *recent += count,
            _ => inner.recent.push_back((now, count)),
        }
        inner.forget_old();
    }

    pub(crate) fn observe(&self, now: &Observed) {
        let mut inner = self.lock();
        (inner.in_flight, inner.delayed, inner.breaker) = (now.in_flight, now.delayed, now.breaker);
        (inner.is_paused, inner.lanes) = (now.is_paused, now.lanes);
        if now.has_work && !now.is_paused {
            inner.waiting_since.get_or_insert_with(Instant::now);
        } else {
            inner.waiting_since = None;
        }
    }

    pub(crate) fn share(&self, lanes_due: u32) {
        self.lock().lanes_due = lanes_due;
    }

    pub(crate) fn throttled(&self) {
        self.lock().throttled_at = Some(Instant::now());
    }

    pub(crate) fn error(&self, message: String) {
        self.lock().last_error = message;
    }
}

impl Inner {
    fn forget_old(&mut self) {
        let now = Instant::now();
        while self.recent.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > WINDOW) {
            self.recent.pop_front();
        }
    }
}
