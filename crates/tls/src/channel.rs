use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};

use crate::{ClientStream, ClientTls, InvalidTls};

/// The protocol that gRPC is spoken over. Load balancers look at it.
pub(crate) const ALPN_GRPC: &[u8] = b"h2";

/// How often a quiet connection is asked whether its peer is still there, and how long the
/// answer may take. Above the ten seconds at which servers begin to complain of pings.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

const HTTPS_PORT: u16 = 443;

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The URL can't be used.
    #[error("{0:?} is not a gRPC address: write http://HOST:PORT or https://HOST:PORT")]
    Url(String),
    /// A certificate, its key or the authority can't be used.
    #[error("set up TLS: {0}")]
    Tls(#[from] InvalidTls),
}

/// Makes a channel to `url` (`http://host:port` or `https://host:port`) that notices when its peer
/// is gone. It connects at the first call, within `connect_timeout`, and again whenever the
/// connection is lost.
///
/// # Errors
/// When `url` is not such a URL, or a file of `tls` can't be used.
pub fn channel(url: &str, tls: &ClientTls, connect_timeout: Duration) -> Result<Channel, ChannelError> {
    channel_with(url, tls, connect_timeout, |endpoint| {
        endpoint
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
    })
}

/// Makes a channel as [`channel`] does, without its pings, and with what `set` adds: for servers
/// that are not ours to ping.
///
/// # Errors
/// As [`channel`].
pub fn channel_with(
    url: &str,
    tls: &ClientTls,
    connect_timeout: Duration,
    set: impl FnOnce(Endpoint) -> Endpoint,
) -> Result<Channel, ChannelError> {
    let not_grpc = || ChannelError::Url(url.to_owned());
    let uri = url.parse::<Uri>().ok().filter(|uri| uri.host().is_some()).ok_or_else(not_grpc)?;
    let endpoint = |uri| set(Endpoint::from(uri).connect_timeout(connect_timeout).tcp_nodelay(true));
    match uri.scheme_str() {
        Some("http") => return Ok(endpoint(uri).connect_lazy()),
        Some("https") => tls.check()?,
        _ => return Err(not_grpc()),
    }
    let secure = Secure {
        host: uri.host().unwrap_or_default().to_owned(),
        port: uri.port_u16().unwrap_or(HTTPS_PORT),
        tls: tls.clone(),
    };
    // tonic would do TLS by itself for https, with certificates that are read once and never again.
    let plain = url.replacen("https://", "http://", 1).parse().map_err(|_same| not_grpc())?;
    Ok(endpoint(plain).origin(uri).connect_with_connector_lazy(secure))
}

/// Makes TLS connections to one server.
#[derive(Debug, Clone)]
struct Secure {
    host: String,
    port: u16,
    tls: ClientTls,
}

impl tower::Service<Uri> for Secure {
    type Response = TokioIo<ClientStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { Ok(TokioIo::new(this.tls.connect(&this.host, this.port, &[ALPN_GRPC]).await?)) })
    }
}
