use std::time::Duration;

use secrecy::SecretString;
use waybill_tls::ClientTls;

/// How to reach Redis, and how much to put there.
#[derive(Debug, Clone)]
pub struct QueueConfig {
    /// `redis://[:PASSWORD@]HOST:PORT/DB`, or `rediss://` for TLS.
    pub url: SecretString,
    /// How a `rediss://` server is checked, and what it is shown.
    pub tls: ClientTls,
    /// What the names of all keys begin with.
    pub prefix: String,
    /// The most connections for ordinary calls, and as many again for claims that wait: a
    /// worker that waits for work must not keep another from finishing.
    pub pool_size: usize,
    /// The most messages a priority holds, those under way included.
    pub stream_max: u64,
    /// How long a request that was sent is known. Longer than any request stays open.
    pub dedup_ttl: Duration,
    /// How long a call may take, the wait for a connection included.
    pub timeout: Duration,
}

impl QueueConfig {
    /// Makes a configuration with the usual limits.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: SecretString::from(url.into()),
            tls: ClientTls::default(),
            prefix: "waybill".to_owned(),
            pool_size: 16,
            stream_max: 100_000,
            dedup_ttl: Duration::from_secs(7 * 24 * 60 * 60),
            // Redis answers in milliseconds; after this it is gone.
            timeout: Duration::from_secs(5),
        }
    }
}
