use std::time::{Duration, Instant};

/// When a breaker opens, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakerConfig {
    /// How many failures in a row open it.
    pub failures: u32,
    /// How long no call is let through then.
    pub open_for: Duration,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self { failures: 5, open_for: Duration::from_secs(60) }
    }
}

/// What a breaker does with calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// Lets them through.
    Closed,
    /// Holds them back.
    Open,
    /// Has let one through and waits for its result.
    HalfOpen,
}

/// Keeps calls from a server that fails, and tries it again with a single one.
#[derive(Debug, Clone)]
pub struct Breaker {
    config: BreakerConfig,
    state: BreakerState,
    failures: u32,
    /// When the next call is let through, unless closed.
    retry_at: Option<Instant>,
}

impl Breaker {
    /// Starts closed.
    #[must_use]
    pub const fn new(config: BreakerConfig) -> Self {
        Self { config, state: BreakerState::Closed, failures: 0, retry_at: None }
    }

    /// Says whether a call may be made now. A yes may be the one probe, so ask only for a
    /// call that is made, and report its result.
    pub fn may_call(&mut self, now: Instant) -> bool {
        let Some(retry_at) = self.retry_at else { return true };
        if now < retry_at {
            return false;
        }
        self.state = BreakerState::HalfOpen;
        // A probe whose result never comes must not hold the others back for ever.
        self.retry_at = Some(now + self.config.open_for);
        true
    }

    /// Takes a success in. While open it is one of a call made before and changes nothing.
    pub const fn on_success(&mut self) {
        if matches!(self.state, BreakerState::Open) {
            return;
        }
        self.state = BreakerState::Closed;
        self.failures = 0;
        self.retry_at = None;
    }

    /// Takes a failure in. While open it is one of a call made before and changes nothing.
    pub fn on_failure(&mut self, now: Instant) {
        let opens = match self.state {
            BreakerState::Open => false,
            BreakerState::HalfOpen => true,
            BreakerState::Closed => {
                self.failures = self.failures.saturating_add(1);
                self.failures >= self.config.failures
            }
        };
        if opens {
            self.state = BreakerState::Open;
            self.failures = 0;
            self.retry_at = Some(now + self.config.open_for);
        }
    }

    /// Returns the state. An open breaker stays so until it is asked for a call.
    #[must_use]
    pub const fn state(&self) -> BreakerState {
        self.state
    }

    /// Returns when the next call is let through; `None` if one is let through now.
    #[must_use]
    pub const fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN_FOR: Duration = Duration::from_secs(60);

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::new(BreakerConfig::default());
        for _ in 0..5 {
            assert!(breaker.may_call(now));
            breaker.on_failure(now);
        }
        breaker
    }

    #[test]
    fn opens_after_failures_in_a_row() {
        let now = Instant::now();
        let mut breaker = Breaker::new(BreakerConfig::default());
        for _ in 0..10 {
            for _ in 0..4 {
                breaker.on_failure(now);
            }
            breaker.on_success();
        }
        assert_eq!(breaker.state(), BreakerState::Closed);
        let mut breaker = opened(now);
        assert_eq!(breaker.state(), BreakerState::Open);
        assert_eq!(breaker.retry_at(), Some(now + OPEN_FOR));
        assert!(!breaker.may_call(now + OPEN_FOR - Duration::from_millis(1)));
    }

    #[test]
    fn half_open_lets_exactly_one_through() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let later = now + OPEN_FOR;
        assert!(breaker.may_call(later));
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        for _ in 0..10 {
            assert!(!breaker.may_call(later));
        }
        breaker.on_success();
        assert_eq!((breaker.state(), breaker.retry_at()), (BreakerState::Closed, None));
        assert!(breaker.may_call(later) && breaker.may_call(later));
    }

    #[test]
    fn a_failed_probe_opens_it_again() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let later = now + OPEN_FOR;
        assert!(breaker.may_call(later));
        breaker.on_failure(later);
        assert_eq!(breaker.state(), BreakerState::Open);
        assert!(!breaker.may_call(later + OPEN_FOR / 2));
        assert!(breaker.may_call(later + OPEN_FOR));
    }

    #[test]
    fn a_lost_probe_is_followed_by_another() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert!(breaker.may_call(now + OPEN_FOR));
        assert!(breaker.may_call(now + 2 * OPEN_FOR));
        assert!(!breaker.may_call(now + 2 * OPEN_FOR));
    }

    #[test]
    fn late_results_leave_an_open_breaker() {
        let now = Instant::now();
        let mut breaker = opened(now);
        breaker.on_success();
        breaker.on_failure(now + OPEN_FOR / 2);
        assert_eq!((breaker.state(), breaker.retry_at()), (BreakerState::Open, Some(now + OPEN_FOR)));
    }
}
