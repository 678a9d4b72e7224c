//! What a request must be. The one place that knows, with the field names of the proto.

use std::collections::HashMap;

use prost_types::{Struct, Value as ProtoValue, value::Kind};
use serde_json::{Map, Number, Value};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};
use uuid::Uuid;
use waybill_api::ingestion::v1::{MediaType as ProtoMediaType, PutSourceRequest, SourceState as ProtoState};
use waybill_domain::{ContentHash, MediaType, ProjectId, ProjectName, SourceState};
use waybill_runtime::status;
use waybill_storage::sources::{RequestKey, SourceKey};

use crate::{
    acknowledge::{Acknowledge, Waits},
    chunk::MAX_TITLE_BYTES,
};

const MAX_URI_BYTES: usize = 2_048;
const MAX_REQUEST_ID_BYTES: usize = 128;

/// Metadata goes into every point of the source: kept small.
const MAX_METADATA_BYTES: usize = 16 * 1_024;

/// Filters of a search name a path into the metadata; nobody names one of this length.
const MAX_METADATA_DEPTH: usize = 16;

/// Up to here a number in a double is exact, and is stored as an integer if it is one.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

/// What is wrong with a request, field by field.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Violations(Vec<(String, String)>);

impl Violations {
    pub(crate) fn add(&mut self, field: &str, description: impl Into<String>) {
        self.0.push((field.to_owned(), description.into()));
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Refuses the request if anything is wrong with it.
    pub(crate) fn check(self) -> Result<(), Status> {
        match self.0.as_slice() {
            [] => Ok(()),
            [(field, description)] => Err(status::invalid_argument(field, description)),
            all => {
                let message = all
                    .iter()
                    .map(|(field, description)| format!("{field}: {description}"))
                    .collect::<Vec<_>>()
                    .join("; ");
                let fields =
                    all.iter().map(|(field, description)| FieldViolation::new(field, description)).collect::<Vec<_>>();
                let mut details = ErrorDetails::with_bad_request(fields);
                details.set_error_info("INVALID_FIELD", status::ERROR_DOMAIN, HashMap::new());
                Err(Status::with_error_details(Code::InvalidArgument, message, details))
            }
        }
    }
}

/// A put that was checked, all but its body.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Header {
    pub(crate) project: ProjectName,
    pub(crate) uri: String,
    pub(crate) given_title: Option<String>,
    pub(crate) media_type: MediaType,
    pub(crate) metadata: Value,
    pub(crate) request_id: Option<String>,
    pub(crate) job_id: Option<Uuid>,
    pub(crate) acknowledge: Acknowledge,
}

/// A put that was checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Put {
    pub(crate) project: ProjectName,
    pub(crate) key: SourceKey,
    pub(crate) body: String,
    pub(crate) acknowledge: Acknowledge,
}

impl Header {
    /// Checks all of a request but its body. `prefix` goes in front of the fields' names; without
    /// `waits`, the request may ask for none.
    pub(crate) fn check(request: &PutSourceRequest, prefix: &str, waits: Option<Waits>) -> Result<Self, Status> {
        let mut violations = Violations::default();
        let header = Self::read(request, prefix, waits, &mut violations);
        violations.check()?;
        // Without a violation there is a header; this is for the type.
        header.ok_or_else(|| status::internal("a request without violations was not read"))
    }

    fn read(
        request: &PutSourceRequest,
        prefix: &str,
        waits: Option<Waits>,
        violations: &mut Violations,
    ) -> Option<Self> {
        let field = |name: &str| format!("{prefix}{name}");
        let project = project_name(&field("project"), &request.project, violations);
        uri(&field("uri"), &request.uri, violations);
        text(&field("title"), &request.title, MAX_TITLE_BYTES, violations);
        text(&field("request_id"), &request.request_id, MAX_REQUEST_ID_BYTES, violations);
        let media_type = media_type(&field("media_type"), request.media_type, violations);
        let metadata = metadata(&field("metadata"), request.metadata.as_ref(), violations);
        let job_id = job_id(&field("job_id"), &request.job_id, violations);
        let acknowledge = Acknowledge::read(request, prefix, waits, violations);
        Some(Self {
            acknowledge: acknowledge?,
            project: project?,
            uri: request.uri.clone(),
            given_title: Some(request.title.clone()).filter(|title| !title.trim().is_empty()),
            media_type: media_type?,
            metadata: metadata?,
            request_id: Some(request.request_id.clone()).filter(|id| !id.is_empty()),
            job_id,
        })
    }

