//! How lines look: each inside a call names its trace and its request. One thread per test.

use futures::StreamExt;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde_json::Value;
use tonic::Request;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use waybill_runtime::telemetry::{HumanLines, JsonLines, log_panic};
use waybill_runtime::trace;

use crate::echo::{LONG, echo, start};
use crate::logs::Lines;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn subscribe(lines: &Lines, json: bool) -> tracing::subscriber::DefaultGuard {
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let provider = SdkTracerProvider::builder().build();
    let traces = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(lines.clone());
    let layer = if json { layer.event_format(JsonLines).boxed() } else { layer.event_format(HumanLines).boxed() };
    // As in production: what is not written as a line is a span all the same.
    let subscriber = tracing_subscriber::registry()
        .with(traces.with_filter(LevelFilter::INFO))
        .with(layer.with_filter(LevelFilter::WARN));
    tracing::subscriber::set_default(subscriber)
}

async fn panic_in_a_call() {
    let server = start(LONG).await;
    let mut request = Request::new(echo("panic"));
    request.metadata_mut().insert("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01").parse().expect("ascii"));
    request.metadata_mut().insert("x-request-id", "r-7".parse().expect("ascii"));
    server.request(request).await.expect_err("panics");
    server.stop().await;
}

#[tokio::test]
async fn machines_get_ids_in_fields() {
    let lines = Lines::default();
    let _guard = subscribe(&lines, true);
    panic_in_a_call().await;
    let panicked = lines.with("handler panicked");
    assert_eq!(panicked.len(), 1, "{panicked:?}");
    let line: Value = serde_json::from_str(&panicked[0]).expect("json");
    assert_eq!((&line["trace_id"], &line["request_id"]), (&TRACE.into(), &"r-7".into()), "{line}");
    assert_eq!(line["span_id"].as_str().expect("a span").len(), 16, "{line}");
    assert_eq!((&line["level"], &line["method"]), (&"ERROR".into(), &"/test.v1.Echo/Unary".into()), "{line}");

    tracing::warn!(count = 3, ratio = 0.5, name = "by name", "outside");
    let line: Value = serde_json::from_str(&lines.with("outside")[0]).expect("json");
    assert!(line.get("trace_id").is_none() && line.get("request_id").is_none(), "{line}");
    assert_eq!((&line["count"], &line["ratio"], &line["name"]), (&3.into(), &0.5.into(), &"by name".into()), "{line}");
}

#[tokio::test]
async fn people_get_the_ids_at_the_end() {
    let lines = Lines::default();
    let _guard = subscribe(&lines, false);
    panic_in_a_call().await;
    let panicked = lines.with("handler panicked");
    assert!(panicked[0].ends_with(&format!("request_id=r-7 trace_id={TRACE}")), "{panicked:?}");
    assert!(panicked[0].contains("ERROR"), "{panicked:?}");

    tracing::warn!("outside");
    assert!(lines.with("outside")[0].ends_with("outside"), "{:?}", lines.with("outside"));
}

#[tokio::test]
async fn what_carries_on_several_requests_names_them_and_is_a_trace_of_its_own() {
    let lines = Lines::default();
    let _guard = subscribe(&lines, true);
    let span = tracing::info_span!(parent: None, "deliver");
    let of = |id: &str| format!(r#"{{"traceparent": "00-{TRACE}-b7ad6b7169203331-01", "x-request-id": "{id}"}}"#);
    let (one, two) = (of("r-1"), of("r-2"));
    trace::link(&span, [one.as_str(), two.as_str(), "{}"]);
    span.in_scope(|| tracing::warn!("refused"));
    let line: Value = serde_json::from_str(&lines.with("refused")[0]).expect("json");
    assert_eq!(line["request_id"], "r-1:r-2", "{line}");
    assert_ne!(line["trace_id"], TRACE, "{line}");
    assert!(line["trace_id"].as_str().is_some_and(|id| id.len() == 32), "{line}");
}

#[tokio::test]
async fn a_panic_is_said_with_its_place_and_without_what_it_quotes() {
    let lines = Lines::default();
    let _guard = subscribe(&lines, true);
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(log_panic));
    panic_in_a_call().await;
    let server = start(LONG).await;
    let mut answers = server.stream(futures::stream::iter([echo("panic")])).await.expect("stream");
    answers.next().await.expect("a status at the end").expect_err("panics");
    server.stop().await;
    std::panic::set_hook(before);

    let panicked = lines.with(r#""message":"panicked""#);
    assert_eq!(panicked.len(), 2, "{panicked:?}");
    assert!(panicked.iter().all(|line| line.contains("tests/it/echo.rs:")), "{panicked:?}");
    assert!(panicked[0].contains("asked to panic") && panicked[0].contains(r#""request_id":"r-7""#), "{panicked:?}");
    assert!(panicked[1].contains("left out") && lines.with("left:").is_empty(), "{:?}", lines.with(""));
}
