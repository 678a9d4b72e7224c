use std::time::Duration;

use tonic::{Code, Status};
use waybill_domain::ErrorClass;
use waybill_runtime::status::{
    failed_precondition, from_class, internal, invalid_argument, not_found, resource_exhausted, unavailable,
    with_reason,
};
use waybill_vectors::VectorError;

use crate::batcher::EmbedError;
use crate::search::SearchError;

/// When a search may come again that found too many waiting.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Says what a failed embedding means to the caller.
pub(super) fn of_embed(error: EmbedError) -> Status {
    let message = error.to_string();
    match error {
        EmbedError::Full { retry_after, .. } => {
            resource_exhausted("EMBEDDING_QUEUE_FULL", format!("{message}, try again later"), Some(retry_after))
        }
        EmbedError::Throttled { retry_after, .. } => resource_exhausted("MODEL_THROTTLED", message, Some(retry_after)),
        EmbedError::Unavailable { model, reason } => {
            // The reason may name hosts of ours.
            tracing::warn!(model, reason, "embedding failed");
            unavailable("MODEL_UNAVAILABLE", format!("model {model:?} is unavailable"), None)
        }
        EmbedError::Refused { .. } => invalid_argument("texts", message),
        EmbedError::Broken { .. } => internal(message),
    }
}

/// Says what a failed search means to the caller.
pub(super) fn of_search(error: SearchError) -> Status {
    match error {
        SearchError::Stale { .. } => with_reason(Code::DeadlineExceeded, "NOT_FRESH_IN_TIME", error.to_string()),
        SearchError::CollectionLost => unavailable("COLLECTION_LOST", error.to_string(), None),
        SearchError::TooManyWaiting => resource_exhausted("TOO_MANY_WAITING", error.to_string(), Some(RETRY_AFTER)),
        SearchError::UnknownProject(name) => not_found("project", name),
        SearchError::ForeignCollection { .. } => failed_precondition("MODEL_NOT_SERVED", error.to_string()),
        SearchError::Embed(EmbedError::Refused { reason, .. }) => invalid_argument("query", reason),
        SearchError::Embed(error) => of_embed(error),
        SearchError::Vectors(error @ VectorError::MetadataKey(_)) => invalid_argument("metadata", error.to_string()),
        SearchError::Vectors(error) => dependency("the vector store", error.class(), &error, error.retry_after()),
        SearchError::Storage(error) => dependency("postgres", error.class(), &error, None),
    }
}

fn dependency(
    what: &str,
    class: ErrorClass,
    error: &dyn std::error::Error,
    retry_after: Option<std::time::Duration>,
) -> Status {
    if class == ErrorClass::Permanent {
        return internal(error);
    }
    tracing::warn!(%error, %class, what, "search failed");
    // A search changes nothing, so there is no unknown outcome.
    let class = if class == ErrorClass::Unknown { ErrorClass::Transient } else { class };
    from_class(class, format!("{what} can't answer now"), retry_after)
}
