use std::time::{Duration, Instant};

const SECONDS_PER_MINUTE: f64 = 60.0;

/// What rounding may take from a bucket without anybody having to wait.
const EPSILON: f64 = 1e-6;

/// A limit on requests and tokens per minute: two token buckets, full at the start.
#[derive(Debug, Clone)]
pub struct RateLimit {
    requests: Bucket,
    tokens: Bucket,
    paused_until: Option<Instant>,
}

#[derive(Debug, Clone)]
struct Bucket {
    /// What it holds when full and what flows in over a minute; 0 if unlimited.
    per_minute: f64,
    level: f64,
    filled_at: Option<Instant>,
}

impl RateLimit {
    /// Makes a limit; 0 means none.
    #[must_use]
    pub const fn new(requests_per_minute: u64, tokens_per_minute: u64) -> Self {
        Self { requests: Bucket::new(requests_per_minute), tokens: Bucket::new(tokens_per_minute), paused_until: None }
    }

    /// Takes one request of `tokens` tokens, or nothing. A request of more tokens than a
    /// minute has is let through by a full bucket: it would wait for ever otherwise.
    ///
    /// # Errors
    /// How long to wait before asking again.
    pub fn try_take(&mut self, now: Instant, tokens: u64) -> Result<(), Duration> {
        let pause = self.paused_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        if pause.is_zero() {
            self.paused_until = None;
        }
        self.requests.fill(now);
        self.tokens.fill(now);
        let needed = self.tokens.at_most(tokens);
        let wait = pause.max(self.requests.wait(1.0)).max(self.tokens.wait(needed));
        if !wait.is_zero() {
            return Err(wait);
        }
        self.requests.take(1.0);
        self.tokens.take(needed);
        Ok(())
    }

    /// Lets nothing through until then, as a server's `Retry-After` asks. A shorter pause
    /// doesn't end a longer one.
    pub fn pause_until(&mut self, until: Instant) {
        self.paused_until = Some(self.paused_until.map_or(until, |before| before.max(until)));
    }
}

impl Bucket {
    #[expect(clippy::cast_precision_loss, reason = "a limit needs no more than 53 bits")]
    const fn new(per_minute: u64) -> Self {
        Self { per_minute: per_minute as f64, level: per_minute as f64, filled_at: None }
    }

    fn is_limited(&self) -> bool {
        self.per_minute > 0.0
    }

    #[expect(clippy::cast_precision_loss, reason = "a request's tokens are far below 2^53")]
    fn at_most(&self, amount: u64) -> f64 {
        (amount as f64).min(self.per_minute)
    }

    fn fill(&mut self, now: Instant) {
        let passed = self.filled_at.map_or(Duration::ZERO, |before| now.saturating_duration_since(before));
        let inflow = passed.as_secs_f64() * self.per_minute / SECONDS_PER_MINUTE;
        self.level = (self.level + inflow).min(self.per_minute);
        // Callers may come with times out of order; what was filled once is not filled again.
        self.filled_at = Some(self.filled_at.map_or(now, |before| before.max(now)));
    }

    fn wait(&self, amount: f64) -> Duration {
        let missing = amount - self.level;
        if !self.is_limited() || missing <= EPSILON {
            return Duration::ZERO;
        }
        // Rounded up, or the caller would be back a moment too early.
        let millis = (missing * SECONDS_PER_MINUTE / self.per_minute * 1e3).ceil();
        Duration::from_secs_f64(millis / 1e3)
    }

    fn take(&mut self, amount: f64) {
        if self.is_limited() {
            self.level -= amount;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_wait_for_their_minute() {
        let now = Instant::now();
        let mut limit = RateLimit::new(60, 0);
        for _ in 0..60 {
            assert_eq!(limit.try_take(now, 1_000_000), Ok(()));
        }
        let wait = limit.try_take(now, 0).unwrap_err();
        assert_eq!(wait, Duration::from_secs(1));
        assert!(limit.try_take(now + wait / 2, 0).is_err());
        assert_eq!(limit.try_take(now + wait, 0), Ok(()));
        assert!(limit.try_take(now + wait, 0).is_err());
    }

    #[test]
    fn tokens_wait_and_a_refusal_takes_no_request() {
        let now = Instant::now();
        let mut limit = RateLimit::new(2, 6_000);
        assert_eq!(limit.try_take(now, 5_000), Ok(()));
        assert_eq!(limit.try_take(now, 2_000), Err(Duration::from_secs(10)));
        assert_eq!(limit.try_take(now, 1_000), Ok(()));
    }

    #[test]
    fn a_request_larger_than_the_bucket_passes_when_it_is_full() {
        let now = Instant::now();
        let mut limit = RateLimit::new(0, 100);
        assert_eq!(limit.try_take(now, 1_000), Ok(()));
        let wait = limit.try_take(now, 1_000).unwrap_err();
        assert_eq!(wait, Duration::from_secs(60));
        assert_eq!(limit.try_take(now + wait, u64::MAX), Ok(()));
    }

    #[test]
    fn a_wait_is_always_long_enough() {
        let mut now = Instant::now();
        for per_minute in [1, 7, 59, 997, 1_000_003] {
            let mut limit = RateLimit::new(per_minute, per_minute * 13);
            for _ in 0..200 {
                if let Err(wait) = limit.try_take(now, 17) {
                    now += wait;
                    assert_eq!(limit.try_take(now, 17), Ok(()), "{per_minute}");
                }
            }
        }
    }

    #[test]
    fn a_pause_holds_everything() {
        let now = Instant::now();
        let mut limit = RateLimit::new(0, 0);
        assert_eq!(limit.try_take(now, u64::MAX), Ok(()));
        limit.pause_until(now + Duration::from_secs(30));
        limit.pause_until(now + Duration::from_secs(10));
        assert_eq!(limit.try_take(now, 1), Err(Duration::from_secs(30)));
        assert_eq!(limit.try_take(now + Duration::from_secs(30), 1), Ok(()));
        assert_eq!(limit.try_take(now, 1), Ok(()));
    }
}
