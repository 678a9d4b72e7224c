//! What a caller hears of a request that tonic can't read.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::StreamExt;
use http_body::Frame;
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use tower::ServiceExt;
use waybill_runtime::status::from_decode;

use crate::echo::{LONG, RawEcho, RawItem, Running, echo, start, within};

fn invalid_uri() -> RawEcho {
    RawEcho { text: b"fine".to_vec(), item: Some(RawItem { uri: vec![0xc3, 0x28] }) }
}

fn assert_malformed_uri(status: &Status) {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().starts_with("item.uri: invalid string value"), "{}", status.message());
    let details = status.get_error_details();
    let violations = &details.bad_request().expect("BadRequest").field_violations;
    assert_eq!(violations[0].field, "item.uri");
    assert_eq!(details.error_info().expect("ErrorInfo").reason, "MALFORMED_MESSAGE");
}

fn assert_too_large(status: &Status, found: &str) {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let message = status.message();
    assert!(message.contains(found), "{message}");
    assert!(message.contains("the limit is: 1024 bytes"), "{message}");
    assert!(message.contains("`echo.max_message_bytes`"), "{message}");
    assert_eq!(status.get_error_details().error_info().expect("ErrorInfo").reason, "MESSAGE_TOO_LARGE");
}

#[tokio::test]
async fn invalid_utf8_names_the_field() {
    let server = start(LONG).await;
    assert_malformed_uri(&server.unary(invalid_uri()).await.expect_err("unary"));

    let good = RawEcho { text: b"good".to_vec(), item: None };
    let mut answers = server.stream(futures::stream::iter([good, invalid_uri()])).await.expect("stream");
    assert_eq!(answers.next().await.expect("first").expect("ok").text, "good");
    assert_malformed_uri(&answers.next().await.expect("second").expect_err("stream"));
    server.stop().await;
}

#[tokio::test]
async fn a_message_over_the_limit_names_limit_and_key() {
    let server = start(LONG).await;
    let large = echo(&"x".repeat(2_000));
    assert_too_large(&server.unary(large.clone()).await.expect_err("unary"), "found 2003 bytes");

    let mut answers = server.stream(futures::stream::iter([echo("good"), large])).await.expect("stream");
    assert_eq!(answers.next().await.expect("first").expect("ok").text, "good");
    assert_too_large(&answers.next().await.expect("second").expect_err("stream"), "found 2003 bytes");
    assert_eq!(server.unary(echo("still here")).await.expect("call").into_inner().text, "still here");
    server.stop().await;
}

#[tokio::test]
async fn a_claim_of_a_gigabyte_is_refused_before_it_is_sent() {
    let server = start(LONG).await;
    for method in ["Unary", "Stream"] {
        let claim = [0, 0x40, 0, 0, 0, 1, 2, 3];
        assert_too_large(&send_raw(&server, method, &claim, End::Open).await, "found 1073741824 bytes");
    }
    server.stop().await;
}

#[tokio::test]
async fn broken_framing_is_the_callers_fault() {
    let server = start(LONG).await;
    let cases: [(&[u8], &str); 3] = [
        (&[], "Missing request message"),
        (&[0, 0, 0, 0, 9, 1], "Unexpected EOF"),
        (&[7, 0, 0, 0, 0], "invalid compression flag: 7"),
    ];
    for (bytes, said) in cases {
        let status = send_raw(&server, "Unary", bytes, End::Closed).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{bytes:?}: {status:?}");
        assert!(status.message().contains(said), "{bytes:?}: {status:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_handlers_own_status_is_left_alone() {
    let server = start(LONG).await;
    let status = server.unary(echo("own internal")).await.expect_err("fails");
    assert_eq!(status.code(), Code::Internal, "{status:?}");
    server.stop().await;
}

#[test]
fn a_handler_can_translate_by_itself() {
    let malformed = Status::internal("failed to decode Protobuf message: Put.uri: invalid string value: not UTF-8");
    let translated = from_decode(malformed);
    assert_eq!(translated.code(), Code::InvalidArgument);
    assert_eq!(translated.get_error_details().bad_request().expect("BadRequest").field_violations[0].field, "uri");
    assert_eq!(from_decode(Status::internal("database is gone")).code(), Code::Internal);
    assert_eq!(from_decode(Status::out_of_range("offset 7 is past the end")).code(), Code::OutOfRange);
    let twice = from_decode(from_decode(Status::out_of_range(
        "Error, decoded message length too large: found 9 bytes, the limit is: 8 bytes",
    )));
    assert_eq!(twice.code(), Code::ResourceExhausted);
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    /// The caller says that this was all.
    Closed,
    /// The caller goes on to say nothing.
    Open,
}

/// A request body that no codec has touched.
struct Raw(Option<Bytes>, End);

impl http_body::Body for Raw {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.0.take() {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            None if self.1 == End::Open => Poll::Pending,
            None => Poll::Ready(None),
        }
    }
}

async fn send_raw(server: &Running, method: &str, bytes: &[u8], end: End) -> Status {
    let first = (!bytes.is_empty()).then(|| Bytes::copy_from_slice(bytes));
    let request = http::Request::post(format!("http://{}/test.v1.Echo/{method}", server.address))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(Raw(first, end)))
        .expect("request");
    let response = within(server.channel.clone().oneshot(request)).await.expect("response");
    if let Some(status) = Status::from_header_map(response.headers()) {
        return status;
    }
    let mut body = response.into_body();
    let mut trailers = None;
    while let Some(frame) =
        within(std::future::poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut body), cx))).await
    {
        trailers = frame.expect("frame").into_trailers().ok().or(trailers);
    }
    Status::from_header_map(&trailers.expect("trailers")).expect("status")
}
