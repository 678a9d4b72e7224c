//! How a line looks. Each line inside a call, a delivery or the work on a request names the
//! trace, the span and the request, however deep it is and whatever is filtered.

use std::fmt;

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, TraceContextExt};
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::registry::LookupSpan;

use crate::trace::RequestId;

/// One JSON object a line: `timestamp`, `level`, `target`, `message`, the line's own fields, and
/// inside a call `trace_id`, `span_id` and `request_id`.
#[derive(Debug, Clone, Copy, Default)]
pub struct JsonLines;

/// Lines for people, with `request_id` and `trace_id` at the end inside a call.
#[derive(Debug, Clone, Copy, Default)]
pub struct HumanLines;

/// Where a line was written, as far as it is inside anything.
#[derive(Default)]
struct Place {
    span: Option<SpanContext>,
    request: Option<RequestId>,
}

impl Place {
    fn here() -> Self {
        // The span that was entered last is active here, see `tracing_opentelemetry`.
        let context = Context::current();
        let span = context.span().span_context().clone();
        Self { span: span.is_valid().then_some(span), request: context.get::<RequestId>().cloned() }
    }
}

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut timestamp = String::new();
        SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
        let mut line = Fields(Map::new());
        line.put("timestamp", timestamp);
        line.put("level", event.metadata().level().as_str());
        line.put("target", event.metadata().target());
        event.record(&mut line);
        // Some libraries name their events in place of a message.
        let name = line.0.get("name").cloned().unwrap_or_else(|| event.metadata().name().into());
        line.0.entry("message").or_insert(name);
        let place = Place::here();
        if let Some(span) = place.span {
            line.put("trace_id", span.trace_id().to_string());
            line.put("span_id", span.span_id().to_string());
        }
        if let Some(request) = place.request {
            line.put("request_id", request.as_str());
        }
        writeln!(writer, "{}", Value::Object(line.0))
    }
}

impl<S, N> FormatEvent<S, N> for HumanLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = *event.metadata().level();
        let (colour, plain) = if writer.has_ansi_escapes() { (colour(level), "\x1b[0m") } else { ("", "") };
        SystemTime.format_time(&mut writer)?;
        write!(writer, " {colour}{level:>5}{plain} ")?;
        context.field_format().format_fields(writer.by_ref(), event)?;
        let place = Place::here();
        if let Some(request) = place.request {
            write!(writer, " request_id={request}")?;
        }
        if let Some(span) = place.span {
            write!(writer, " trace_id={}", span.trace_id())?;
        }
        writeln!(writer)
    }
}

const fn colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        Level::DEBUG => "\x1b[34m",
        Level::TRACE => "\x1b[35m",
    }
}

/// A line's fields.
struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, name: &str, value: impl Into<Value>) {
        self.0.insert(name.to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field.name(), value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field.name(), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field.name(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field.name(), value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field.name(), format!("{value:?}"));
    }
}
