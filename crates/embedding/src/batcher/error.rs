use std::time::Duration;

use waybill_domain::ErrorClass;
use waybill_models::ModelError;

/// Why a text has no vector. Cloned to everybody who waits for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EmbedError {
    /// The queue is full.
    #[error("the queue of model {model:?} is full")]
    Full {
        /// The model whose queue it is.
        model: String,
        /// When there may be room.
        retry_after: Duration,
    },
    /// The model's server asked to slow down, for longer than is waited here.
    #[error("the server of model {model:?} is throttling")]
    Throttled {
        /// The model.
        model: String,
        /// How long the server asked to wait.
        retry_after: Duration,
    },
    /// The model failed, and failed again.
    #[error("model {model:?} is unavailable: {reason}")]
    Unavailable {
        /// The model.
        model: String,
        /// What it said last.
        reason: String,
    },
    /// The model refuses this text.
    #[error("model {model:?} refuses the text: {reason}")]
    Refused {
        /// The model.
        model: String,
        /// What it said.
        reason: String,
    },
    /// The model can't work as it is configured.
    #[error("model {model:?} is broken: {reason}")]
    Broken {
        /// The model.
        model: String,
        /// What it said.
        reason: String,
    },
}

/// What to do about a failed call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// Wait as the server said, at no attempt's cost.
    Pause(Option<Duration>),
    /// Try again after a while.
    Retry,
    /// One of the texts is at fault: find out which.
    Split,
    /// Nothing helps.
    GiveUp,
}

impl Remedy {
    /// Chooses by what went wrong.
    pub(crate) fn of(error: &ModelError) -> Self {
        match (error.class(), error) {
            (ErrorClass::Throttled, _) => Self::Pause(error.retry_after()),
            (ErrorClass::Transient | ErrorClass::Unknown, _) => Self::Retry,
            // Bad request, too large, unprocessable: said of the input, not of the caller.
            (ErrorClass::Permanent, ModelError::Rejected { status: 400 | 413 | 422, .. }) => Self::Split,
            (ErrorClass::Permanent, _) => Self::GiveUp,
        }
    }
}