    /// Checks the body and makes the put. `chunker` names how it will be cut.
    pub(crate) fn with_body(self, body: Vec<u8>, prefix: &str, max_bytes: usize, chunker: &str) -> Result<Put, Status> {
        let field = format!("{prefix}body");
        if body.len() > max_bytes {
            return Err(body_too_large(&field, Some(body.len()), max_bytes));
        }
        let content_hash = ContentHash::of(&body);
        let body = readable_body(body).map_err(|wrong| status::invalid_argument(field, wrong))?;
        let request = self.request_id.map(|id| {
            let mut asked = vec![
                serde_json::json!(self.uri),
                serde_json::json!(self.given_title),
                serde_json::json!(self.media_type),
                self.metadata.clone(),
                serde_json::json!(content_hash.to_string()),
            ];
            // Another promise is another request: the answer of a put that may not be indexed yet
            // is none for one that must be. Otherwise the mode says only when to answer.
            if matches!(self.acknowledge, Acknowledge::AllOrNothing(_)) {
                asked.push("all_or_nothing".into());
            }
            let asked = serde_json::Value::Array(asked);
            RequestKey { id, fingerprint: *ContentHash::of(asked.to_string()).as_bytes() }
        });
        let key = SourceKey {
            project_id: ProjectId::derive(&self.project),
            uri: self.uri,
            given_title: self.given_title,
            media_type: self.media_type,
            metadata: self.metadata,
            content_hash,
            chunker: chunker.to_owned(),
            request,
            job_id: self.job_id,
            // Set when it is known how long the call may take.
            provisional: None,
        };
        Ok(Put { project: self.project, key, body, acknowledge: self.acknowledge })
    }
}

fn readable_body(body: Vec<u8>) -> Result<String, String> {
    if body.is_empty() {
        return Err("is empty: there is nothing to store".to_owned());
    }
    let body = String::from_utf8(body).map_err(|error| {
        format!("is not UTF-8 at byte {}: convert it, or send text only", error.utf8_error().valid_up_to())
    })?;
    if let Some(at) = body.find('\0') {
        return Err(format!("has U+0000 at byte {at}, which cannot be stored: remove it"));
    }
    if body.trim().is_empty() {
        return Err("is nothing but white space".to_owned());
    }
    Ok(body)
}

/// Refuses a body for its size, which may not be known to its end.
pub(crate) fn body_too_large(field: &str, bytes: Option<usize>, max_bytes: usize) -> Status {
    let size = bytes.map_or_else(|| "is larger than".to_owned(), |bytes| format!("has {bytes} bytes, which is over"));
    let description = format!(
        "{size} the limit of {max_bytes} bytes (ingestion.max_body_bytes): part the document, or raise the limit"
    );
    let mut details = ErrorDetails::with_bad_request_violation(field, &description);
    details.set_error_info("BODY_TOO_LARGE", status::ERROR_DOMAIN, HashMap::new());
    Status::with_error_details(Code::ResourceExhausted, format!("{field}: {description}"), details)
}

/// Checks a project's name.
pub(crate) fn project_name(field: &str, name: &str, violations: &mut Violations) -> Option<ProjectName> {
    name.parse().map_err(|error: waybill_domain::InvalidName| violations.add(field, error.to_string())).ok()
}

/// Checks a uri.
pub(crate) fn uri(field: &str, uri: &str, violations: &mut Violations) {
    if uri.is_empty() {
        violations.add(field, format!("is empty: must have 1 to {MAX_URI_BYTES} bytes"));
    }
    text(field, uri, MAX_URI_BYTES, violations);
}

/// Checks the beginning of a uri, which may be empty.
pub(crate) fn uri_prefix(prefix: &str, violations: &mut Violations) {
    text("uri_prefix", prefix, MAX_URI_BYTES, violations);
}

