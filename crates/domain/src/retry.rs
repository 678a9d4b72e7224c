use std::time::Duration;

use rand::RngExt;

/// Exponential backoff with bounds and full jitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The longest wait after the first failure.
    pub base: Duration,
    /// The longest wait there is.
    pub max: Duration,
}

impl Backoff {
    /// Returns the longest wait after `attempt` failures (1 for the first).
    #[must_use]
    pub fn ceiling(&self, attempt: u32) -> Duration {
        let doublings = attempt.saturating_sub(1).min(20);
        self.base.saturating_mul(1 << doublings).min(self.max)
    }

    /// Picks a wait after `attempt` failures: between half the ceiling and the ceiling,
    /// so that many who failed together do not come back together.
    pub fn wait(&self, attempt: u32, rng: &mut impl rand::Rng) -> Duration {
        self.ceiling(attempt).mul_f64(rng.random_range(0.5..=1.0))
    }
}
