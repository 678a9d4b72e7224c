//! Request ids and W3C trace context: into the span of a call, and out to the next process.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{SpanContext, TraceContextExt};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::metadata::{MetadataKey, MetadataMap};
use tonic::service::Interceptor;
use tonic::{Request, Status};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use uuid::Uuid;

/// The metadata key of a request id, in requests and answers.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Long enough for a UUID or a trace id with a prefix, short enough for a log line.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// Names one call in logs and answers, across services. In the extensions of every request
/// that `grpc::serve` hands to a handler.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// Makes a new id; ids sort by time.
    #[must_use]
    pub fn generate() -> Self {
        Self(Uuid::now_v7().to_string().into())
    }

    /// Takes an id from outside if it is safe to log and to send back: 1 to 128 characters
    /// of `A-Z a-z 0-9 . _ : -`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let sane = !text.is_empty()
            && text.len() <= MAX_REQUEST_ID_BYTES
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-'));
        sane.then(|| Self(text.into()))
    }

    /// Returns the id of the call that the current span belongs to, if there is one.
    #[must_use]
    pub fn current() -> Option<Self> {
        Span::current().context().get::<Self>().cloned()
    }

    /// Returns the id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Names several calls as one, as far as there is room: their ids with `:` between.
    fn of_many(ids: &[Self]) -> Option<Self> {
        let mut text = String::new();
        for id in ids {
            if text.len() + 1 + id.0.len() > MAX_REQUEST_ID_BYTES {
                break;
            }
            if !text.is_empty() {
                text.push(':');
            }
            text.push_str(&id.0);
        }
        (!text.is_empty()).then(|| Self(text.into()))
    }

    pub(crate) fn of(headers: &HeaderMap) -> Self {
        headers
            .get(REQUEST_ID)
            .and_then(|value| value.to_str().ok())
            .and_then(Self::parse)
            .unwrap_or_else(Self::generate)
    }

    pub(crate) fn header(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&self.0).ok()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Makes `span` a child of the trace that `headers` carry and the holder of `id`.
pub(crate) fn adopt(span: &Span, headers: &HeaderMap, id: &RequestId) {
    let remote = opentelemetry::global::get_text_map_propagator(|propagator| {
        propagator.extract_with_context(&Context::new(), &Headers(headers))
    });
    // Without telemetry::init there is no trace to join, as in most tests: nothing is lost.
    let _ = span.set_parent(remote.with_value(id.clone()));
}

/// Returns the headers that continue the current span's trace elsewhere: `traceparent`,
/// `tracestate` and `x-request-id`, as far as there are any. Empty without `telemetry::init`.
#[must_use]
pub fn headers() -> Vec<(String, String)> {
    let mut carrier = Pairs(Vec::new());
    let context = Span::current().context();
    opentelemetry::global::get_text_map_propagator(|propagator| propagator.inject_context(&context, &mut carrier));
    if let Some(id) = context.get::<RequestId>() {
        carrier.0.push((REQUEST_ID.as_str().to_owned(), id.to_string()));
    }
    carrier.0.retain(|(_, value)| !value.is_empty());
    carrier.0
}

/// Returns [`headers`] as a JSON object, as outbox rows carry them. `None` if there are none.
#[must_use]
pub fn headers_as_json() -> Option<String> {
    let headers = headers();
    (!headers.is_empty()).then(|| {
        let object: serde_json::Map<_, _> =
            headers.into_iter().map(|(name, value)| (name, serde_json::Value::from(value))).collect();
        serde_json::Value::Object(object).to_string()
    })
}

/// Returns the context that an outbox row's `headers` carry, and the request id; what is no such
/// object holds neither.
fn read(headers: &str) -> (SpanContext, Option<RequestId>) {
    let Ok(pairs) = serde_json::from_str::<HashMap<String, String>>(headers) else {
        return (SpanContext::empty_context(), None);
    };
    // Not the global one: what an outbox row carries is W3C whoever has started telemetry here.
    let remote = TraceContextPropagator::new().extract_with_context(&Context::new(), &pairs);
    let span = remote.span().span_context().clone();
    (span, pairs.get(REQUEST_ID.as_str()).and_then(|id| RequestId::parse(id)))
}

/// Links `span` to the traces that outbox rows' `headers` carry: what [`headers_as_json`] returned
/// where the rows were written. The span begins a trace of its own, as it may carry on many, and
/// its lines name their requests.
pub fn link<'a>(span: &Span, headers: impl IntoIterator<Item = &'a str>) {
    let mut ids: Vec<RequestId> = Vec::new();
    for headers in headers {
        let (origin, id) = read(headers);
        if origin.is_valid() {
            span.add_link(origin);
        }
        if let Some(id) = id.filter(|id| !ids.contains(id)) {
            ids.push(id);
        }
    }
    if let Some(id) = RequestId::of_many(&ids) {
        let _ = span.set_parent(Context::new().with_value(id));
    }
}

/// Returns the id of the trace that an outbox row's `headers` carry, 32 hex digits.
#[must_use]
pub fn trace_id(headers: &str) -> Option<String> {
    let (span, _) = read(headers);
    span.is_valid().then(|| span.trace_id().to_string())
}

/// Sends the current span's trace context and request id with each call of a client:
/// `SearchServiceClient::with_interceptor(channel, Propagate)`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Propagate;

impl Interceptor for Propagate {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata: &mut MetadataMap = request.metadata_mut();
        for (name, value) in headers() {
            // Set by hand for this call: that is more specific than where we happen to run.
            if metadata.contains_key(name.as_str()) {
                continue;
            }
            if let (Ok(name), Ok(value)) = (MetadataKey::from_bytes(name.as_bytes()), value.parse()) {
                metadata.insert(name, value);
            }
        }
        Ok(request)
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct Pairs(Vec<(String, String)>);

impl Injector for Pairs {
    fn set(&mut self, key: &str, value: String) {
        self.0.push((key.to_owned(), value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_read_from_what_an_outbox_row_carries() {
        let headers =
            r#"{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "x-request-id": "r1"}"#;
        assert_eq!(trace_id(headers).as_deref(), Some("0af7651916cd43dd8448eb211c80319c"));
        assert_eq!(read(headers).1, RequestId::parse("r1"));
        for none in ["", "{}", "[]", r#"{"traceparent": "x"}"#, r#"{"traceparent": 7}"#] {
            assert_eq!(trace_id(none), None, "{none}");
        }
    }

    #[test]
    fn several_requests_are_named_as_far_as_there_is_room() {
        let ids: Vec<RequestId> = (0..9).map(|_| RequestId::generate()).collect();
        let named = RequestId::of_many(&ids).unwrap();
        assert_eq!(RequestId::parse(named.as_str()).as_ref(), Some(&named), "it travels as others do");
        assert_eq!(named.as_str(), format!("{}:{}:{}", ids[0], ids[1], ids[2]));
        assert_eq!(RequestId::of_many(&ids[..1]).as_ref(), Some(&ids[0]));
        assert_eq!(RequestId::of_many(&[]), None);
    }
}
