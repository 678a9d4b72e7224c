//! TLS between real clients and servers, and certificates that change under them.

use std::time::Duration;

use tempfile::TempDir;
use tonic::Code;
use waybill_runtime::Signals;
use waybill_runtime::auth::Guard;
use waybill_runtime::config::Secret;
use waybill_runtime::grpc::{ClientOptions, Listener, peer};
use waybill_testkit::{Authority, eventually};
use waybill_tls::{ServerTls, ServerTlsConfig, Serves};

use crate::echo::{LONG, Running, call, start_on};

/// No working reload needs as long.
const PATIENCE: Duration = Duration::from_secs(30);

fn load(config: &ServerTlsConfig) -> Result<Option<ServerTls>, waybill_tls::InvalidTls> {
    ServerTls::load("tls", config, Serves::Grpc)
}

/// A server with a certificate of `authority`, in files that can be replaced.
struct Secured {
    dir: TempDir,
    server: Running,
}

impl Secured {
    async fn start(authority: &Authority, client_ca: Option<&Authority>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = authority.server(dir.path(), client_ca).unwrap();
        let tls = load(&config).unwrap();
        let server = start_on(LONG, &Signals::default(), |tcp| Listener::new(tcp, tls, Guard::open())).await;
        Self { dir, server }
    }

    /// Calls over a connection of its own, trusting `authority`.
    async fn call(&self, authority: &Authority, client: Option<&Authority>) -> Result<(), Code> {
        let dir = tempfile::tempdir().unwrap();
        let tls = authority.client(dir.path(), client).unwrap();
        let url = format!("https://localhost:{}", self.server.address.port());
        let options = ClientOptions { tls: tls.of("endpoints.tls"), api_key: Secret::default() };
        let channel = peer(&url, &options).unwrap();
        call(channel, "hello").await.map(|_| ()).map_err(|status| status.code())
    }
}

#[tokio::test]
async fn callers_know_the_server_by_its_certificate() {
    let [ours, other] = Authority::several().unwrap();
    let secured = Secured::start(&ours, None).await;
    secured.call(&ours, None).await.unwrap();
    assert_eq!(secured.call(&other, None).await, Err(Code::Unavailable));
    let plain = peer(&format!("http://{}", secured.server.address), &ClientOptions::default()).unwrap();
    assert!(call(plain, "hello").await.is_err());
    secured.call(&ours, None).await.unwrap();
}

#[tokio::test]
async fn a_server_may_ask_callers_for_a_certificate() {
    let [ours, theirs, other] = Authority::several().unwrap();
    let secured = Secured::start(&ours, Some(&theirs)).await;
    secured.call(&ours, Some(&theirs)).await.unwrap();
    // In TLS 1.3 a client hears of it after its handshake, as whatever the broken connection is.
    assert!(secured.call(&ours, None).await.is_err());
    assert!(secured.call(&ours, Some(&other)).await.is_err());
    secured.call(&ours, Some(&theirs)).await.unwrap();
}

#[tokio::test]
async fn a_certificate_that_is_replaced_is_shown_without_a_restart() {
    let [old, new] = Authority::several().unwrap();
    let secured = Secured::start(&old, None).await;
    secured.call(&old, None).await.unwrap();
    // Half of a change, or nonsense, changes nothing.
    std::fs::write(secured.dir.path().join("server-cert.pem"), "nonsense").unwrap();
    for _ in 0..20 {
        secured.call(&old, None).await.unwrap();
    }
    new.server(secured.dir.path(), None).unwrap();
    eventually("the new certificate is shown", PATIENCE, async || secured.call(&new, None).await.is_ok()).await;
    assert_eq!(secured.call(&old, None).await, Err(Code::Unavailable));
}

#[test]
fn what_can_t_be_used_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let authority = Authority::new().unwrap();
    authority.sign("localhost", &file("cert"), &file("key")).unwrap();
    authority.sign("localhost", &file("cert2"), &file("key2")).unwrap();
    std::fs::write(file("empty"), "").unwrap();
    let of = |cert: &str, key: &str| {
        let config = ServerTlsConfig { cert_file: file(cert), key_file: file(key), ..ServerTlsConfig::default() };
        load(&config).map_err(|error| error.to_string())
    };
    assert!(of("cert", "key").unwrap().is_some());
    for (cert, key, said) in [
        ("none", "key", "tls.cert_file"),
        ("cert", "none", "tls.key_file"),
        ("empty", "key", "no certificate"),
        ("cert", "empty", "no private key"),
        ("cert", "key2", "key2"),
    ] {
        let error = of(cert, key).unwrap_err();
        assert!(error.contains(said), "{cert} {key}: {error}");
    }
    assert!(load(&ServerTlsConfig::default()).unwrap().is_none());
    let half = ServerTlsConfig { cert_file: file("cert"), ..ServerTlsConfig::default() };
    assert!(half.validate("tls").unwrap_err().to_string().contains("tls.key_file"));
    let unused = ServerTlsConfig { client_ca_file: file("cert"), ..ServerTlsConfig::default() };
    assert!(unused.validate("tls").unwrap_err().to_string().contains("tls.client_ca_file"));
}
