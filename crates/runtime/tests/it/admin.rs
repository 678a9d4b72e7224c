//! The admin port and what is measured of calls.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tonic::Request;
use waybill_runtime::{Signals, admin, grpc};

use crate::echo::{LONG, echo, start_with};

pub(crate) async fn get(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connect");
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("send");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("read");
    answer
}

#[tokio::test]
async fn it_tells_whether_the_process_takes_calls_and_counts_them() {
    let (signals, scrape) = Signals::measured().expect("set up");
    let components = signals.components.clone();
    components.hold(grpc::STARTING, "waits for postgres");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let stop = CancellationToken::new();
    let serving = tokio::spawn(admin::serve(listener, None, scrape, components.clone(), stop.clone()));

    let waiting = get(address, "/readyz").await;
    assert!(waiting.starts_with("HTTP/1.1 503") && waiting.contains("waits for postgres"), "{waiting}");
    assert!(get(address, "/livez").await.starts_with("HTTP/1.1 200"));

    let server = start_with(LONG, &signals).await;
    server.unary(echo("hello")).await.expect("call");
    server.unary(echo("fail")).await.expect_err("fails");
    let mut client = tonic::client::Grpc::new(server.channel.clone());
    client.ready().await.expect("connect");
    let path = http::uri::PathAndQuery::from_static("/test.v1.Made/Up");
    let codec = tonic_prost::ProstCodec::<crate::echo::Echo, crate::echo::Echo>::default();
    client.unary(Request::new(echo("")), path, codec).await.expect_err("unknown");

    assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
    components.set("qdrant", Err("connection refused".to_owned()));
    let degraded = get(address, "/healthz").await;
    assert!(degraded.starts_with("HTTP/1.1 200") && degraded.contains("qdrant is down"), "{degraded}");
    assert!(!degraded.contains("since_unix_s"), "not verbose: {degraded}");
    assert!(get(address, "/healthz?verbose=1").await.contains("since_unix_s"));

    let metrics = get(address, "/metrics").await;
    for line in [
        r#"waybill_component_up{component="qdrant"} 0"#,
        r#"waybill_grpc_server_calls_in_flight{service="other"} 0"#,
        r#"waybill_grpc_server_calls_total{code="UNIMPLEMENTED",method="other",service="other"} 1"#,
    ] {
        assert!(metrics.contains(line), "{line}:\n{metrics}");
    }
    assert!(!metrics.contains("Made"), "a name that a caller makes up is no label");

    server.stop().await;
    assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 503"), "it is stopping");
    stop.cancel();
    serving.await.expect("joins").expect("serves");
}
