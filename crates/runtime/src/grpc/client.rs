use std::time::Duration;

use anyhow::Context;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

/// A peer in the same network answers a SYN in milliseconds; after this it is gone.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a quiet connection is asked whether its peer is still there, and how long the
/// answer may take. Above the ten seconds at which servers begin to complain of pings.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes a channel to `url` (`http://host:port`, or `https://` with the system's
/// certificates). It connects at the first call, and again whenever the connection is lost.
///
/// # Errors
/// When `url` is not such a URL.
pub fn channel(url: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(url.to_owned())
        .ok()
        .filter(|endpoint| matches!(endpoint.uri().scheme_str(), Some("http" | "https")))
        .with_context(|| format!("{url:?} is not a gRPC address: write http://HOST:PORT or https://HOST:PORT"))?;
    let endpoint = if endpoint.uri().scheme_str() == Some("https") {
        endpoint.tls_config(ClientTlsConfig::new().with_native_roots()).context("set up TLS")?
    } else {
        endpoint
    };
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_lazy())
}
