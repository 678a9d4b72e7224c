//! TLS of gRPC listeners and clients, with certificates that are read again when their files
//! change: whoever renews them restarts nothing.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client};

use crate::config::ConfigError;

/// The protocol that gRPC is spoken over. Load balancers look at it.
const ALPN: &[u8] = b"h2";

/// A handshake takes two round trips; a peer that is still at it after this is none.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Certificates and keys, as PEM files. An empty path is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// The certificate that gRPC listeners show, with those that lead to its root. Empty: no TLS.
    pub cert_file: PathBuf,
    /// Its private key.
    pub key_file: PathBuf,
    /// Callers need a certificate that one of these has signed. Empty: they need none.
    pub client_ca_file: PathBuf,
    /// How often the files are looked at for a change.
    pub reload_ms: u64,
    /// What our clients do.
    pub client: ClientTlsConfig,
}

/// How gRPC clients check a server (`https://`), and what they show it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClientTlsConfig {
    /// Who may have signed the server's certificate. Empty: those that the system trusts.
    pub ca_file: PathBuf,
    /// The certificate to show, for servers that ask for one.
    pub cert_file: PathBuf,
    /// Its private key.
    pub key_file: PathBuf,
    /// The name that has to be in the server's certificate. Empty: the URL's host.
    pub server_name: String,
}

impl Default for TlsConfig {
    fn default() -> Self {
        Self {
            cert_file: PathBuf::new(),
            key_file: PathBuf::new(),
            client_ca_file: PathBuf::new(),
            // Kubernetes brings a changed Secret into a pod within a minute or two anyway.
            reload_ms: 10_000,
            client: ClientTlsConfig::default(),
        }
    }
}

impl TlsConfig {
    /// Checks that what belongs together is there together. Files are read later.
    ///
    /// # Errors
    /// The first key that is wrong. `section` is where this stands in the whole ("tls").
    pub fn validate(&self, section: &str) -> Result<(), ConfigError> {
        pair(section, &self.cert_file, &self.key_file)?;
        pair(&format!("{section}.client"), &self.client.cert_file, &self.client.key_file)?;
        if !is_set(&self.cert_file) && is_set(&self.client_ca_file) {
            let key = format!("{section}.client_ca_file");
            let fix = "set cert_file and key_file, too, or leave this out";
            return Err(ConfigError::invalid(key, self.client_ca_file.display(), "needs TLS to be on", fix));
        }
        if !(100..=3_600_000).contains(&self.reload_ms) {
            let key = format!("{section}.reload_ms");
            return Err(ConfigError::invalid(key, self.reload_ms, "is out of range", "write 100 to 3600000"));
        }
        Ok(())
    }
}

fn is_set(path: &Path) -> bool {
    !path.as_os_str().is_empty()
}

fn pair(section: &str, cert: &Path, key: &Path) -> Result<(), ConfigError> {
    let (missing, there) = match (is_set(cert), is_set(key)) {
        (true, false) => ("key_file", cert),
        (false, true) => ("cert_file", key),
        _ => return Ok(()),
    };
    let problem = format!("is missing beside {}", there.display());
    Err(ConfigError::invalid(format!("{section}.{missing}"), "\"\"", &problem, "set both, or neither"))
}

/// What a listener needs for TLS. Clones share it, and what is read anew.
#[derive(Clone)]
pub struct ServerTls(Arc<Reloaded>);

struct Reloaded {
    config: TlsConfig,
    current: RwLock<(Arc<ServerConfig>, [u8; 32])>,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServerTls").field(&self.0.config).finish()
    }
}

impl ServerTls {
    /// Reads the files. `None` if no certificate is configured.
    ///
    /// # Errors
    /// If a file can't be read or used; the error names it.
    pub fn load(config: &TlsConfig) -> anyhow::Result<Option<Self>> {
        if !is_set(&config.cert_file) {
            return Ok(None);
        }
        let current = RwLock::new((server_config(config)?, stamp(config)?));
        Ok(Some(Self(Arc::new(Reloaded { config: config.clone(), current }))))
    }

