use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// How much a new latency counts in the smoothed one.
const SMOOTHING: f64 = 0.2;

/// How many latencies the smoothed one is made of before it is judged.
const MIN_LATENCIES: u32 = 5;

/// How fast the best latency is forgotten, for each result. Without this a server that
/// became slower for good would be held at the minimum for ever.
const FORGETTING: f64 = 0.01;

/// How a limit on concurrent calls adapts.
#[derive(Debug, Clone, PartialEq)]
pub struct AimdConfig {
    /// The lowest limit.
    pub min: usize,
    /// The highest limit.
    pub max: usize,
    /// The limit at the start.
    pub start: usize,
    /// The share of timeouts in the window above which the limit is cut.
    pub timeout_ratio: f64,
    /// How many results the window holds.
    pub window: usize,
    /// How long after a cut there is neither another one nor growth.
    pub cooldown: Duration,
    /// How many times the best smoothed latency is too slow.
    pub latency_factor: f64,
}

impl Default for AimdConfig {
    fn default() -> Self {
        Self {
            min: 1,
            max: 64,
            start: 4,
            timeout_ratio: 0.1,
            window: 20,
            cooldown: Duration::from_secs(2),
            latency_factor: 3.0,
        }
    }
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With an answer.
    Ok {
        /// How long it took.
        latency: Duration,
    },
    /// Without an answer in time.
    Timeout,
    /// With the request to slow down.
    Throttled,
    /// With another error, which says nothing about the load.
    Error,
}

/// A limit on concurrent calls that grows by addition and falls by halves.
#[derive(Debug, Clone)]
pub struct Aimd {
    config: AimdConfig,
    limit: usize,
    /// How many calls succeeded with all places taken, since the limit last changed.
    successes: usize,
    /// Whether each of the last results was a timeout.
    window: VecDeque<bool>,
    last_cut: Option<Instant>,
    smoothed: Option<f64>,
    latencies: u32,
    best: Option<f64>,
}

impl Aimd {
    /// Starts at the configured limit. Bounds that cross are read as `min`.
    #[must_use]
    pub fn new(mut config: AimdConfig) -> Self {
        config.min = config.min.max(1);
        config.max = config.max.max(config.min);
        config.window = config.window.max(1);
        Self {
            limit: config.start.clamp(config.min, config.max),
            successes: 0,
            window: VecDeque::with_capacity(config.window),
            last_cut: None,
            smoothed: None,
            latencies: 0,
            best: None,
            config,
        }
    }

    /// Returns how many calls may be under way.
    #[must_use]
    pub const fn limit(&self) -> usize {
        self.limit
    }

    /// Takes a result in. `in_flight` is how many calls were under way, this one included:
    /// a success proves nothing about a limit that is not used up.
    pub fn on_result(&mut self, now: Instant, outcome: Outcome, in_flight: usize) {
        if self.window.len() == self.config.window {
            self.window.pop_front();
        }
        self.window.push_back(outcome == Outcome::Timeout);
        let overloaded = match outcome {
            Outcome::Ok { latency } => self.is_slow(latency.as_secs_f64()),
            Outcome::Timeout => self.timeout_ratio() > self.config.timeout_ratio,
            Outcome::Throttled => true,
            Outcome::Error => false,
        };
        if self.cools_down(now) {
            return;
        }
        if overloaded {
            self.cut(now);
        } else if matches!(outcome, Outcome::Ok { .. }) && in_flight >= self.limit {
            self.successes += 1;
            if self.successes >= self.limit && self.limit < self.config.max {
                self.limit += 1;
                self.successes = 0;
            }
        }
    }

    /// Whether the last cut has yet to show its effect: what comes in now was mostly sent
    /// before it.
    fn cools_down(&self, now: Instant) -> bool {
        self.last_cut.is_some_and(|cut| now.saturating_duration_since(cut) < self.config.cooldown)
    }

    fn cut(&mut self, now: Instant) {
        self.limit = (self.limit / 2).max(self.config.min);
        self.successes = 0;
        self.last_cut = Some(now);
        // The same results must not lead to a second cut.
        self.window.clear();
        self.smoothed = None;
        self.latencies = 0;
    }

    /// Measured against a full window, so that one timeout at the start is no overload.
    #[expect(clippy::cast_precision_loss, reason = "a window is small")]
    fn timeout_ratio(&self) -> f64 {
        let timeouts = self.window.iter().filter(|timeout| **timeout).count();
        timeouts as f64 / self.config.window as f64
    }

