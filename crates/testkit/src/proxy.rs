//! A TCP proxy that misbehaves on demand.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

/// One read; small enough that a change of mode bites in the middle of a large message.
const BUFFER_BYTES: usize = 16 * 1024;

/// What the proxy does with its connections, those that are open included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Passes everything on.
    Pass,
    /// Passes everything on, each read this much later.
    Delay(Duration),
    /// Resets open connections, and new ones as soon as they are accepted: as a server
    /// does that has just died.
    Refuse,
    /// Keeps connections open and accepts new ones, but passes nothing on: as a network
    /// that drops every packet. What was held back goes on when the mode changes.
    BlackHole,
    /// Passes on what clients send, and holds back every answer: the request is done,
    /// and the client can't know.
    HalfOpen,
}

/// A proxy in front of one upstream address. Dropping it resets its connections.
#[derive(Debug)]
pub struct FaultProxy {
    addr: SocketAddr,
    mode: watch::Sender<Mode>,
    /// Counts up; a connection of an older generation is reset.
    cut: watch::Sender<u64>,
    open: Arc<AtomicUsize>,
    accepting: AbortHandle,
}

impl FaultProxy {
    /// Starts a proxy at a free port of 127.0.0.1, in mode [`Mode::Pass`].
    ///
    /// # Errors
    /// If no port can be bound.
    pub async fn start(upstream: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("bind a port")?;
        let addr = listener.local_addr()?;
        let (mode, modes) = watch::channel(Mode::Pass);
        let (cut, cuts) = watch::channel(0);
        let open = Arc::new(AtomicUsize::new(0));
        let shared = Shared { upstream, modes, cuts, open: open.clone() };
        let accepting = tokio::spawn(accept(listener, shared)).abort_handle();
        Ok(Self { addr, mode, cut, open, accepting })
    }

    /// Returns the address to connect to.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Changes the mode, for open connections and for new ones.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
        if mode == Mode::Refuse {
            self.cut();
        }
    }

    /// Resets every open connection, in the middle of whatever it carries. New ones are
    /// treated as the mode says.
    pub fn cut(&self) {
        self.cut.send_modify(|generation| *generation += 1);
    }

    /// Returns how many connections are open.
    pub fn open_connections(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        // The task owns the listener and all connections.
        self.accepting.abort();
    }
}

#[derive(Clone)]
struct Shared {
    upstream: SocketAddr,
    modes: watch::Receiver<Mode>,
    cuts: watch::Receiver<u64>,
    open: Arc<AtomicUsize>,
}

async fn accept(listener: TcpListener, shared: Shared) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => {
                let mut shared = shared.clone();
                // Of what was cut before this connection was made, it is no part.
                shared.cuts.borrow_and_update();
                let counted = Counted::new(&shared.open);
                connections.spawn(async move {
                    let _counted = counted;
                    // Either side may hang up at any time: that is what a proxy is for.
                    let _ = serve(client, shared).await;
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Counts one open connection for as long as it lives.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::SeqCst);
        Self(open.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn serve(client: TcpStream, mut shared: Shared) -> io::Result<()> {
    // Closing sends a reset in place of an orderly end.
    client.set_zero_linger()?;
    if *shared.modes.borrow() == Mode::Refuse {
        return Ok(());
    }
    let server = TcpStream::connect(shared.upstream).await?;
    server.set_zero_linger()?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let requests = pump(from_client, to_server, Direction::Requests, shared.modes.clone());
    let answers = pump(from_server, to_client, Direction::Answers, shared.modes.clone());
    tokio::select! {
        _ = shared.cuts.changed() => Ok(()),
        // One side may be done sending and still wait for the answer.
        outcome = async { tokio::try_join!(requests, answers) } => outcome.map(|_| ()),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Requests,
    Answers,
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    direction: Direction,
    mut modes: watch::Receiver<Mode>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = from.read(&mut buffer).await?;
        let passes = |mode: &Mode| match mode {
            Mode::Pass | Mode::Delay(_) => true,
            Mode::HalfOpen => direction == Direction::Requests,
            Mode::BlackHole | Mode::Refuse => false,
        };
        // An end is held back like everything else.
        let mode = *modes.wait_for(passes).await.map_err(|_| io::ErrorKind::ConnectionReset)?;
        if let Mode::Delay(delay) = mode {
            sleep(delay).await;
        }
        if count == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..count]).await?;
    }
}
