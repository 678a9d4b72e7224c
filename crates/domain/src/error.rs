use std::fmt;

/// What a failure means for what comes next. Decided once, where the failure is first seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// It may work later: retry with backoff.
    Transient,
    /// The peer asked to slow down: retry when it said, at no attempt's cost.
    Throttled,
    /// It will never work as it is.
    Permanent,
    /// It may or may not have happened: treat it as not done and do it again.
    Unknown,
}

impl ErrorClass {
    /// Says whether doing it again can help.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        !matches!(self, Self::Permanent)
    }

    /// Returns the name used in SQL, metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Throttled => "throttled",
            Self::Permanent => "permanent",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