    /// Takes a latency in and says whether the smoothed one is too far above the best.
    fn is_slow(&mut self, latency: f64) -> bool {
        let smoothed = self.smoothed.map_or(latency, |old| old + SMOOTHING * (latency - old));
        self.smoothed = Some(smoothed);
        self.latencies = self.latencies.saturating_add(1);
        if self.latencies < MIN_LATENCIES {
            return false;
        }
        let best = self.best.map_or(smoothed, |best| smoothed.min(best + FORGETTING * (smoothed - best)));
        self.best = Some(best);
        smoothed > best * self.config.latency_factor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn ok(millis: u64) -> Outcome {
        Outcome::Ok { latency: Duration::from_millis(millis) }
    }

    /// Feeds results one second apart, with all places taken.
    fn feed(aimd: &mut Aimd, now: &mut Instant, outcome: Outcome, count: usize) {
        for _ in 0..count {
            *now += SECOND;
            aimd.on_result(*now, outcome, aimd.limit());
        }
    }

    #[test]
    fn grows_by_one_for_each_full_round_up_to_the_maximum() {
        let mut aimd = Aimd::new(AimdConfig { max: 6, ..AimdConfig::default() });
        let mut now = Instant::now();
        feed(&mut aimd, &mut now, ok(100), 3);
        assert_eq!(aimd.limit(), 4);
        feed(&mut aimd, &mut now, ok(100), 1);
        assert_eq!(aimd.limit(), 5);
        feed(&mut aimd, &mut now, ok(100), 5);
        assert_eq!(aimd.limit(), 6);
        feed(&mut aimd, &mut now, ok(100), 100);
        assert_eq!(aimd.limit(), 6);
    }

    #[test]
    fn does_not_grow_while_places_are_free() {
        let mut aimd = Aimd::new(AimdConfig::default());
        let now = Instant::now();
        for _ in 0..100 {
            aimd.on_result(now, ok(100), 3);
        }
        assert_eq!(aimd.limit(), 4);
    }

    #[test]
    fn falls_when_timeouts_pass_the_ratio_and_recovers() {
        let mut aimd = Aimd::new(AimdConfig { start: 16, ..AimdConfig::default() });
        let mut now = Instant::now();
        // Two of twenty are the bound itself.
        feed(&mut aimd, &mut now, Outcome::Timeout, 2);
        assert_eq!(aimd.limit(), 16);
        feed(&mut aimd, &mut now, Outcome::Timeout, 1);
        assert_eq!(aimd.limit(), 8);
        feed(&mut aimd, &mut now, Outcome::Timeout, 300);
        assert_eq!(aimd.limit(), 1);
        feed(&mut aimd, &mut now, ok(100), 300);
        assert!(aimd.limit() > 16, "{}", aimd.limit());
    }

    #[test]
    fn timeouts_that_left_the_window_are_forgotten() {
        let mut aimd = Aimd::new(AimdConfig::default());
        let now = Instant::now();
        for _ in 0..10 {
            aimd.on_result(now, Outcome::Timeout, 1);
            for _ in 0..19 {
                aimd.on_result(now, ok(100), 1);
            }
        }
        assert_eq!(aimd.limit(), 4);
    }

    #[test]
    fn is_cut_at_most_once_in_a_cooldown() {
        let mut aimd = Aimd::new(AimdConfig { start: 64, ..AimdConfig::default() });
        let now = Instant::now();
        for _ in 0..10 {
            aimd.on_result(now, Outcome::Throttled, 64);
        }
        assert_eq!(aimd.limit(), 32);
        aimd.on_result(now + 2 * SECOND, Outcome::Throttled, 32);
        assert_eq!(aimd.limit(), 16);
    }

    #[test]
    fn does_not_grow_in_a_cooldown() {
        let mut aimd = Aimd::new(AimdConfig { start: 2, ..AimdConfig::default() });
        let now = Instant::now();
        aimd.on_result(now, Outcome::Throttled, 2);
        for _ in 0..10 {
            aimd.on_result(now + SECOND, ok(100), 2);
        }
        assert_eq!(aimd.limit(), 1);
    }

    #[test]
    fn falls_when_answers_become_slow_and_lives_with_a_server_that_stays_slow() {
        let mut aimd = Aimd::new(AimdConfig { start: 8, max: 8, ..AimdConfig::default() });
        let mut now = Instant::now();
        feed(&mut aimd, &mut now, ok(100), 20);
        assert_eq!(aimd.limit(), 8);
        feed(&mut aimd, &mut now, ok(2_000), 4);
        assert!(aimd.limit() < 8, "{}", aimd.limit());
        feed(&mut aimd, &mut now, ok(2_000), 400);
        assert_eq!(aimd.limit(), 8);
    }

    #[test]
    fn other_errors_leave_the_limit() {
        let mut aimd = Aimd::new(AimdConfig::default());
        feed(&mut aimd, &mut Instant::now(), Outcome::Error, 100);
        assert_eq!(aimd.limit(), 4);
    }

    #[test]
    fn bounds_that_make_no_sense_are_mended() {
        let aimd = Aimd::new(AimdConfig { min: 0, max: 0, start: 9, window: 0, ..AimdConfig::default() });
        assert_eq!(aimd.limit(), 1);
    }
}
