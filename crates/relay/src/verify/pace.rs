//! How fast a comparison may go.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Spreads work evenly over time.
#[derive(Debug)]
pub(crate) struct Pace {
    per_second: u32,
    begun: Instant,
}

impl Pace {
    pub(crate) fn new(per_second: u32) -> Self {
        Self { per_second: per_second.max(1), begun: Instant::now() }
    }

    /// Waits until `done` entries, the work since the last call, have taken as long as they
    /// should. What took longer is not made up for.
    pub(crate) async fn wait(&mut self, done: usize) {
        sleep_until(self.due(done)).await;
        self.begun = Instant::now();
    }

    fn due(&self, done: usize) -> Instant {
        self.begun + Duration::from_secs_f64(done as f64 / f64::from(self.per_second))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_as_long_as_it_should() {
        let pace = Pace::new(1_000);
        assert_eq!(pace.due(500) - pace.begun, Duration::from_millis(500));
        assert_eq!(pace.due(0), pace.begun);
        assert_eq!(Pace::new(0).per_second, 1, "no division by zero");
    }
}
