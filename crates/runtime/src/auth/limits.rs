use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tonic::Status;

use crate::status;

/// What a key may use up in this process; `None`: no limit of the key's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeyLimits {
    /// Calls that begin in a second, on average; six seconds' worth at once.
    pub requests_per_second: Option<NonZeroU32>,
    /// Calls at a time, streams among them.
    pub concurrent_calls: Option<u32>,
    /// Bytes of one message to the server.
    pub max_message_bytes: Option<u64>,
}

impl KeyLimits {
    /// Returns these limits, and those of `other` where there is none here.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            requests_per_second: self.requests_per_second.or(other.requests_per_second),
            concurrent_calls: self.concurrent_calls.or(other.concurrent_calls),
            max_message_bytes: self.max_message_bytes.or(other.max_message_bytes),
        }
    }
}

/// What a key is using up.
#[derive(Debug)]
pub(super) struct Usage {
    limits: KeyLimits,
    rate: Option<DefaultDirectRateLimiter>,
    calls: Arc<AtomicU32>,
}

/// A call that counts, until this is dropped.
#[derive(Debug)]
pub(crate) struct Running(Option<Arc<AtomicU32>>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(calls) = &self.0 {
            calls.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Running {
    pub(crate) const fn uncounted() -> Self {
        Self(None)
    }
}

impl Usage {
    pub(super) fn new(limits: KeyLimits) -> Self {
        // Six seconds' worth: a client that starts with a burst is no abuse.
        let quota = |rate: NonZeroU32| Quota::per_second(rate).allow_burst(rate.saturating_mul(BURST_SECONDS));
        let rate = limits.requests_per_second.map(|rate| RateLimiter::direct(quota(rate)));
        Self { limits, rate, calls: Arc::default() }
    }

    /// Returns where a key's use is counted from now on, given where it was: in the same place, or,
    /// if its limits have changed, in one that knows of the calls under way.
    pub(super) fn next(before: Option<&Arc<Self>>, limits: KeyLimits) -> Arc<Self> {
        match before {
            Some(usage) if usage.limits == limits => Arc::clone(usage),
            Some(usage) => Arc::new(Self { calls: Arc::clone(&usage.calls), ..Self::new(limits) }),
            None => Arc::new(Self::new(limits)),
        }
    }

    /// Says whether calls are under way.
    pub(super) fn has_calls(&self) -> bool {
        self.calls.load(Ordering::Relaxed) > 0
    }

    pub(super) fn limits(&self) -> KeyLimits {
        self.limits
    }

    /// Lets a call begin. Returns what holds its place, or what to answer and why.
    pub(super) fn admit(&self) -> Result<Running, (Status, &'static str)> {
        let calls = self.calls.fetch_add(1, Ordering::Relaxed);
        // Counted from here on, also if it is refused below.
        let running = Running(Some(Arc::clone(&self.calls)));
        if let Some(most) = self.limits.concurrent_calls
            && calls >= most
        {
            let description = format!("this key has {most} calls under way, as many as it may: wait for one to end");
            let status = status::resource_exhausted("TOO_MANY_CALLS", description, Some(Duration::from_millis(100)));
            return Err((status, "concurrency"));
        }
        if let Some(rate) = &self.rate
            && let Err(until) = rate.check()
        {
            let wait = until.wait_time_from(DefaultClock::default().now());
            let most = self.limits.requests_per_second.map_or(0, NonZeroU32::get);
            let description = format!("this key may begin {most} calls a second: wait {} ms", wait.as_millis().max(1));
            return Err((status::resource_exhausted("RATE_LIMITED", description, Some(wait)), "rate"));
        }
        Ok(running)
    }
}

/// A burst is this many seconds of the rate.
const BURST_SECONDS: NonZeroU32 = match NonZeroU32::new(6) {
    Some(seconds) => seconds,
    None => NonZeroU32::MIN,
};

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn a_call_counts_until_it_ends() {
        let usage = Usage::new(KeyLimits { concurrent_calls: Some(2), ..KeyLimits::default() });
        let (first, _second) = (usage.admit().unwrap(), usage.admit().unwrap());
        let (status, reason) = usage.admit().unwrap_err();
        assert_eq!((status.code(), reason), (Code::ResourceExhausted, "concurrency"));
        drop(first);
        usage.admit().unwrap();
    }

    #[test]
    fn calls_over_the_rate_are_told_how_long_to_wait() {
        use tonic_types::StatusExt as _;
        let rate = NonZeroU32::new(1);
        let usage = Usage::new(KeyLimits { requests_per_second: rate, ..KeyLimits::default() });
        let refused = (0..20).find_map(|_| usage.admit().err());
        let (status, reason) = refused.unwrap();
        assert_eq!(reason, "rate");
        assert!(status.get_details_retry_info().unwrap().retry_delay.unwrap() > Duration::ZERO);
    }
}
