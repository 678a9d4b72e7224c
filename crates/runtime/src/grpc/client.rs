use std::time::Duration;

use anyhow::Context;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};
use waybill_tls::ClientTls;

use crate::config::Secret;
use crate::trace::Propagate;

/// A peer in the same network answers a SYN in milliseconds; after this it is gone.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How a client shows who it is, and checks who answers.
#[derive(Debug, Clone, Default)]
pub struct ClientOptions {
    /// For `https://` URLs.
    pub tls: ClientTls,
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
    connect(url, &ClientTls::default())
}

fn connect(url: &str, tls: &ClientTls) -> anyhow::Result<Channel> {
    Ok(waybill_tls::channel(url, tls, CONNECT_TIMEOUT)?)
}