    pub(crate) async fn accept(self, stream: TcpStream) -> io::Result<tokio_rustls::server::TlsStream<TcpStream>> {
        let config = Arc::clone(&self.0.current.read().unwrap_or_else(PoisonError::into_inner).0);
        let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(stream)).await;
        let shaken = shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        shaken.inspect_err(|error| tracing::debug!(%error, "no TLS connection"))
    }

    /// Reads the files again whenever they change, until it is dropped. What can't be used is said,
    /// and what was there before goes on being used.
    pub(crate) async fn watch(self) {
        let every = Duration::from_millis(self.0.config.reload_ms);
        loop {
            tokio::time::sleep(every).await;
            let this = self.clone();
            // Joined only for its panics, of which there is nothing to say here.
            let _done = tokio::task::spawn_blocking(move || this.reload()).await;
        }
    }

    fn reload(&self) {
        let config = &self.0.config;
        let read = stamp(config).and_then(|stamp| {
            let is_new = self.0.current.read().unwrap_or_else(PoisonError::into_inner).1 != stamp;
            Ok(if is_new { Some((server_config(config)?, stamp)) } else { None })
        });
        match read {
            Ok(None) => {}
            Ok(Some(new)) => {
                *self.0.current.write().unwrap_or_else(PoisonError::into_inner) = new;
                tracing::info!(cert_file = %config.cert_file.display(), "certificate read anew");
            }
            // The files of a certificate are rarely changed all at once: the next look will do.
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "certificate not read anew, the last goes on being used");
            }
        }
    }
}

fn stamp(config: &TlsConfig) -> anyhow::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    for file in [&config.cert_file, &config.key_file, &config.client_ca_file].into_iter().filter(|file| is_set(file)) {
        hash.update(std::fs::read(file).with_context(|| format!("read {}", file.display()))?);
    }
    Ok(hash.finalize().into())
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    static PROVIDER: OnceLock<Arc<rustls::crypto::CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())))
}

fn server_config(config: &TlsConfig) -> anyhow::Result<Arc<ServerConfig>> {
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = if is_set(&config.client_ca_file) {
        let roots = Arc::new(roots(&config.client_ca_file)?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
        builder.with_client_cert_verifier(
            verifier.with_context(|| format!("use the certificates in {}", config.client_ca_file.display()))?,
        )
    } else {
        builder.with_no_client_auth()
    };
    let (chain, key) = identity(&config.cert_file, &config.key_file)?;
    let mut server = builder.with_single_cert(chain, key).with_context(|| {
        let (cert, key) = (config.cert_file.display(), config.key_file.display());
        format!("use the certificate in {cert} with the key in {key}")
    })?;
    server.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(server))
}

fn certificates(file: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.with_context(|| format!("read certificates from {}", file.display()))?;
    ensure!(!certificates.is_empty(), "{} has no certificate: it should be a PEM file", file.display());
    Ok(certificates)
}

fn identity(cert: &Path, key: &Path) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = certificates(cert)?;
    let key =
        PrivateKeyDer::from_pem_file(key).with_context(|| format!("read a private key from {}", key.display()))?;
    Ok((chain, key))
}

fn roots(file: &Path) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).with_context(|| format!("use a certificate in {}", file.display()))?;
    }
    Ok(roots)
}

/// The certificates that the system trusts, read once: there are some hundred of them.
fn system_roots() -> RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    let read = || {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "certificates of the system not read");
        }
        let mut roots = RootCertStore::empty();
        // A system may trust some that this library does not understand.
        let _ignored = roots.add_parsable_certificates(found.certs);
        roots
    };
    ROOTS.get_or_init(read).clone()
}

impl ClientTlsConfig {
    fn client_config(&self) -> anyhow::Result<ClientConfig> {
        let roots = if is_set(&self.ca_file) { roots(&self.ca_file)? } else { system_roots() };
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let builder = builder.with_root_certificates(roots);
        let mut client = if is_set(&self.cert_file) {
            let (chain, key) = identity(&self.cert_file, &self.key_file)?;
            builder.with_client_auth_cert(chain, key).context("use the client's certificate with its key")?
        } else {
            builder.with_no_client_auth()
        };
        client.alpn_protocols = vec![ALPN.to_vec()];
        Ok(client)
    }

    /// Reads the files, to see that they can be used. Connections read them again, so that each
    /// has the newest.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        self.client_config().map(drop)
    }

    /// Connects to `host` and checks who answers.
    pub(crate) async fn connect(&self, host: &str, port: u16) -> anyhow::Result<client::TlsStream<TcpStream>> {
        let this = self.clone();
        let config = tokio::task::spawn_blocking(move || this.client_config()).await.context("read certificates")??;
        let name = if self.server_name.is_empty() { host } else { &self.server_name };
        let name = ServerName::try_from(name.to_owned()).with_context(|| format!("{name:?} is no name of a host"))?;
        let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
        stream.set_nodelay(true)?;
        Ok(TlsConnector::from(Arc::new(config)).connect(name, stream).await?)
    }
}
