//! How many calls may be under way, and when: one for all workers of a process.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;
use waybill_domain::ErrorClass;
use waybill_llm::{
    LlmError,
    governor::{Aimd, AimdConfig, Breaker, BreakerConfig, BreakerState, Outcome, RateLimit},
};

use crate::config::Config;

/// How long a provider is left alone that is throttling and does not say for how long.
const THROTTLED_PAUSE: Duration = Duration::from_secs(2);

/// How often it is looked for a turn that nobody announces.
const POLL: Duration = Duration::from_millis(20);

pub(crate) struct Governor {
    state: Mutex<State>,
    in_flight: AtomicUsize,
    /// Rung when a call has ended, for one that waits.
    freed: Notify,
    pub(crate) done: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) throttled: AtomicU64,
}

struct State {
    aimd: Aimd,
    breaker: Breaker,
    rate: RateLimit,
}

/// Says what a caller has to do.
pub(crate) enum Turn {
    Call,
    Wait(Duration),
}

impl Governor {
    pub(crate) fn new(config: &Config) -> Self {
        let aimd = AimdConfig {
            min: config.concurrency_min,
            max: config.concurrency_max,
            start: config.concurrency_start,
            ..AimdConfig::default()
        };
        let breaker = BreakerConfig {
            failures: config.breaker_failures,
            open_for: Duration::from_millis(config.breaker_open_ms),
        };
        let state = State {
            aimd: Aimd::new(aimd),
            breaker: Breaker::new(breaker),
            rate: RateLimit::new(config.requests_per_minute, config.tokens_per_minute),
        };
        Self {
            state: Mutex::new(state),
            in_flight: AtomicUsize::new(0),
            freed: Notify::new(),
            done: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            throttled: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn limit(&self) -> usize {
        self.lock().aimd.limit()
    }

    pub(crate) fn breaker(&self) -> &'static str {
        match self.lock().breaker.state() {
            BreakerState::Closed => "closed",
            BreakerState::Open => "open",
            BreakerState::HalfOpen => "half_open",
        }
    }

    /// Says what the breaker does: 0 lets calls through, 1 one of them, 2 none.
    pub(crate) fn breaker_level(&self) -> u64 {
        match self.lock().breaker.state() {
            BreakerState::Closed => 0,
            BreakerState::HalfOpen => 1,
            BreakerState::Open => 2,
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Says whether a call of about `tokens` tokens may go out now. One that may has to be
    /// followed by [`Governor::ended`], or by [`Governor::abandoned`].
    pub(crate) fn turn(&self, tokens: u64) -> Turn {
        let now = Instant::now();
        let mut state = self.lock();
        if self.in_flight.load(Ordering::Relaxed) >= state.aimd.limit() {
            return Turn::Wait(POLL);
        }
        // An open breaker uses up no rate, and a rate that is used up no probe of the breaker.
        if let Some(at) = state.breaker.retry_at().filter(|at| *at > now) {
            return Turn::Wait(at - now);
        }
        if let Err(wait) = state.rate.try_take(now, tokens) {
            return Turn::Wait(wait);
        }
        if !state.breaker.may_call(now) {
            return Turn::Wait(POLL);
        }
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Turn::Call
    }

    /// Waits until a call has ended that nobody else was told of.
    pub(crate) async fn freed(&self) {
        self.freed.notified().await;
    }

    /// Takes note of how a call ended.
    pub(crate) fn ended(&self, latency: Duration, result: Result<(), &LlmError>) {
        let now = Instant::now();
        // That it was a repair is nothing to the provider's health.
        let result = result.map_err(LlmError::cause);
        let mut state = self.lock();
        let in_flight = self.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.freed.notify_one();
        let outcome = match result {
            Ok(()) => Outcome::Ok { latency },
            Err(LlmError::Timeout) => Outcome::Timeout,
            Err(error) if error.class() == ErrorClass::Throttled => Outcome::Throttled,
            Err(_) => Outcome::Error,
        };
        state.aimd.on_result(now, outcome, in_flight);
        match result {
            Ok(()) => state.breaker.on_success(),
            Err(error) if error.class() == ErrorClass::Throttled => {
                self.throttled.fetch_add(1, Ordering::Relaxed);
                // The provider is there: that it has enough is no failure.
                state.breaker.on_success();
                state.rate.pause_until(now + error.retry_after().unwrap_or(THROTTLED_PAUSE));
            }
            // A request that is refused, or an answer that can't be used, came from a provider
            // that is up.
            Err(error) if error.class() == ErrorClass::Permanent || matches!(error, LlmError::BadAnswer { .. }) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                state.breaker.on_success();
            }
            Err(_) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                state.breaker.on_failure(now);
            }
        }
    }

    /// Takes note of a call that was dropped: nothing is known of the provider.
    pub(crate) fn abandoned(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.freed.notify_one();
        self.lock().breaker.on_failure(Instant::now());
    }
}
