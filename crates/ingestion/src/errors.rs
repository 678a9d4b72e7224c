//! From what went wrong to a status that says what to do.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt;
use waybill_api::ingestion::v1 as proto;
use waybill_domain::{ErrorClass, ProjectName};
use waybill_runtime::status;
use waybill_storage::{StorageError, sources::PutError};

use crate::service::Refusal;

/// The JSON object that goes with the outbox rows of this call.
pub(crate) use waybill_runtime::trace::headers_as_json as outbox_headers;

/// When to try again after Postgres was away or busy.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// When to try a source again that is provisional, at the soonest: one whose time is up is
/// taken back within seconds.
const PROVISIONAL_RETRY_MIN: Duration = Duration::from_secs(1);

/// Makes the status of a failure in storage. Logs it: the answer names no table and no host.
pub(crate) fn storage(error: &StorageError) -> Status {
    match error.class() {
        ErrorClass::Permanent => status::internal(error),
        class => {
            tracing::warn!(%error, class = class.as_str(), "storage is unavailable");
            status::from_class(class, "the database is unavailable or busy: try again", Some(RETRY_AFTER))
        }
    }
}

/// Makes the status of a put that was not done. `prefix` goes in front of the fields' names.
pub(crate) fn refusal(refusal: &Refusal, project: &ProjectName, request_id: Option<&str>, prefix: &str) -> Status {
    match refusal {
        Refusal::Put(PutError::NoProject) => no_project(project, &format!("{prefix}project")),
        Refusal::Put(PutError::RequestIdReused) => {
            let id = request_id.unwrap_or_default();
            let description =
                format!("{id:?} was used for another request within a day: choose a new one for each request");
            status::invalid_argument(format!("{prefix}request_id"), description)
        }
        Refusal::Put(PutError::Exists) => status::failed_precondition(
            "SOURCE_EXISTS",
            format!(
                "{prefix}uri: the source exists, and ACKNOWLEDGE_ALL_OR_NOTHING makes new ones only: change it with ACKNOWLEDGE_INDEXED or ACKNOWLEDGE_ACCEPTED, or delete it first"
            ),
        ),
        // Passes by itself, so not FAILED_PRECONDITION, which tells callers not to try again.
        Refusal::Put(PutError::Provisional { left }) => status::aborted(
            "SOURCE_PROVISIONAL",
            format!(
                "{prefix}uri: another put with ACKNOWLEDGE_ALL_OR_NOTHING has written this source and waits for its confirmation: nothing was written, try again when that is decided, in {} ms at the latest",
                left.as_millis()
            ),
            Some((*left).max(PROVISIONAL_RETRY_MIN)),
        ),
        Refusal::Put(PutError::Storage(error)) => storage(error),
        Refusal::Storage(error) => storage(error),
        Refusal::NothingToRead => status::invalid_argument(
            format!("{prefix}body"),
            "has nothing to read: all of it is markup, navigation or scripts",
        ),
        Refusal::TooManyChunks(error) => status::invalid_argument(format!("{prefix}body"), error.to_string()),
        Refusal::Cut(error) => status::internal(error),
    }
}

/// Makes NOT_FOUND for a project, with the field that names it.
pub(crate) fn no_project(name: &ProjectName, field: &str) -> Status {
    let mut details = status::not_found("project", name).get_error_details();
    let message = format!("{field}: there is no project {:?}: create it first", name.as_str());
    details.add_bad_request_violation(field, &message);
    Status::with_error_details(Code::NotFound, message, details)
}

/// Puts a status into the answer to one item of a stream.
pub(crate) fn of_item(status: &Status) -> proto::PutError {
    let field = status
        .get_details_bad_request()
        .and_then(|request| request.field_violations.into_iter().next())
        .map(|violation| violation.field)
        .unwrap_or_default();
    let retry_after = status.get_details_retry_info().and_then(|info| info.retry_delay?.try_into().ok());
    proto::PutError { code: status.code().into(), message: status.message().to_owned(), field, retry_after }
}
