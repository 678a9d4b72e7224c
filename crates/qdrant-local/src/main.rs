//! Serves a data directory until it is told to stop.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use waybill_qdrant_local::Server;

/// What is logged unless `RUST_LOG` says otherwise. The engine warns about
/// settings that only its own server can make.
const DEFAULT_LOG: &str = "info,qdrant_edge=error";

/// Serves the Qdrant gRPC API from the engine in this process.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Directory that holds the collections; made if missing.
    #[arg(long)]
    data_dir: PathBuf,
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:6334")]
    listen: SocketAddr,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let filter = EnvFilter::builder().try_from_env();
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| EnvFilter::new(DEFAULT_LOG)))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();

    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("install signal handler")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("install signal handler")?;
    let listener =
        TcpListener::bind(arguments.listen).await.with_context(|| format!("listen on {}", arguments.listen))?;
    let handle = Server::start(&arguments.data_dir, listener, shutdown.clone()).await?;

    // Whoever started this process reads the address from here.
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{}", handle.addr()).context("print the address")?;
    stdout.flush().context("print the address")?;

    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        shutdown.cancel();
    });
    handle.stopped().await;
    Ok(())
}
