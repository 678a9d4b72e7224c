use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::channel::ALPN_GRPC;
use crate::files::{InvalidTls, Named, check_pair, is_set, key_of};
use crate::provider;

/// A handshake takes two round trips; a peer that is still at it after this is none.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a listener shows, and whom it asks for the same, as PEM files. An empty path is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerTlsConfig {
    /// The certificate to show, with those that lead to its root. Empty: no TLS.
    pub cert_file: PathBuf,
    /// Its private key.
    pub key_file: PathBuf,
    /// Callers need a certificate that one of these has signed. Empty: they need none.
    pub client_ca_file: PathBuf,
    /// How often the files are looked at for a change.
    pub reload_ms: u64,
}

impl Default for ServerTlsConfig {
    fn default() -> Self {
        Self {
            cert_file: PathBuf::new(),
            key_file: PathBuf::new(),
            client_ca_file: PathBuf::new(),
            // Kubernetes brings a changed Secret into a pod within a minute or two anyway.
            reload_ms: 10_000,
        }
    }
}

impl ServerTlsConfig {
    /// Checks that what belongs together is there together. Files are read later.
    ///
    /// # Errors
    /// The first key that is wrong. `section` is where this stands in the whole ("tls").
    pub fn validate(&self, section: &str) -> Result<(), InvalidTls> {
        check_pair(section, &self.cert_file, &self.key_file)?;
        if !is_set(&self.cert_file) && is_set(&self.client_ca_file) {
            let file = Named { section, name: "client_ca_file", path: &self.client_ca_file };
            return Err(file.invalid("needs TLS to be on", "set cert_file and key_file, too, or leave this out"));
        }
        if !(100..=3_600_000).contains(&self.reload_ms) {
            return Err(InvalidTls {
                key: key_of(section, "reload_ms"),
                value: self.reload_ms.to_string(),
                problem: "is out of range".to_owned(),
                fix: "write 100 to 3600000",
            });
        }
        Ok(())
    }

    /// Says whether callers are asked for certificates.
    #[must_use]
    pub fn asks_callers(&self) -> bool {
        is_set(&self.client_ca_file)
    }
}

/// What a listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serves {
    /// gRPC. Who is asked for a certificate and has none gets no connection.
    Grpc,
    /// HTTP/1.1. Who is asked for a certificate and has none gets a connection all the same, and
    /// what is served decides: some of it is for everybody.
    Http,
}

/// What a listener needs for TLS. Clones share it, and what is read anew.
#[derive(Clone)]
pub struct ServerTls(Arc<Reloaded>);

struct Reloaded {
    section: &'static str,
    config: ServerTlsConfig,
    serves: Serves,
    current: RwLock<(Arc<ServerConfig>, [u8; 32])>,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServerTls").field(&self.0.config).finish()
    }
}

impl ServerTls {
    /// Reads the files. `None` if no certificate is configured. `section` is where `config` stands
    /// in the whole ("tls").
    ///
    /// # Errors
    /// The first setting whose file can't be used.
    pub fn load(section: &'static str, config: &ServerTlsConfig, serves: Serves) -> Result<Option<Self>, InvalidTls> {
        if !is_set(&config.cert_file) {
            return Ok(None);
        }
        let files = Files { section, config, serves };
        // First: what changes in between is read once more.
        let stamp = files.stamp()?;
        let current = RwLock::new((files.server_config()?, stamp));
        Ok(Some(Self(Arc::new(Reloaded { section, config: config.clone(), serves, current }))))
    }

    /// Says whether callers are asked for certificates.
    #[must_use]
    pub fn asks_callers(&self) -> bool {
        self.0.config.asks_callers()
    }

    /// Shakes hands, with the newest certificate.
    ///
    /// # Errors
    /// When the peer speaks no TLS, is not trusted, does not trust us, or is too slow.
    pub async fn accept(self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let config = Arc::clone(&self.0.current.read().unwrap_or_else(PoisonError::into_inner).0);
        let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(stream)).await;
        let shaken = shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        shaken.inspect_err(|error| tracing::debug!(%error, "no TLS connection"))
    }

    /// Reads the files again whenever they change, until it is dropped. What can't be used is said,
    /// and what was there before goes on being used.
    pub async fn watch(self) {
        let every = Duration::from_millis(self.0.config.reload_ms);
        loop {
            tokio::time::sleep(every).await;
            let this = self.clone();
            // Joined only for its panics, of which there is nothing to say here.
            let _done = spawn_blocking(move || this.reload()).await;
        }
    }

    fn reload(&self) {
        let Reloaded { section, config, serves, current } = &*self.0;
        let files = Files { section, config, serves: *serves };
        let read = files.stamp().and_then(|stamp| {
            let is_new = current.read().unwrap_or_else(PoisonError::into_inner).1 != stamp;
            Ok(if is_new { Some((files.server_config()?, stamp)) } else { None })
        });
        match read {
            Ok(None) => {}
            Ok(Some(new)) => {
                *current.write().unwrap_or_else(PoisonError::into_inner) = new;
                tracing::info!(cert_file = %config.cert_file.display(), "certificate read anew");
            }
            // The files of a certificate are rarely changed all at once: the next look will do.
            Err(error) => {
                tracing::warn!(%error, "certificate not read anew, the last goes on being used");
            }
        }
    }
}

/// Where a listener's files are.
struct Files<'a> {
    section: &'a str,
    config: &'a ServerTlsConfig,
    serves: Serves,
}

impl Files<'_> {
    fn file<'a>(&'a self, name: &'a str, path: &'a Path) -> Named<'a> {
        Named { section: self.section, name, path }
    }

    fn all(&self) -> [Named<'_>; 3] {
        let config = self.config;
        [
            self.file("cert_file", &config.cert_file),
            self.file("key_file", &config.key_file),
            self.file("client_ca_file", &config.client_ca_file),
        ]
    }

    fn stamp(&self) -> Result<[u8; 32], InvalidTls> {
        let mut hash = Sha256::new();
        for file in self.all().into_iter().filter(Named::is_set) {
            let read = std::fs::read(file.path).map_err(|error| {
                file.invalid(format_args!("can't be read: {error}"), "name a file that this process may read")
            })?;
            hash.update(read);
        }
        Ok(hash.finalize().into())
    }

    fn server_config(&self) -> Result<Arc<ServerConfig>, InvalidTls> {
        let [cert, key, client_ca] = self.all();
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| cert.invalid(error, "report this as a bug"))?;
        let builder = if client_ca.is_set() {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(client_ca.roots()?), provider());
            let verifier = match self.serves {
                Serves::Grpc => verifier,
                Serves::Http => verifier.allow_unauthenticated(),
            };
            let verifier = verifier.build().map_err(|error| {
                client_ca.invalid(format_args!("can't be used: {error}"), "name the certificates of authorities")
            })?;
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let mut server = builder
            .with_single_cert(cert.certificates()?, key.private_key()?)
            .map_err(|error| key.invalid(format_args!("can't be used: {error}"), "name the key of cert_file"))?;
        let protocol = match self.serves {
            Serves::Grpc => ALPN_GRPC,
            Serves::Http => b"http/1.1",
        };
        server.alpn_protocols = vec![protocol.to_vec()];
        Ok(Arc::new(server))
    }
}
