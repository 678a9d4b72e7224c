use tokio::net::TcpListener;
use waybill_tls::ServerTls;

use crate::auth::Guard;

/// Where a gRPC server listens, how its connections are protected, and whom it lets in.
#[derive(Debug)]
pub struct Listener {
    pub(super) tcp: TcpListener,
    pub(super) tls: Option<ServerTls>,
    pub(super) guard: Guard,
}

impl Listener {
    /// Has callers pass `guard`, over TLS if there is a certificate.
    #[must_use]
    pub fn new(tcp: TcpListener, tls: Option<ServerTls>, guard: Guard) -> Self {
        Self { tcp, tls, guard }
    }
}

/// Without TLS, and open to everybody: for listeners that only this machine reaches.
impl From<TcpListener> for Listener {
    fn from(tcp: TcpListener) -> Self {
        Self::new(tcp, None, Guard::open())
    }
}
