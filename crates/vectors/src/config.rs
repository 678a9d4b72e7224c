use std::{fmt, time::Duration};

use waybill_tls::ClientTls;

/// How to reach Qdrant.
#[derive(Clone)]
pub struct QdrantConfig {
    /// Where it answers gRPC: `http://host:6334`, or `https://` for TLS.
    pub url: String,
    /// How an `https://` server is checked, and what it is shown.
    pub tls: ClientTls,
    /// Sent with every call, if the server wants one. Never log it.
    pub api_key: Option<String>,
    /// How long opening a connection may take.
    pub connect_timeout: Duration,
    /// How long a call may take that has no deadline of its own: reads and set-up.
    pub timeout: Duration,
}

impl QdrantConfig {
    /// Makes a configuration with the usual limits and no key.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            tls: ClientTls::default(),
            api_key: None,
            // A peer in the same network answers in milliseconds; after this it is gone.
            connect_timeout: Duration::from_secs(5),
            // Creating a collection on a busy server takes a second or two.
            timeout: Duration::from_secs(10),
        }
    }

    /// Sets the key.
    #[must_use]
    pub fn with_api_key(mut self, key: Option<String>) -> Self {
        self.api_key = key;
        self
    }
}

impl fmt::Debug for QdrantConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QdrantConfig")
            .field("url", &self.url)
            .field("tls", &self.tls)
            .field("api_key", &self.api_key.as_ref().map(|_| "[redacted]"))
            .field("connect_timeout", &self.connect_timeout)
            .field("timeout", &self.timeout)
            .finish()
    }
}
