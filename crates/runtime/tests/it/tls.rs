//! TLS between real clients and servers, and certificates that change under them.

use std::path::Path;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tempfile::TempDir;
use tonic::Code;
use waybill_runtime::Signals;
use waybill_runtime::auth::Guard;
use waybill_runtime::config::Secret;
use waybill_runtime::grpc::{ClientOptions, Listener, peer};
use waybill_runtime::tls::{ClientTlsConfig, ServerTls, TlsConfig};

use crate::echo::{LONG, Running, call, start_on};

/// Who signs certificates.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Writes a certificate for `name` and its key.
    fn sign(&self, name: &str, cert: &Path, key: &Path) {
        let pair = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        std::fs::write(key, pair.serialize_pem()).unwrap();
        std::fs::write(cert, params.signed_by(&pair, &self.issuer).unwrap().pem()).unwrap();
    }
}

/// A server with a certificate of `authority`, in files that can be replaced.
struct Secured {
    dir: TempDir,
    server: Running,
}

impl Secured {
    async fn start(authority: &Authority, client_ca: Option<&Authority>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = TlsConfig {
            cert_file: dir.path().join("cert.pem"),
            key_file: dir.path().join("key.pem"),
            client_ca_file: client_ca.map(|_| dir.path().join("clients.pem")).unwrap_or_default(),
            reload_ms: 100,
            client: ClientTlsConfig::default(),
        };
        authority.sign("localhost", &config.cert_file, &config.key_file);
        if let Some(client_ca) = client_ca {
            std::fs::write(&config.client_ca_file, &client_ca.pem).unwrap();
        }
        let tls = ServerTls::load(&config).unwrap();
        let server = start_on(LONG, &Signals::default(), |tcp| Listener::new(tcp, tls, Guard::open())).await;
        Self { dir, server }
    }

    /// Calls over a connection of its own, trusting `authority`.
    async fn call(&self, authority: &Authority, client: Option<&Authority>) -> Result<(), Code> {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        std::fs::write(file("ca.pem"), &authority.pem).unwrap();
        let mut tls = ClientTlsConfig { ca_file: file("ca.pem"), ..ClientTlsConfig::default() };
        if let Some(client) = client {
            (tls.cert_file, tls.key_file) = (file("cert.pem"), file("key.pem"));
            client.sign("a-client", &tls.cert_file, &tls.key_file);
        }
        let url = format!("https://localhost:{}", self.server.address.port());
        let options = ClientOptions { tls, api_key: Secret::default() };
        let channel = peer(&url, &options).unwrap();
        call(channel, "hello").await.map(|_| ()).map_err(|status| status.code())
    }
}

#[tokio::test]
async fn callers_know_the_server_by_its_certificate() {
    let (ours, other) = (Authority::new(), Authority::new());
    let secured = Secured::start(&ours, None).await;
    secured.call(&ours, None).await.unwrap();
    assert_eq!(secured.call(&other, None).await, Err(Code::Unavailable));
    let plain = peer(&format!("http://{}", secured.server.address), &ClientOptions::default()).unwrap();
    assert!(call(plain, "hello").await.is_err());
    secured.call(&ours, None).await.unwrap();
}

#[tokio::test]
async fn a_server_may_ask_callers_for_a_certificate() {
    let (ours, theirs, other) = (Authority::new(), Authority::new(), Authority::new());
    let secured = Secured::start(&ours, Some(&theirs)).await;
    secured.call(&ours, Some(&theirs)).await.unwrap();
    // In TLS 1.3 a client hears of it after its handshake, as whatever the broken connection is.
    assert!(secured.call(&ours, None).await.is_err());
    assert!(secured.call(&ours, Some(&other)).await.is_err());
    secured.call(&ours, Some(&theirs)).await.unwrap();
}

/// Tries until it is so, within a time that no working reload needs.
async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let tried = tokio::time::timeout(Duration::from_secs(30), async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    tried.await.unwrap_or_else(|_| panic!("not so within 30 s: {what}"));
}

#[tokio::test]
async fn a_certificate_that_is_replaced_is_shown_without_a_restart() {
    let (old, new) = (Authority::new(), Authority::new());
    let secured = Secured::start(&old, None).await;
    let (cert, key) = (secured.dir.path().join("cert.pem"), secured.dir.path().join("key.pem"));
    secured.call(&old, None).await.unwrap();
    // Half of a change, or nonsense, changes nothing.
    std::fs::write(&cert, "nonsense").unwrap();
    for _ in 0..20 {
        secured.call(&old, None).await.unwrap();
    }
    new.sign("localhost", &cert, &key);
    eventually("the new certificate is shown", async || secured.call(&new, None).await.is_ok()).await;
    assert_eq!(secured.call(&old, None).await, Err(Code::Unavailable));
}

#[test]
fn what_can_t_be_used_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let authority = Authority::new();
    authority.sign("localhost", &file("cert"), &file("key"));
    authority.sign("localhost", &file("cert2"), &file("key2"));
    std::fs::write(file("empty"), "").unwrap();
    let load = |cert: &str, key: &str| {
        let config = TlsConfig { cert_file: file(cert), key_file: file(key), ..TlsConfig::default() };
        ServerTls::load(&config).map_err(|error| format!("{error:#}"))
    };
    assert!(load("cert", "key").unwrap().is_some());
    for (cert, key, said) in [
        ("none", "key", "none"),
        ("cert", "none", "none"),
        ("empty", "key", "no certificate"),
        ("cert", "empty", "private key"),
        ("cert", "key2", "key2"),
    ] {
        let error = load(cert, key).unwrap_err();
        assert!(error.contains(said), "{cert} {key}: {error}");
    }
    assert!(ServerTls::load(&TlsConfig::default()).unwrap().is_none());
    let half = TlsConfig { cert_file: file("cert"), ..TlsConfig::default() };
    assert!(half.validate("tls").unwrap_err().to_string().contains("tls.key_file"));
    let unused = TlsConfig { client_ca_file: file("cert"), ..TlsConfig::default() };
    assert!(unused.validate("tls").unwrap_err().to_string().contains("tls.client_ca_file"));
}
