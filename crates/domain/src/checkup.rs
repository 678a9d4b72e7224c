use serde::Serialize;

/// How a thing that was looked at is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Works, and will hurt one day.
    Risk,
    /// Doesn't work.
    Bad,
}

/// One thing that `waybill doctor` has looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checkup {
    /// How it is.
    pub verdict: Verdict,
    /// What was looked at, such as "maxmemory-policy".
    pub subject: String,
    /// What was found.
    pub found: String,
    /// What to do; empty if nothing.
    pub fix: String,
}

impl Checkup {
    /// Says that something is as it should be.
    pub fn good(subject: impl Into<String>, found: impl Into<String>) -> Self {
        Self { verdict: Verdict::Good, subject: subject.into(), found: found.into(), fix: String::new() }
    }

    /// Says that something will hurt one day.
    pub fn risk(subject: impl Into<String>, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { verdict: Verdict::Risk, subject: subject.into(), found: found.into(), fix: fix.into() }
    }

    /// Says that something doesn't work.
    pub fn bad(subject: impl Into<String>, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { verdict: Verdict::Bad, subject: subject.into(), found: found.into(), fix: fix.into() }
    }

    /// Says that a clock differs by so many milliseconds from this machine's.
    pub fn clock(skew_ms: i64) -> Self {
        let found = format!("{} ms {} this machine's", skew_ms.abs(), if skew_ms < 0 { "behind" } else { "ahead of" });
        // Leases last ten seconds and go by Postgres' clock alone; expiry and lag are what people read.
        match skew_ms.abs() {
            0..=1_000 => Self::good("clock", found),
            _ => Self::risk("clock", found, "let NTP set both clocks: ages and times in logs don't agree"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_may_differ_a_little() {
        assert_eq!(Checkup::clock(-900).verdict, Verdict::Good);
        let ahead = Checkup::clock(5_000);
        assert_eq!((ahead.verdict, ahead.found.as_str()), (Verdict::Risk, "5000 ms ahead of this machine's"));
    }
}
