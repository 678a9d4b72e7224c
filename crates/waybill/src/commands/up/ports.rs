//! The ports of `waybill up`, bound before anything else is done.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;

use anyhow::Context;
use tokio::net::TcpListener;

use crate::cli::UpArgs;
use crate::client::Role;
use crate::endpoints::Endpoints;
use crate::exit::Usage;

/// A listener for each service.
#[derive(Debug)]
pub(super) struct Ports {
    pub(super) ingestion: TcpListener,
    pub(super) embedding: TcpListener,
    pub(super) extraction: TcpListener,
    pub(super) relay: TcpListener,
}

impl Ports {
    /// Binds all of them.
    pub(super) async fn bind(args: &UpArgs) -> anyhow::Result<Self> {
        Ok(Self {
            ingestion: bind(args, Role::Ingestion, args.ingestion_port, "--ingestion-port").await?,
            embedding: bind(args, Role::Search, args.embedding_port, "--embedding-port").await?,
            extraction: bind(args, Role::Extraction, args.extraction_port, "--extraction-port").await?,
            relay: bind(args, Role::Relay, args.relay_port, "--relay-port").await?,
        })
    }

    /// Returns where clients on this machine find the services.
    pub(super) fn endpoints(&self, secure: bool) -> anyhow::Result<Endpoints> {
        let url = |listener| {
            let url = url(listener)?;
            anyhow::Ok(if secure { url.replacen("http://", "https://", 1) } else { url })
        };
        Ok(Endpoints {
            pid: std::process::id(),
            ingestion: url(&self.ingestion)?,
            embedding: url(&self.embedding)?,
            extraction: url(&self.extraction)?,
            relay: url(&self.relay)?,
            admin: None,
        })
    }

    /// Returns where they listen.
    pub(super) fn addresses(&self) -> anyhow::Result<Vec<SocketAddr>> {
        let listeners = [&self.ingestion, &self.embedding, &self.extraction, &self.relay];
        listeners
            .map(TcpListener::local_addr)
            .into_iter()
            .collect::<Result<_, _>>()
            .context("read the listeners' addresses")
    }
}

async fn bind(args: &UpArgs, role: Role, named: Option<NonZeroU16>, flag: &str) -> anyhow::Result<TcpListener> {
    let host = args.listen_host;
    let wanted = match named {
        Some(port) => port.get(),
        None if args.free_ports => 0,
        None => role.default_port(),
    };
    match TcpListener::bind((host, wanted)).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == ErrorKind::AddrInUse && named.is_none() => {
            let listener = free(host).await?;
            let port = listener.local_addr()?.port();
            eprintln!("port {wanted} is taken: the {role} takes {port}");
            Ok(listener)
        }
        Err(error) if named.is_some() => {
            let address = SocketAddr::new(host, wanted);
            Err(Usage(format!("can't listen on {address} ({error}): choose another {flag}")).into())
        }
        Err(error) => {
            let address = SocketAddr::new(host, wanted);
            let hint = "choose an address of this machine with --listen-host";
            Err(Usage(format!("can't listen on {address} ({error}): {hint}")).into())
        }
    }
}

/// Binds a port that nobody uses.
pub(super) async fn free(host: IpAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind((host, 0)).await.with_context(|| format!("listen on a free port of {host}"))
}

/// Returns the URL of a listener, as seen from this machine.
pub(super) fn url(listener: &TcpListener) -> anyhow::Result<String> {
    let mut address = listener.local_addr().context("read the listener's address")?;
    if address.ip().is_unspecified() {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    Ok(format!("http://{address}"))
}
