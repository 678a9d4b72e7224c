//! Certificates, and TLS in front of servers that speak none.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use waybill_tls::{ClientTlsConfig, ServerTls, ServerTlsConfig, Serves};

/// Who signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the key, though it is good for nothing.
        f.write_str("Authority")
    }
}

impl Authority {
    /// Makes one that nobody knows.
    ///
    /// # Errors
    /// If there is no randomness.
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        let name = format!("authority {}", COUNT.fetch_add(1, Ordering::Relaxed));
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    /// Makes several, who know nothing of each other.
    ///
    /// # Errors
    /// As [`Authority::new`].
    pub fn several<const N: usize>() -> Result<[Self; N]> {
        let made = (0..N).map(|_| Self::new()).collect::<Result<Vec<_>>>()?;
        made.try_into().map_err(|made: Vec<_>| anyhow::anyhow!("{} are not {N}", made.len()))
    }

    /// Writes a server's files into `dir`, or replaces them: a certificate for `localhost`, and
    /// whose certificates callers need. They are looked at every 100 ms.
    ///
    /// # Errors
    /// If a file can't be written.
    pub fn server(&self, dir: &Path, callers: Option<&Self>) -> Result<ServerTlsConfig> {
        let file = |name: &str| dir.join(format!("server-{name}.pem"));
        self.sign("localhost", &file("cert"), &file("key"))?;
        let mut config =
            ServerTlsConfig { cert_file: file("cert"), key_file: file("key"), reload_ms: 100, ..Default::default() };
        if let Some(callers) = callers {
            config.client_ca_file = file("callers");
            callers.write(&config.client_ca_file)?;
        }
        Ok(config)
    }

    /// Writes a client's files into `dir`, or replaces them: it trusts whom this has signed, and
    /// shows a certificate of `shows`.
    ///
    /// # Errors
    /// If a file can't be written.
    pub fn client(&self, dir: &Path, shows: Option<&Self>) -> Result<ClientTlsConfig> {
        let file = |name: &str| dir.join(format!("client-{name}.pem"));
        self.write(&file("ca"))?;
        let mut config = ClientTlsConfig { ca_file: file("ca"), ..Default::default() };
        if let Some(shows) = shows {
            (config.cert_file, config.key_file) = (file("cert"), file("key"));
            shows.sign("a-client", &config.cert_file, &config.key_file)?;
        }
        Ok(config)
    }

    /// Writes its own certificate, in PEM.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn write(&self, file: &Path) -> Result<()> {
        std::fs::write(file, &self.pem).with_context(|| format!("write {}", file.display()))
    }

    /// Writes a certificate for `name`, and its key, in PEM.
    ///
    /// # Errors
    /// If a file can't be written, or `name` is none.
    pub fn sign(&self, name: &str, cert: &Path, key: &Path) -> Result<()> {
        let pair = KeyPair::generate()?;
        let mut params = CertificateParams::new([name.to_owned()])?;
        // Not the authority's: OpenSSL would take the certificate for one that signs itself.
        params.distinguished_name.push(DnType::CommonName, name);
        let signed = params.signed_by(&pair, &self.issuer)?.pem();
        for (file, text) in [(key, pair.serialize_pem()), (cert, signed)] {
            std::fs::write(file, text).with_context(|| format!("write {}", file.display()))?;
        }
        Ok(())
    }
}

/// A server that ends TLS in front of `upstream`, as a sidecar or a load balancer does. Dropping it
/// ends its connections.
#[derive(Debug)]
pub struct TlsProxy {
    addr: SocketAddr,
    _tasks: JoinSet<()>,
}

impl TlsProxy {
    /// Starts one at a free port of 127.0.0.1. Its certificate is reloaded. Whom `config` asks for a
    /// certificate and who has none gets no connection, whatever it is for.
    ///
    /// # Errors
    /// If no port can be bound, or a file of `config` can't be used.
    pub async fn start(upstream: SocketAddr, config: &ServerTlsConfig, serves: Serves) -> Result<Self> {
        let tls = ServerTls::load("proxy", config, serves)?.context("name a certificate")?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("bind a port")?;
        let addr = listener.local_addr()?;
        let mut tasks = JoinSet::new();
        tasks.spawn(tls.clone().watch());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let tls = tls.clone();
                connections.spawn(async move {
                    // Either side may hang up, or refuse the other: that is what tests are about.
                    let _ended = async {
                        let asks = tls.asks_callers();
                        let mut client = tls.accept(client).await?;
                        if asks && client.get_ref().1.peer_certificates().is_none() {
                            return Ok((0, 0));
                        }
                        let mut server = TcpStream::connect(upstream).await?;
                        copy_bidirectional(&mut client, &mut server).await
                    }
                    .await;
                });
            }
        });
        Ok(Self { addr, _tasks: tasks })
    }

    /// Returns the address to connect to.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}
