//! gRPC statuses that a caller can act on: every one carries a `google.rpc.ErrorInfo` whose
//! reason is stable, and the detail that says which field or how long to wait.

use std::collections::HashMap;
use std::fmt::Display;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use waybill_domain::ErrorClass;

/// The domain of every `ErrorInfo` that Waybill sends.
pub const ERROR_DOMAIN: &str = "waybill";

/// Makes a status with an `ErrorInfo`: `reason` is UPPER_SNAKE and part of the API.
#[must_use]
pub fn with_reason(code: Code, reason: &str, message: impl Into<String>) -> Status {
    build(code, reason, message.into(), ErrorDetails::new())
}

/// Makes a status whose `ErrorInfo` carries `metadata`: what a program needs to go on.
#[must_use]
pub fn with_metadata<const N: usize>(
    code: Code,
    reason: &str,
    message: impl Into<String>,
    metadata: [(&str, String); N],
) -> Status {
    let metadata: HashMap<_, _> = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let details = ErrorDetails::with_error_info(reason, ERROR_DOMAIN, metadata);
    Status::with_error_details(code, message, details)
}

/// Makes ABORTED: the call lost against another, or took its own work back.
#[must_use]
pub fn aborted(reason: &str, description: impl Into<String>, retry_after: Option<Duration>) -> Status {
    build(Code::Aborted, reason, description.into(), retry_details(retry_after))
}

/// Makes INVALID_ARGUMENT for one field: `field` is its path in the request (`items[3].uri`),
/// `description` says what is wrong and what would be right.
#[must_use]
pub fn invalid_argument(field: impl Into<String>, description: impl Into<String>) -> Status {
    let (field, description) = (field.into(), description.into());
    let message = format!("{field}: {description}");
    let details = ErrorDetails::with_bad_request_violation(field, description);
    build(Code::InvalidArgument, "INVALID_FIELD", message, details)
}

/// Makes NOT_FOUND for the thing `name` of the kind `resource` ("project", "source").
#[must_use]
pub fn not_found(resource: &str, name: impl Display) -> Status {
    let name = name.to_string();
    let message = format!("there is no {resource} {name:?}");
    let details = ErrorDetails::with_resource_info(resource, name, "", message.clone());
    build(Code::NotFound, "NOT_FOUND", message, details)
}

/// Makes ALREADY_EXISTS for the thing `name` of the kind `resource`.
#[must_use]
pub fn already_exists(resource: &str, name: impl Display) -> Status {
    let name = name.to_string();
    let message = format!("{resource} {name:?} exists already");
    let details = ErrorDetails::with_resource_info(resource, name, "", message.clone());
    build(Code::AlreadyExists, "ALREADY_EXISTS", message, details)
}

/// Makes FAILED_PRECONDITION: the request is sound, the state of the system forbids it.
#[must_use]
pub fn failed_precondition(reason: &str, description: impl Into<String>) -> Status {
    with_reason(Code::FailedPrecondition, reason, description)
}

/// Makes RESOURCE_EXHAUSTED, with RetryInfo if waiting helps.
#[must_use]
pub fn resource_exhausted(reason: &str, description: impl Into<String>, retry_after: Option<Duration>) -> Status {
    build(Code::ResourceExhausted, reason, description.into(), retry_details(retry_after))
}

/// Makes UNAVAILABLE, with RetryInfo if it is known how long it lasts.
#[must_use]
pub fn unavailable(reason: &str, description: impl Into<String>, retry_after: Option<Duration>) -> Status {
    build(Code::Unavailable, reason, description.into(), retry_details(retry_after))
}

/// Logs `error` and makes INTERNAL without its text, which may name hosts, tables or data.
/// The request id of the answer finds the log line.
#[must_use]
pub fn internal(error: impl Display) -> Status {
    tracing::error!(%error, "call failed inside");
    with_reason(Code::Internal, "INTERNAL", "internal error, the server's log has it under this request id")
}

/// Returns the code of a failure that a caller can do nothing about but wait, by its class.
///
/// `Unknown` is UNAVAILABLE too: our operations are idempotent, so the caller should do it again.
#[must_use]
pub const fn code_for(class: ErrorClass) -> Code {
    match class {
        ErrorClass::Transient | ErrorClass::Unknown => Code::Unavailable,
        ErrorClass::Throttled => Code::ResourceExhausted,
        ErrorClass::Permanent => Code::Internal,
    }
}

/// Makes the status of a failed dependency from its class. `message` goes to the caller, so it
/// names the part that failed and no more.
#[must_use]
pub fn from_class(class: ErrorClass, message: impl Into<String>, retry_after: Option<Duration>) -> Status {
    let reason = match class {
        ErrorClass::Transient => "DEPENDENCY_UNAVAILABLE",
        ErrorClass::Throttled => "DEPENDENCY_THROTTLED",
        ErrorClass::Permanent => "INTERNAL",
        ErrorClass::Unknown => "OUTCOME_UNKNOWN",
    };
    build(code_for(class), reason, message.into(), retry_details(retry_after))
}

/// Turns tonic's own status for a request it couldn't read into one that says whose fault it is.
///
/// tonic answers a message over the limit with OUT_OF_RANGE and a malformed one with INTERNAL.
/// The first becomes RESOURCE_EXHAUSTED, the second INVALID_ARGUMENT with prost's field path.
/// Any other status comes back as it was.
///
/// `grpc::serve` does this to every answer; a handler needs it for an error of
/// `Streaming::message()` that it reports itself, such as in an answer per item.
#[must_use]
pub fn from_decode(status: Status) -> Status {
    crate::grpc::decode::rewrite(&status, None).unwrap_or(status)
}

fn retry_details(retry_after: Option<Duration>) -> ErrorDetails {
    match retry_after {
        Some(delay) => ErrorDetails::with_retry_info(Some(delay)),
        None => ErrorDetails::new(),
    }
}

pub(crate) fn build(code: Code, reason: &str, message: String, mut details: ErrorDetails) -> Status {
    details.set_error_info(reason, ERROR_DOMAIN, HashMap::new());
    Status::with_error_details(code, message, details)
}
