use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use waybill_testkit::{FaultProxy, Mode, eventually};

use crate::DEADLINE;

/// What shows that nothing comes: long enough for loopback, short enough for a test.
const SILENCE: Duration = Duration::from_millis(200);

/// Starts a server that sends every byte back, and tells what it received.
async fn echo() -> (std::net::SocketAddr, mpsc::UnboundedReceiver<u8>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (sender, received) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let sender = sender.clone();
            tokio::spawn(async move {
                while let Ok(byte) = stream.read_u8().await {
                    let _ = sender.send(byte);
                    if stream.write_u8(byte).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    (addr, received)
}

async fn round_trip(stream: &mut TcpStream, byte: u8) -> std::io::Result<u8> {
    stream.write_u8(byte).await?;
    stream.read_u8().await
}

#[tokio::test]
async fn it_passes_bytes_and_delays_them() {
    let (upstream, _received) = echo().await;
    let proxy = FaultProxy::start(upstream).await.unwrap();
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    assert_eq!(round_trip(&mut stream, 1).await.unwrap(), 1);
    assert_eq!(proxy.open_connections(), 1);

    let delay = Duration::from_millis(50);
    proxy.set(Mode::Delay(delay));
    let begun = Instant::now();
    assert_eq!(round_trip(&mut stream, 2).await.unwrap(), 2);
    assert!(begun.elapsed() >= 2 * delay, "both ways");
}

#[tokio::test]
async fn a_cut_resets_what_is_open_and_lets_new_ones_in() {
    let (upstream, _received) = echo().await;
    let proxy = FaultProxy::start(upstream).await.unwrap();
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    round_trip(&mut stream, 1).await.unwrap();
    proxy.cut();
    assert!(timeout(DEADLINE, stream.read_u8()).await.unwrap().is_err());
    eventually("it is forgotten", DEADLINE, async || proxy.open_connections() == 0).await;

    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    assert_eq!(round_trip(&mut stream, 2).await.unwrap(), 2);
}

#[tokio::test]
async fn refusing_resets_new_connections_too() {
    let (upstream, _received) = echo().await;
    let proxy = FaultProxy::start(upstream).await.unwrap();
    let mut open = TcpStream::connect(proxy.addr()).await.unwrap();
    round_trip(&mut open, 1).await.unwrap();
    proxy.set(Mode::Refuse);
    assert!(timeout(DEADLINE, open.read_u8()).await.unwrap().is_err());
    // The listener is still there, so it connects, and then learns that it is of no use.
    if let Ok(mut stream) = TcpStream::connect(proxy.addr()).await {
        assert!(timeout(DEADLINE, round_trip(&mut stream, 2)).await.unwrap().is_err());
    }
    proxy.set(Mode::Pass);
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    assert_eq!(round_trip(&mut stream, 3).await.unwrap(), 3);
}

#[tokio::test]
async fn a_black_hole_is_silent_until_it_opens() {
    let (upstream, mut received) = echo().await;
    let proxy = FaultProxy::start(upstream).await.unwrap();
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    round_trip(&mut stream, 1).await.unwrap();
    assert_eq!(received.recv().await, Some(1));

    proxy.set(Mode::BlackHole);
    stream.write_u8(2).await.unwrap();
    assert!(timeout(SILENCE, stream.read_u8()).await.is_err());
    assert!(received.try_recv().is_err(), "the request did not arrive");

    proxy.set(Mode::Pass);
    assert_eq!(timeout(DEADLINE, stream.read_u8()).await.unwrap().unwrap(), 2);
}

#[tokio::test]
async fn half_open_lets_requests_through_and_no_answers() {
    let (upstream, mut received) = echo().await;
    let proxy = FaultProxy::start(upstream).await.unwrap();
    proxy.set(Mode::HalfOpen);
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    stream.write_u8(9).await.unwrap();
    assert_eq!(timeout(DEADLINE, received.recv()).await.unwrap(), Some(9));
    assert!(timeout(SILENCE, stream.read_u8()).await.is_err());
    // Then the connection breaks: done, and nobody was told.
    proxy.cut();
    assert!(timeout(DEADLINE, stream.read_u8()).await.unwrap().is_err());
}

#[tokio::test]
async fn an_upstream_that_is_not_there_resets_the_client() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = listener.local_addr().unwrap();
    drop(listener);
    let proxy = FaultProxy::start(upstream).await.unwrap();
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    assert!(timeout(DEADLINE, stream.read_u8()).await.unwrap().is_err());
}
