use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::files::{InvalidTls, Named, check_pair, key_of};
use crate::provider;

/// A certificate, with those that lead to its root, and its key.
type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// How a client checks a server, and what it shows it. An empty path is none.
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

impl ClientTlsConfig {
    /// Checks that what belongs together is there together. Files are read later.
    ///
    /// # Errors
    /// The first key that is wrong. `section` is where this stands in the whole ("qdrant.tls").
    pub fn validate(&self, section: &str) -> Result<(), InvalidTls> {
        check_pair(section, &self.cert_file, &self.key_file)?;
        match self.server_name() {
            Some(name) if ServerName::try_from(name).is_err() => Err(InvalidTls {
                key: key_of(section, "server_name"),
                value: format!("{name:?}"),
                problem: "is no name of a host".to_owned(),
                fix: "write the name that is in the server's certificate",
            }),
            _ => Ok(()),
        }
    }

    /// Says whether anything is set: of no use to a client that does not speak TLS.
    #[must_use]
    pub fn is_set(&self) -> bool {
        *self != Self::default()
    }

    /// Makes this a client's. Its errors call the settings by `section`; empty: by the flags of the
    /// command line.
    #[must_use]
    pub fn of(&self, section: &'static str) -> ClientTls {
        ClientTls { section, config: self.clone() }
    }

    fn server_name(&self) -> Option<&str> {
        Some(self.server_name.as_str()).filter(|name| !name.is_empty())
    }
}

/// What a client needs for TLS.
#[derive(Debug, Clone, Default)]
pub struct ClientTls {
    section: &'static str,
    config: ClientTlsConfig,
}

impl ClientTls {
    /// Reads the files, to see that they can be used. Connections read them again, so that each
    /// has the newest.
    ///
    /// # Errors
    /// The first setting whose file can't be used.
    pub fn check(&self) -> Result<(), InvalidTls> {
        self.client_config().map(drop)
    }

    /// Connects to `host` and checks who answers. The caller limits the time. `protocols` are those
    /// that are offered by ALPN.
    ///
    /// # Errors
    /// When nobody answers, a file can't be used, or either side does not trust the other; the
    /// error names the settings.
    pub async fn connect(&self, host: &str, port: u16, protocols: &[&[u8]]) -> io::Result<ClientStream> {
        let this = self.clone();
        let read = spawn_blocking(move || this.client_config()).await.map_err(io::Error::other)?;
        let mut config = read.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let host = host.trim_matches(['[', ']']);
        let name = self.config.server_name().unwrap_or(host);
        let name = ServerName::try_from(name.to_owned()).map_err(|error| refused(self.section, host, &error))?;
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        let shaken = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        let stream = shaken.map_err(|error| refused(self.section, host, &error))?;
        Ok(ClientStream { stream, section: self.section, host: host.to_owned() })
    }

    fn file<'a>(&'a self, name: &'static str, path: &'a Path) -> Named<'a> {
        Named { section: self.section, name, path }
    }

    fn ca(&self) -> Named<'_> {
        self.file("ca_file", &self.config.ca_file)
    }

    fn key(&self) -> Named<'_> {
        self.file("key_file", &self.config.key_file)
    }

    /// Returns where its settings stand.
    #[must_use]
    pub const fn section(&self) -> &'static str {
        self.section
    }

    /// Names the settings to look at if `error` comes of a server that broke off the handshake, as
    /// one does that refuses our certificate. For clients that make their own connections.
    #[must_use]
    pub fn hint(&self, error: &(dyn std::error::Error + 'static)) -> Option<String> {
        let [cert, key] = ["cert_file", "key_file"].map(|name| key_of(self.section, name));
        is_alert(error).then(|| format!("the server refuses us; check {cert} and {key}"))
    }

    pub(crate) fn is_set(&self) -> bool {
        self.config.is_set()
    }

    pub(crate) fn server_name(&self) -> Option<&str> {
        self.config.server_name()
    }

    pub(crate) fn builder(&self) -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, InvalidTls> {
        ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| self.ca().invalid(error, "report this as a bug"))
    }

    /// Reads who may have signed the server's certificate.
    pub(crate) fn roots(&self) -> Result<RootCertStore, InvalidTls> {
        let ca = self.ca();
        if ca.is_set() { ca.roots() } else { Ok(system_roots()) }
    }

    /// Reads the certificate to show, with its key. `None` if there is none to be shown.
    pub(crate) fn identity(&self) -> Option<Result<Identity, InvalidTls>> {
        let cert = self.file("cert_file", &self.config.cert_file);
        cert.is_set().then(|| Ok((cert.certificates()?, self.key().private_key()?)))
    }

    fn client_config(&self) -> Result<ClientConfig, InvalidTls> {
        let builder = self.builder()?.with_root_certificates(self.roots()?);
        let Some((chain, key)) = self.identity().transpose()? else {
            return Ok(builder.with_no_client_auth());
        };
        builder
            .with_client_auth_cert(chain, key)
            .map_err(|error| self.key().invalid(format_args!("can't be used: {error}"), "name the key of cert_file"))
    }
}

/// Says which settings decide about a handshake that has failed.
pub(crate) fn refusal(section: &str, host: &str, error: &dyn std::error::Error) -> String {
    let [ca, server, cert] = ["ca_file", "server_name", "cert_file"].map(|name| key_of(section, name));
    format!("no TLS with {host}: {error}; check {ca} and {server}, and {cert} if the server asks for a certificate")
}

/// Says whether the other side broke a connection off by an alert of TLS.
fn is_alert(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(rustls::Error::AlertReceived(_)) = error.downcast_ref() {
            return true;
        }
        // What an `io::Error` holds is not among its sources.
        let held = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = held.map(|held| held as &(dyn std::error::Error + 'static)).or_else(|| error.source());
    }
    false
}

fn refused(section: &str, host: &str, error: &dyn std::error::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, refusal(section, host, error))
}

/// A connection to a server. In TLS 1.3 a client hears that its certificate is refused after its
/// own handshake: as an error of the first read, which names the settings, too.
#[derive(Debug)]
pub struct ClientStream {
    stream: TlsStream<TcpStream>,
    section: &'static str,
    host: String,
}

impl AsyncRead for ClientStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        read.map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => refused(self.section, &self.host, &error),
            _ => error,
        })
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
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
