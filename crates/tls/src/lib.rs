//! TLS of listeners and clients, with certificates that are read again when their files
//! change: whoever renews them restarts nothing.
//!
//! A listener looks at its files now and then, a client reads them for each connection.

mod channel;
mod client;
mod files;
mod newest;
mod server;

pub use channel::{ChannelError, channel, channel_with};
pub use client::{ClientStream, ClientTls, ClientTlsConfig};
pub use files::InvalidTls;
pub use server::{ServerTls, ServerTlsConfig, Serves};

use std::sync::{Arc, OnceLock};

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    static PROVIDER: OnceLock<Arc<rustls::crypto::CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())))
}
