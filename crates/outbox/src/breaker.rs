use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;
use waybill_domain::Backoff;

/// Leaves a sink alone that takes nothing.
///
/// After a failure it waits, longer each time, and one delivery tries. After
/// `failures_max` in a row it is open: no delivery is begun until `open_for` has passed or a
/// probe found the sink well; then, half open, one tries. No key is blamed meanwhile and no row
/// is written.
#[derive(Debug)]
pub(crate) struct Breaker {
    failures_max: u32,
    open_for: Duration,
    backoff: Backoff,
    failures: u32,
    throttles: u32,
    last_failure: Option<Instant>,
    resumes: Instant,
    next_probe: Instant,
}

/// Whether a sink is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BreakerState {
    /// It works, or failed a few times.
    #[default]
    Closed,
    /// It is left alone.
    Open,
    /// One delivery finds out.
    HalfOpen,
}

impl BreakerState {
    /// Returns the name used in status, metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

impl Breaker {
    pub(crate) fn new(failures_max: u32, open_for: Duration, backoff: Backoff) -> Self {
        let now = Instant::now();
        Self {
            failures_max,
            open_for,
            backoff,
            failures: 0,
            throttles: 0,
            last_failure: None,
            resumes: now,
            next_probe: now,
        }
    }

    pub(crate) const fn failures(&self) -> u32 {
        self.failures
    }

    pub(crate) fn state(&self, now: Instant) -> BreakerState {
        match (self.failures >= self.failures_max, now < self.resumes) {
            (false, _) => BreakerState::Closed,
            (true, true) => BreakerState::Open,
            (true, false) => BreakerState::HalfOpen,
        }
    }

    /// Says whether a delivery may begin while `under_way` others are.
    pub(crate) fn allows(&self, now: Instant, under_way: usize) -> bool {
        now >= self.resumes && (self.failures == 0 || under_way == 0)
    }

    /// When deliveries may begin again.
    pub(crate) const fn resumes(&self) -> Instant {
        self.resumes
    }

    /// When the sink is to be asked whether it is well; `None` while it isn't left alone.
    pub(crate) fn probe_at(&self, now: Instant) -> Option<Instant> {
        (self.state(now) == BreakerState::Open).then_some(self.next_probe)
    }

    pub(crate) fn succeeded(&mut self) {
        (self.failures, self.throttles) = (0, 0);
    }

    /// A delivery that began at `began` found the sink down. Those that were under way
    /// together count once.
    pub(crate) fn failed(&mut self, began: Instant, now: Instant, rng: &mut impl Rng) {
        if self.last_failure.is_none_or(|last| began >= last) {
            self.failures = self.failures.saturating_add(1);
            self.last_failure = Some(now);
        }
        let wait = self.backoff.wait(self.failures.max(1), rng);
        self.next_probe = now + wait;
        self.resumes = now + if self.failures >= self.failures_max { self.open_for } else { wait };
    }

    /// The sink asked to be left alone, for `asked` if it said how long. It works, so this is no
    /// failure.
    pub(crate) fn throttled(&mut self, asked: Option<Duration>, longest: Duration, now: Instant, rng: &mut impl Rng) {
        self.throttles = self.throttles.saturating_add(1);
        let wait = self.backoff.wait(self.throttles, rng);
        self.resumes = self.resumes.max(now + asked.map_or(wait, |asked| asked.min(longest)));
    }

    /// What a probe of a sink that is left alone found.
    pub(crate) fn probed(&mut self, is_well: bool, now: Instant, rng: &mut impl Rng) {
        if is_well {
            self.resumes = now;
        } else {
            self.next_probe = now + self.backoff.wait(self.failures, rng);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    const OPEN_FOR: Duration = Duration::from_secs(60);

    fn breaker() -> (Breaker, StdRng) {
        let backoff = Backoff { base: Duration::from_millis(100), max: Duration::from_secs(5) };
        (Breaker::new(3, OPEN_FOR, backoff), StdRng::seed_from_u64(7))
    }

    #[test]
    fn it_opens_after_failures_in_a_row_and_tries_with_one() {
        let (mut breaker, mut rng) = breaker();
        for failures in 1..=3 {
            let began = breaker.resumes();
            breaker.failed(began, began, &mut rng);
            assert_eq!(breaker.failures(), failures);
        }
        let now = breaker.resumes() - OPEN_FOR;
        assert_eq!(breaker.state(now), BreakerState::Open);
        assert!(!breaker.allows(now, 0));
        let later = now + OPEN_FOR;
        assert_eq!(breaker.state(later), BreakerState::HalfOpen);
        assert!(breaker.allows(later, 0) && !breaker.allows(later, 1));
        breaker.succeeded();
        assert_eq!(breaker.state(later), BreakerState::Closed);
        assert!(breaker.allows(later, 4));
    }

    #[test]
    fn deliveries_that_fail_together_are_one_failure() {
        let (mut breaker, mut rng) = breaker();
        let began = Instant::now();
        for n in 1..=5 {
            breaker.failed(began, began + Duration::from_secs(n), &mut rng);
        }
        assert_eq!(breaker.failures(), 1);
    }

    #[test]
    fn a_probe_that_finds_the_sink_well_ends_the_wait() {
        let (mut breaker, mut rng) = breaker();
        for _ in 0..3 {
            let began = breaker.resumes();
            breaker.failed(began, began, &mut rng);
        }
        let now = breaker.probe_at(breaker.resumes() - OPEN_FOR).unwrap();
        breaker.probed(false, now, &mut rng);
        assert!(breaker.probe_at(now).unwrap() > now && !breaker.allows(now, 0));
        breaker.probed(true, now, &mut rng);
        assert_eq!((breaker.state(now), breaker.probe_at(now)), (BreakerState::HalfOpen, None));
    }

    #[test]
    fn throttling_waits_as_asked_and_is_no_failure() {
        let (mut breaker, mut rng) = breaker();
        let now = Instant::now();
        breaker.throttled(Some(Duration::from_secs(7)), OPEN_FOR, now, &mut rng);
        assert_eq!(breaker.resumes(), now + Duration::from_secs(7));
        breaker.throttled(Some(Duration::from_secs(7_000)), OPEN_FOR, now, &mut rng);
        assert_eq!(breaker.resumes(), now + OPEN_FOR);
        assert_eq!((breaker.failures(), breaker.state(now)), (0, BreakerState::Closed));
    }
}
