use std::sync::OnceLock;

use futures::StreamExt;
use tokio_stream::once;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};
use tonic_types::StatusExt;
use waybill_runtime::telemetry::{self, Format, TelemetryGuard};
use waybill_runtime::trace::Propagate;

use crate::echo::{LONG, SERVICE, echo, start};

#[tokio::test]
async fn a_sane_request_id_is_kept_and_another_replaced() {
    let server = start(LONG).await;
    let with_id = |id: &'static str| {
        let mut request = Request::new(echo("id"));
        request.metadata_mut().insert("x-request-id", id.parse().expect("ascii"));
        request
    };

    let kept = server.request(with_id("import-7:a.b_c")).await.expect("call");
    assert_eq!(kept.metadata().get("x-request-id").expect("id"), "import-7:a.b_c");
    assert_eq!(kept.into_inner().text, "import-7:a.b_c");

    let replaced = server.request(with_id("two words")).await.expect("call");
    let id = replaced.metadata().get("x-request-id").expect("id").to_str().expect("ascii").to_owned();
    assert_eq!(id.len(), 36, "a UUID, not {id}");
    assert_eq!(replaced.into_inner().text, id);

    let made = server.unary(echo("fail")).await.expect_err("fails");
    assert!(made.metadata().contains_key("x-request-id"), "an error has an id too: {made:?}");
    server.stop().await;
}

#[tokio::test]
async fn an_internal_error_keeps_its_text_inside() {
    let server = start(LONG).await;
    let status = server.unary(echo("fail")).await.expect_err("fails");
    assert_eq!(status.code(), Code::Internal);
    assert!(!status.message().contains("10.0.0.7"), "{}", status.message());
    let details = status.get_error_details();
    let info = details.error_info().expect("ErrorInfo");
    assert_eq!((info.reason.as_str(), info.domain.as_str()), ("INTERNAL", "waybill"));
    server.stop().await;
}

#[tokio::test]
async fn a_panic_is_the_calls_end_and_not_the_servers() {
    let server = start(LONG).await;
    let status = server.unary(echo("panic")).await.expect_err("panics");
    assert_eq!(status.code(), Code::Internal);
    assert!(!status.message().contains("asked to panic"), "{}", status.message());

    let mut answers = server.stream(futures::stream::iter([echo("one"), echo("panic")])).await.expect("stream");
    // Whether "one" still goes out before the panic is tonic's batching.
    let status = loop {
        match answers.next().await.expect("a status at the end") {
            Ok(answer) => assert_eq!(answer.text, "one"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Internal);

    assert_eq!(server.unary(echo("still here")).await.expect("call").into_inner().text, "still here");
    server.stop().await;
}

#[tokio::test]
async fn an_unknown_method_is_unimplemented() {
    let server = start(LONG).await;
    let mut client = tonic::client::Grpc::new(server.channel.clone());
    client.ready().await.expect("connect");
    let path = http::uri::PathAndQuery::from_static("/test.v1.Nothing/Here");
    let codec = tonic_prost::ProstCodec::<crate::echo::Echo, crate::echo::Echo>::default();
    let status = client.unary(Request::new(echo("")), path, codec).await.expect_err("unknown");
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.message().contains("no method /test.v1.Nothing/Here"), "{}", status.message());
    server.stop().await;
}

#[tokio::test]
async fn health_follows_what_the_service_says() {
    let server = start(LONG).await;
    let mut client = HealthClient::new(server.channel.clone());
    let request = || HealthCheckRequest { service: SERVICE.to_owned() };
    let overall = client.check(HealthCheckRequest::default()).await.expect("check").into_inner();
    assert_eq!(overall.status(), ServingStatus::Serving);
    assert_eq!(client.check(request()).await.expect("check").into_inner().status(), ServingStatus::Serving);
    server.health.set(SERVICE, false).await;
    assert_eq!(client.check(request()).await.expect("check").into_inner().status(), ServingStatus::NotServing);
    server.health.set(SERVICE, true).await;
    assert_eq!(client.check(request()).await.expect("check").into_inner().status(), ServingStatus::Serving);
    server.stop().await;
}

#[tokio::test]
async fn reflection_lists_the_services() {
    let server = start(LONG).await;
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(server.channel.clone());
    let mut answers = client.server_reflection_info(once(request)).await.expect("call").into_inner();
    let answer: ServerReflectionResponse = answers.next().await.expect("one").expect("ok");
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("not a list: {answer:?}");
    };
    let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&"grpc.health.v1.Health"), "{names:?}");
    server.stop().await;
}

static TELEMETRY: OnceLock<TelemetryGuard> = OnceLock::new();

#[tokio::test]
async fn a_trace_and_a_request_id_travel_through_the_call_and_on() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let _telemetry = TELEMETRY.get_or_init(|| telemetry::init("test", Format::Json).expect("the only subscriber"));
    let server = start(LONG).await;
    let mut request = Request::new(echo("headers"));
    let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    request.metadata_mut().insert("traceparent", parent.parse().expect("ascii"));
    request.metadata_mut().insert("x-request-id", "abc".parse().expect("ascii"));
    let seen = server.request(request).await.expect("call").into_inner().text;
    assert!(seen.contains(TRACE), "same trace: {seen}");
    assert!(!seen.contains("00f067aa0ba902b7"), "our own span is the parent: {seen}");
    assert!(seen.contains(r#"("x-request-id", "abc")"#), "{seen}");

    // A client inside a span sends the span's trace by itself.
    let span = tracing::info_span!("outer");
    let sent = tracing::Instrument::instrument(
        async {
            let headers = waybill_runtime::trace::headers();
            let request = tonic::service::Interceptor::call(&mut Propagate, Request::new(())).expect("intercept");
            (headers, request)
        },
        span,
    )
    .await;
    let (_, parent) = sent.0.iter().find(|(name, _)| name == "traceparent").expect("a trace");
    assert_eq!(sent.1.metadata().get("traceparent").expect("set").to_str().expect("ascii"), parent);
    server.stop().await;
}
