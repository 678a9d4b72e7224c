use std::{path::PathBuf, time::Duration};

use waybill_domain::ErrorClass;

/// Why a model could not be made ready, or could not embed.
///
/// Never carries a text that was to be embedded, nor a key.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
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
    /// A file of a local model is missing or not what it should be.
    #[error("load model from {}: {problem}", path.display())]
    Load {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, and what to do about it.
        problem: String,
    },
    /// A local model failed on its input.
    #[error("run local model: {0}")]
    Inference(String),
    /// The local model's threads have gone.
    #[error("local model has stopped")]
    Stopped,
    /// The server could not be reached, broke off, or said that it cannot serve now.
    #[error("{provider} server unavailable: {reason}")]
    Unavailable {
        /// `openai` or `tei`.
        provider: &'static str,
        /// What happened.
        reason: String,
    },
    /// The server did not answer in time.
    #[error("{provider} server gave no answer within {timeout_ms} ms")]
    Timeout {
        /// `openai` or `tei`.
        provider: &'static str,
        /// The limit that passed.
        timeout_ms: u64,
    },
    /// The server asked to slow down.
    #[error("{provider} server is throttling")]
    Throttled {
        /// `openai` or `tei`.
        provider: &'static str,
        /// How long it asked to wait, clamped; `None` if it did not say.
        retry_after: Option<Duration>,
    },
    /// The server refused the request as it is.
    #[error("{provider} server refused with status {status}: {message}")]
    Rejected {
        /// `openai` or `tei`.
        provider: &'static str,
        /// The HTTP status, 4xx.
        status: u16,
        /// What the server said, shortened.
        message: String,
    },
    /// The server's answer breaks the protocol or does not fit the configuration.
    #[error("{provider} server sent an unusable answer: {problem}")]
    BadAnswer {
        /// `openai` or `tei`.
        provider: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl ModelError {
    /// Says what the failure means for what comes next.
    #[must_use]
    pub const fn class(&self) -> ErrorClass {
        match self {
            Self::Config { .. } | Self::Load { .. } | Self::Rejected { .. } | Self::BadAnswer { .. } => {
                ErrorClass::Permanent
            }
            Self::Throttled { .. } => ErrorClass::Throttled,
            Self::Inference(_) | Self::Stopped | Self::Unavailable { .. } | Self::Timeout { .. } => {
                ErrorClass::Transient
            }
        }
    }

    /// Returns how long the server asked to wait, if it did.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
