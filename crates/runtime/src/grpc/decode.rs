use tonic::{Code, Status};
use tonic_types::ErrorDetails;

use crate::status::build;

/// What tonic 0.14 and prost 0.14 write; an integration test holds them to it.
const TOO_LARGE: &str = "decoded message length too large: ";
const TOO_LARGE_DECOMPRESSED: &str = "exceeded while decompressing message";
const MALFORMED: &str = "failed to decode Protobuf message: ";
const MISSING: &str = "Missing request message.";
const CUT_SHORT: &str = "Unexpected EOF decoding stream.";
const BAD_FRAME: &str = "protocol error: received message with ";

/// Returns what to answer in place of tonic's own status for a request it couldn't read, or
/// `None` if the status is none of those. `limit_key` is the configuration key of the limit.
pub(crate) fn rewrite(status: &Status, limit_key: Option<&str>) -> Option<Status> {
    let message = status.message();
    // A status with details is one of ours, however its text begins.
    if !status.details().is_empty() {
        return None;
    }
    match status.code() {
        Code::OutOfRange => {
            let (_, sizes) = message.split_once(TOO_LARGE)?;
            Some(too_large(sizes, limit_key))
        }
        Code::ResourceExhausted if message.contains(TOO_LARGE_DECOMPRESSED) => {
            Some(too_large("larger than the limit after decompression", limit_key))
        }
        Code::Internal => {
            if let Some(cause) = message.strip_prefix(MALFORMED) {
                return Some(malformed(cause));
            }
            let framing = message == MISSING || message == CUT_SHORT || message.starts_with(BAD_FRAME);
            framing.then(|| {
                let text = format!("the request is not a whole gRPC message: {message}");
                build(Code::InvalidArgument, "MALFORMED_MESSAGE", text, ErrorDetails::new())
            })
        }
        _ => None,
    }
}

fn too_large(sizes: &str, limit_key: Option<&str>) -> Status {
    let raise = match limit_key {
        Some(key) => format!("raise `{key}` in the server's configuration"),
        None => "raise the limit in the server's configuration".to_owned(),
    };
    let text = format!("the message is too large: {sizes}; send it in smaller parts or {raise}");
    let details = ErrorDetails::with_quota_failure_violation("message size", sizes);
    build(Code::ResourceExhausted, "MESSAGE_TOO_LARGE", text, details)
}

/// `cause` is prost's: `Inner.field: Message.field: what is wrong`.
fn malformed(cause: &str) -> Status {
    let (path, what) = field_path(cause);
    if path.is_empty() {
        let text = format!("the request is not a valid Protobuf message: {what}");
        return build(Code::InvalidArgument, "MALFORMED_MESSAGE", text, ErrorDetails::new());
    }
    let text = format!("{path}: {what} (in {cause})");
    let details = ErrorDetails::with_bad_request_violation(path, what);
    build(Code::InvalidArgument, "MALFORMED_MESSAGE", text, details)
}

/// Splits prost's chain, which runs from the inside out, into the path of field names from
/// the outside in (`item.uri`), and what is wrong there.
fn field_path(cause: &str) -> (String, &str) {
    let mut rest = cause;
    let mut fields = Vec::new();
    while let Some((step, after)) = rest.split_once(": ") {
        let Some((message, field)) = step.split_once('.') else {
            break;
        };
        let is_name = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !is_name(message) || !is_name(field) {
            break;
        }
        fields.push(field);
        rest = after;
    }
    fields.reverse();
    (fields.join("."), rest)
}
