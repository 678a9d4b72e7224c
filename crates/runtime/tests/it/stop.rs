//! How a server stops.

use std::time::Duration;

use futures::StreamExt;
use tokio::net::TcpStream;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::echo::{LONG, SERVICE, echo, open_after, start, within};

#[tokio::test]
async fn a_call_in_flight_finishes_after_soft() {
    let server = start(LONG).await;
    let call = server.unary(echo("wait"));
    let stop = async {
        within(server.gate.entered.notified()).await;
        server.shutdown.trigger();
        // New callers are refused while the old call still runs.
        within(async { while TcpStream::connect(server.address).await.is_ok() {} }).await;
        assert!(!server.served.is_finished());
        server.gate.leave.notify_one();
    };
    let (answer, ()) = tokio::join!(call, stop);
    assert_eq!(answer.expect("finished").into_inner().text, "waited");
    within(server.served).await.expect("join").expect("serve");
}

#[tokio::test]
async fn health_says_not_serving_at_soft_and_then_ends() {
    let server = start(LONG).await;
    let mut client = HealthClient::new(server.channel.clone());
    let request = HealthCheckRequest { service: SERVICE.to_owned() };
    let mut watch = client.watch(request).await.expect("watch").into_inner();
    assert_eq!(watch.next().await.expect("now").expect("ok").status(), ServingStatus::Serving);
    server.shutdown.trigger();
    let next = within(watch.next()).await.expect("change").expect("ok");
    assert_eq!(next.status(), ServingStatus::NotServing);
    let end = within(watch.next()).await.expect("end").expect_err("status");
    assert_eq!(end.code(), Code::Unavailable);
    server.health.set(SERVICE, true).await;
    // The watch doesn't hold the stop up to its deadline of a minute.
    within(server.served).await.expect("join").expect("serve");
}

#[tokio::test]
async fn what_hangs_is_cut_at_the_deadline() {
    let server = start(Duration::from_millis(50)).await;
    let mut stream = server.stream(open_after(echo("one"))).await.expect("stream");
    assert_eq!(stream.next().await.expect("first").expect("ok").text, "one");
    let call = server.unary(echo("hang"));
    let stop = async {
        within(server.gate.entered.notified()).await;
        server.shutdown.trigger();
    };
    let (answer, ()) = within(async { tokio::join!(call, stop) }).await;
    let status = answer.expect_err("cut");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("stopping"), "{}", status.message());
    let end = within(stream.next()).await.expect("end").expect_err("cut");
    assert_eq!(end.code(), Code::Unavailable);
    within(server.served).await.expect("join").expect("serve");
}

#[tokio::test]
async fn a_peer_that_says_nothing_does_not_hold_the_stop() {
    let server = start(Duration::from_millis(50)).await;
    let silent = TcpStream::connect(server.address).await.expect("connect");
    assert_eq!(server.unary(echo("up")).await.expect("call").into_inner().text, "up");
    server.shutdown.trigger();
    within(server.served).await.expect("join").expect("serve");
    drop(silent);
}
