use std::{fmt, time::Duration};

use waybill_domain::ErrorClass;

use crate::{Usage, limits::MAX_ANSWER_BYTES};

/// How much of an unusable answer is kept, in characters.
const MAX_EXCERPT_CHARS: usize = 300;

/// Why a provider gave no extraction.
///
/// Its text never carries a chunk, an answer or a key.
#[derive(Debug, thiserror::Error)]
pub enum LlmError {
    /// A configuration value cannot be used.
    #[error("{key}: {problem}; {fix}")]
    Config {
        /// The key, relative to the provider's section.
        key: &'static str,
        /// What is wrong with its value.
        problem: String,
        /// What to do about it.
        fix: &'static str,
    },
    /// The server did not answer in time.
    #[error("llm server gave no answer in time")]
    Timeout,
    /// The server asked to slow down.
    #[error("llm server is throttling")]
    Throttled {
        /// How long it asked to wait, clamped; `None` if it did not say.
        retry_after: Option<Duration>,
    },
    /// The server could not be reached, broke off, or said that it cannot serve now.
    #[error("llm server unavailable: {0}")]
    Unavailable(String),
    /// The server refused the request as it is.
    #[error("llm server refused with status {status}: {message}")]
    Refused {
        /// The HTTP status, 4xx.
        status: u16,
        /// What the server said, shortened.
        message: String,
    },
    /// The answer arrived whole and cannot be used, not even after a repair.
    #[error("llm server sent an unusable answer: {problem}")]
    BadAnswer {
        /// What is wrong with it.
        problem: String,
        /// How it begins.
        excerpt: Excerpt,
        /// What was used up all the same, over all requests of the call.
        usage: Usage,
    },
    /// An answer arrived that could not be used, and asking for a better one failed.
    #[error("{error}")]
    Repair {
        /// Why that failed.
        error: Box<LlmError>,
        /// What the first answer used up.
        usage: Usage,
    },
    /// The answer is longer than [`MAX_ANSWER_BYTES`].
    #[error("llm server sent an answer longer than {MAX_ANSWER_BYTES} bytes")]
    TooLarge,
}

impl LlmError {
    /// Makes the error for an answer that cannot be used; keeps its beginning.
    #[must_use]
    pub fn bad_answer(problem: impl Into<String>, answer: &str) -> Self {
        Self::BadAnswer { problem: problem.into(), excerpt: Excerpt::of(answer), usage: Usage::default() }
    }

    /// Adds what was used up before the call failed.
    pub(crate) fn after(self, spent: Usage) -> Self {
        match self {
            Self::BadAnswer { problem, excerpt, usage } => {
                Self::BadAnswer { problem, excerpt, usage: usage.plus(spent) }
            }
            Self::Repair { error, usage } => Self::Repair { error, usage: usage.plus(spent) },
            error if spent == Usage::default() => error,
            error => Self::Repair { error: Box::new(error), usage: spent },
        }
    }

    /// Returns what the call used up although it failed; zero where the server didn't say.
    #[must_use]
    pub fn usage(&self) -> Usage {
        match self {
            Self::BadAnswer { usage, .. } | Self::Repair { usage, .. } => *usage,
            _ => Usage::default(),
        }
    }

    /// Returns what went wrong last: the error itself, or that of a repair.
    #[must_use]
    pub fn cause(&self) -> &Self {
        match self {
            Self::Repair { error, .. } => error.cause(),
            error => error,
        }
    }

    /// Says what the failure means for what comes next.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Config { .. } | Self::Refused { .. } | Self::TooLarge => ErrorClass::Permanent,
            Self::Throttled { .. } => ErrorClass::Throttled,
            Self::Repair { error, .. } => error.class(),
            // A model asked again may well write valid JSON; the attempts bound how often.
            Self::BadAnswer { .. } | Self::Timeout | Self::Unavailable(_) => ErrorClass::Transient,
        }
    }

    /// Returns how long the server asked to wait, if it did.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self.cause() {
            Self::Throttled { retry_after } => *retry_after,
            _ => None,
        }
    }

    /// Returns how the unusable answer begins, in at most 300 characters. It may repeat
    /// the chunk, so it belongs where the chunk may be read and not into a log.
    #[must_use]
    pub fn excerpt(&self) -> Option<&str> {
        match self {
            Self::BadAnswer { excerpt, .. } => Some(&excerpt.0),
            _ => None,
        }
    }
}

/// The beginning of an answer. Printed by [`LlmError::excerpt`] alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Excerpt(String);

impl Excerpt {
    /// Takes the beginning of `answer`, without control characters.
    #[must_use]
    pub fn of(answer: &str) -> Self {
        let plain = answer.chars().map(|char| if char.is_control() { ' ' } else { char });
        Self(plain.take(MAX_EXCERPT_CHARS).collect())
    }
}

impl fmt::Debug for Excerpt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Excerpt({} bytes)", self.0.len())
    }
}
