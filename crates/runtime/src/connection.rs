use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::Stream;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::server::{Connected, TcpConnectInfo};
use waybill_tls::ServerTls;

/// Callers share connections, so this is far above any sound use and below the 1,024 file
/// descriptors that many systems give a process. Further callers wait in the accept queue.
const MAX_CONNECTIONS: usize = 768;

/// When a connection that says nothing is asked whether its peer is still there, how often, and for
/// how long at the most. gRPC asks by itself and sooner; who scrapes metrics and vanishes would hold
/// its place for ever.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_RETRIES: u32 = 4;

/// After a failed accept (out of file descriptors, mostly): trying at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts connections until dropped, which closes the listener. `cut` ends every one of them.
pub(crate) fn incoming(
    listener: TcpListener,
    tls: Option<ServerTls>,
    cut: CancellationToken,
) -> impl Stream<Item = io::Result<Connection>> {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let watch = tls.clone().map(|tls| AbortOnDropHandle::new(tokio::spawn(tls.watch())));
    futures::stream::unfold((listener, slots, tls, cut, watch), |(listener, slots, tls, cut, watch)| async move {
        let slot = Arc::clone(&slots).acquire_owned().await.ok()?;
        let stream = accept(&listener).await;
        let info = stream.connect_info();
        // Shakes hands when it is first read: whoever is slow at it holds up nobody else.
        let stream = match tls.clone() {
            Some(tls) => Transport::Shaking(Box::pin(tls.accept(stream))),
            None => Transport::Plain(stream),
        };
        let connection = Connection {
            stream,
            info,
            vouched: Vouched::default(),
            cut: Box::pin(cut.clone().cancelled_owned()),
            _slot: slot,
        };
        Some((Ok(connection), (listener, slots, tls, cut, watch)))
    })
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Answers are small and somebody waits for each. A peer that has gone
                // already fails here and again at its first read, where it is dealt with.
                let _ = stream.set_nodelay(true);
                let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
                let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive.with_retries(KEEPALIVE_RETRIES));
                return stream;
            }
            Err(error) => {
                tracing::warn!(%error, "connection not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A connection that can be ended from outside: tonic runs each in a task of its own and
/// gives no handle to it.
pub(crate) struct Connection {
    stream: Transport,
    info: TcpConnectInfo,
    vouched: Vouched,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _slot: OwnedSemaphorePermit,
}

/// Whether the peer has shown a certificate that the listener trusts. Not before its first bytes are
/// read, as that is when hands are shaken.
#[derive(Debug, Clone, Default)]
pub(crate) struct Vouched(Arc<AtomicBool>);

impl Vouched {
    pub(crate) fn is_vouched(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// How bytes travel.
enum Transport {
    Plain(TcpStream),
    Shaking(Pin<Box<dyn Future<Output = io::Result<TlsStream<TcpStream>>> + Send>>),
    Secure(Box<TlsStream<TcpStream>>),
}

/// Polls what is below a [`Transport`], once hands are shaken.
macro_rules! poll_transport {
    ($connection:expr, $cx:expr, $stream:ident => $poll:expr) => {{
        if $connection.is_cut($cx) {
            return Poll::Ready(Err(aborted()));
        }
        ready!($connection.shake_hands($cx))?;
        match &mut $connection.stream {
            Transport::Plain($stream) => $poll,
            Transport::Secure($stream) => $poll,
            Transport::Shaking(_) => Poll::Pending,
        }
    }};
}

impl Connection {
    fn shake_hands(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Transport::Shaking(shaking) = &mut self.stream {
            let stream = ready!(shaking.as_mut().poll(cx))?;
            self.vouched.0.store(stream.get_ref().1.peer_certificates().is_some(), Ordering::Release);
            self.stream = Transport::Secure(Box::new(stream));
        }
        Poll::Ready(Ok(()))
    }

    pub(crate) fn vouched(&self) -> Vouched {
        self.vouched.clone()
    }

    fn is_cut(&mut self, cx: &mut Context<'_>) -> bool {
        self.cut.as_mut().poll(cx).is_ready()
    }
}

fn aborted() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the server has stopped")
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.info.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        poll_transport!(self, cx, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        poll_transport!(self, cx, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        poll_transport!(self, cx, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        // Both that come of it are.
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        poll_transport!(self, cx, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        poll_transport!(self, cx, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    #[tokio::test]
    async fn a_peer_that_vanishes_is_noticed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut connections = Box::pin(incoming(listener, None, CancellationToken::new()));
        let connection = connections.next().await.unwrap().unwrap();
        let Transport::Plain(stream) = &connection.stream else { panic!("nobody asked for TLS") };
        assert!(SockRef::from(stream).keepalive().unwrap());
        assert_eq!(SockRef::from(stream).tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
    }
}
