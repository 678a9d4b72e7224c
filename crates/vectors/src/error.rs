use std::time::Duration;

use tonic::{Code, Status};
use waybill_domain::ErrorClass;

/// Why Qdrant did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum VectorError {
    /// The configuration can't be used.
    #[error("qdrant configuration: {0}")]
    Config(String),
    /// There is no such collection or alias: never created, or wiped. Ensure it and go on.
    #[error("qdrant has no collection or alias {0:?}")]
    CollectionMissing(String),
    /// The collection exists and holds vectors of another form.
    #[error("qdrant collection {name:?} does not fit: {problem}; delete it or choose another name")]
    CollectionMismatch {
        /// The collection.
        name: String,
        /// What differs.
        problem: String,
    },
    /// The server can't be reached, or can't serve now.
    #[error("qdrant unavailable: {0}")]
    Unavailable(String),
    /// The server refuses this client: wrong key, missing right, or not a Qdrant.
    #[error("qdrant refuses this client ({code:?}): {message}; check the url and the api key")]
    Denied {
        /// What the server answered.
        code: Code,
        /// What it said.
        message: String,
    },
    /// No answer in time. A write may or may not have happened.
    #[error("no answer from qdrant within {0:?}")]
    Timeout(Duration),
    /// A write was taken but not confirmed as applied.
    #[error("qdrant took the write but did not confirm it: status {0}")]
    NotConfirmed(&'static str),
    /// The server failed inside. A write may or may not have happened.
    #[error("qdrant failed ({code:?}): {message}")]
    Failed {
        /// What the server answered.
        code: Code,
        /// What it said.
        message: String,
    },
    /// The server asked to slow down.
    #[error("qdrant is throttling")]
    Throttled {
        /// How long it asked to wait, if it said so.
        retry_after: Option<Duration>,
    },
    /// The request can't be carried out as it is.
    #[error("qdrant rejected the request ({code:?}): {message}")]
    Rejected {
        /// What the server answered.
        code: Code,
        /// What it said.
        message: String,
    },
    /// A metadata key that Qdrant's paths can't express.
    #[error("metadata key {0:?} can't be searched: it is empty or holds a quotation mark")]
    MetadataKey(String),
    /// The server's answer lacks what the protocol promises.
    #[error("unusable answer from qdrant: {0}")]
    BadAnswer(&'static str),
}

impl VectorError {
    /// Says what the failure means for a retry.
    ///
    /// `Permanent` is only what is wrong with the request itself. A wrong key or a wiped
    /// collection would fail every request alike, so it must not condemn the one at hand.
    #[must_use]
    pub const fn class(&self) -> ErrorClass {
        match self {
            Self::CollectionMissing(_)
            | Self::CollectionMismatch { .. }
            | Self::Unavailable(_)
            | Self::Denied { .. } => ErrorClass::Transient,
            Self::Timeout(_) | Self::NotConfirmed(_) | Self::Failed { .. } | Self::BadAnswer(_) => ErrorClass::Unknown,
            Self::Throttled { .. } => ErrorClass::Throttled,
            Self::Config(_) | Self::Rejected { .. } | Self::MetadataKey(_) => ErrorClass::Permanent,
        }
    }

    /// Returns how long the server asked to wait, if it did.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { retry_after } => *retry_after,
            _ => None,
        }
    }

    /// Says whether the fault is the whole store's, not that of the points in the request.
    #[must_use]
    pub const fn is_store_wide(&self) -> bool {
        !matches!(self, Self::Rejected { .. } | Self::MetadataKey(_))
    }

    /// Sorts a status; `collection` is what the request was about.
    pub(crate) fn from_status(status: &Status, collection: &str, limit: Duration) -> Self {
        let message = status.message().to_owned();
        match status.code() {
            Code::NotFound => Self::CollectionMissing(collection.to_owned()),
            Code::Unavailable => Self::Unavailable(describe(status)),
            Code::DeadlineExceeded => Self::Timeout(limit),
            Code::ResourceExhausted => Self::Throttled { retry_after: retry_after(status) },
            code @ (Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented) => {
                Self::Denied { code, message }
            }
            code @ (Code::InvalidArgument | Code::OutOfRange | Code::AlreadyExists) => Self::Rejected { code, message },
            code => Self::Failed { code, message: describe(status) },
        }
    }
}

/// Says what broke below the status too: tonic's own message is often "transport error".
fn describe(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = error.source();
    }
    text
}

/// The longest wait a server can ask for: more would be a slip of its clock.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(300);

fn retry_after(status: &Status) -> Option<Duration> {
    let seconds = status.metadata().get("retry-after")?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_RETRY_AFTER))
}