fn text(field: &str, text: &str, max_bytes: usize, violations: &mut Violations) {
    if text.len() > max_bytes {
        violations.add(field, format!("has {} bytes: must have {max_bytes} at most", text.len()));
    }
    if text.contains('\0') {
        violations.add(field, "has U+0000, which cannot be stored: remove it");
    }
}

fn job_id(field: &str, id: &str, violations: &mut Violations) -> Option<Uuid> {
    if id.is_empty() {
        return None;
    }
    let read = Uuid::try_parse(id);
    if read.is_err() {
        let shown: String = id.chars().take(80).collect();
        violations.add(field, format!("{shown:?} is no UUID: make one for a run of puts, or leave it out"));
    }
    read.ok()
}

fn media_type(field: &str, value: i32, violations: &mut Violations) -> Option<MediaType> {
    match ProtoMediaType::try_from(value) {
        Ok(ProtoMediaType::Text) => Some(MediaType::Text),
        Ok(ProtoMediaType::Markdown) => Some(MediaType::Markdown),
        Ok(ProtoMediaType::Html) => Some(MediaType::Html),
        Ok(ProtoMediaType::Unspecified) | Err(_) => {
            violations.add(
                field,
                format!("is {value}: must be MEDIA_TYPE_TEXT (1), MEDIA_TYPE_MARKDOWN (2) or MEDIA_TYPE_HTML (3)"),
            );
            None
        }
    }
}

/// Checks the state that a listing filters by; unspecified is none.
pub(crate) fn state_filter(value: i32, violations: &mut Violations) -> Option<SourceState> {
    match ProtoState::try_from(value) {
        Ok(ProtoState::Unspecified) => None,
        Ok(ProtoState::Received) => Some(SourceState::Received),
        Ok(ProtoState::Chunked) => Some(SourceState::Chunked),
        Ok(ProtoState::Extracting) => Some(SourceState::Extracting),
        Ok(ProtoState::Indexed) => Some(SourceState::Indexed),
        Ok(ProtoState::Failed) => Some(SourceState::Failed),
        Err(_) => {
            violations.add("state", format!("is {value}: must be a SourceState, 0 to 5"));
            None
        }
    }
}

fn metadata(field: &str, metadata: Option<&Struct>, violations: &mut Violations) -> Option<Value> {
    let value = match metadata.map_or_else(|| Ok(Map::new()), |metadata| object(metadata, 1)) {
        Ok(map) => Value::Object(map),
        Err(wrong) => {
            violations.add(field, wrong);
            return None;
        }
    };
    let bytes = value.to_string().len();
    if bytes > MAX_METADATA_BYTES {
        violations.add(field, format!("has {bytes} bytes as JSON: must have {MAX_METADATA_BYTES} at most"));
    }
    Some(value)
}

fn object(fields: &Struct, depth: usize) -> Result<Map<String, Value>, String> {
    fields.fields.iter().map(|(key, value)| Ok((stored(key)?, json(value, depth)?))).collect()
}

fn json(value: &ProtoValue, depth: usize) -> Result<Value, String> {
    if depth > MAX_METADATA_DEPTH {
        return Err(format!("is nested deeper than {MAX_METADATA_DEPTH}"));
    }
    Ok(match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(bool)) => Value::Bool(*bool),
        Some(Kind::StringValue(string)) => Value::String(stored(string)?),
        Some(Kind::NumberValue(number)) => Value::Number(number_of(*number)?),
        Some(Kind::ListValue(list)) => {
            Value::Array(list.values.iter().map(|value| json(value, depth + 1)).collect::<Result<_, _>>()?)
        }
        Some(Kind::StructValue(fields)) => Value::Object(object(fields, depth + 1)?),
    })
}

fn stored(text: &str) -> Result<String, String> {
    if text.contains('\0') {
        return Err("has U+0000, which cannot be stored: remove it".to_owned());
    }
    Ok(text.to_owned())
}

#[expect(clippy::cast_possible_truncation, reason = "checked to be an integer that a double holds exactly")]
fn number_of(number: f64) -> Result<Number, String> {
    // A Struct knows doubles only; 3 is to be found by a filter on 3, not on 3.0.
    if number.fract() == 0.0 && number.abs() <= MAX_EXACT {
        return Ok(Number::from(number as i64));
    }
    Number::from_f64(number).ok_or_else(|| format!("has the number {number}, which JSON has not"))
}
