use std::future::Future;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use anyhow::Context;
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::config::Secret;
use crate::tls::ClientTlsConfig;
use crate::trace::Propagate;

/// A peer in the same network answers a SYN in milliseconds; after this it is gone.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a quiet connection is asked whether its peer is still there, and how long the
/// answer may take. Above the ten seconds at which servers begin to complain of pings.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

const HTTPS_PORT: u16 = 443;

/// How a client shows who it is, and checks who answers.
#[derive(Debug, Clone, Default)]
pub struct ClientOptions {
    /// For `https://` URLs.
    pub tls: ClientTlsConfig,
    /// Sent with each call; empty: none.
    pub api_key: Secret,
}

/// A way to a server, with what goes along with each call: the trace and the request that it
/// belongs to, and the key. Clones share the connection.
pub type Peer = InterceptedService<Channel, Along>;

/// Puts trace context, request id and key into the metadata of a call.
#[derive(Debug, Clone, Default)]
pub struct Along {
    authorization: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Along {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let mut request = Propagate.call(request)?;
        if let Some(authorization) = &self.authorization {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        Ok(request)
    }
}

/// Makes a way to `url` (`http://host:port` or `https://host:port`). It connects at the first
/// call, and again whenever the connection is lost.
///
/// # Errors
/// When `url` is not such a URL, or a file or the key in `options` can't be used.
pub fn peer(url: &str, options: &ClientOptions) -> anyhow::Result<Peer> {
    let authorization = match options.api_key.expose() {
        "" => None,
        key => {
            let value: MetadataValue<Ascii> = format!("Bearer {key}").parse().ok().context(
                "the API key has characters that can't be sent: pass it as it was made, without white space",
            )?;
            // Kept out of debug output, and out of the compression tables of HTTP/2.
            let mut value = value;
            value.set_sensitive(true);
            Some(value)
        }
    };
    Ok(InterceptedService::new(connect(url, &options.tls)?, Along { authorization }))
}

/// Makes a [`Peer`] of a channel, without a key.
#[must_use]
pub fn peer_of(channel: Channel) -> Peer {
    InterceptedService::new(channel, Along::default())
}

/// Makes a channel to `url` (`http://host:port`, or `https://` with the system's
/// certificates). It connects at the first call, and again whenever the connection is lost.
///
/// # Errors
/// When `url` is not such a URL.
pub fn channel(url: &str) -> anyhow::Result<Channel> {
    connect(url, &ClientTlsConfig::default())
}

fn connect(url: &str, tls: &ClientTlsConfig) -> anyhow::Result<Channel> {
    let uri = url.parse::<Uri>().ok().filter(|uri| uri.host().is_some());
    let uri = uri.filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")));
    let uri =
        uri.with_context(|| format!("{url:?} is not a gRPC address: write http://HOST:PORT or https://HOST:PORT"))?;
    if uri.scheme_str() == Some("http") {
        return Ok(endpoint(uri).connect_lazy());
    }
    tls.check().with_context(|| format!("set up TLS for {url}"))?;
    let secure = Secure {
        host: uri.host().unwrap_or_default().to_owned(),
        port: uri.port_u16().unwrap_or(HTTPS_PORT),
        tls: tls.clone(),
    };
    // tonic would do TLS by itself for https, with certificates that are read once and never again.
    let plain = url.replacen("https://", "http://", 1).parse().context("read the address")?;
    Ok(endpoint(plain).origin(uri).connect_with_connector_lazy(secure))
}

fn endpoint(uri: Uri) -> Endpoint {
    Endpoint::from(uri)
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
}

/// Makes TLS connections to one server.
#[derive(Debug, Clone)]
struct Secure {
    host: String,
    port: u16,
    tls: ClientTlsConfig,
}

impl tower::Service<Uri> for Secure {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { Ok(TokioIo::new(this.tls.connect(&this.host, this.port).await?)) })
    }
}
