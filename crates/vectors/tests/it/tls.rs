//! TLS to the server: private authorities, certificates of clients, and files that change.

use std::time::Duration;

use waybill_domain::ErrorClass;
use waybill_testkit::{Authority, FaultProxy, TlsProxy, eventually};
use waybill_tls::{ClientTlsConfig, Serves};
use waybill_vectors::{QdrantConfig, VectorError, Vectors};

use crate::store::LocalServer;

const PATIENCE: Duration = Duration::from_secs(30);

/// A server behind TLS that asks clients for certificates.
struct Secured {
    dir: tempfile::TempDir,
    way: FaultProxy,
    _tls: TlsProxy,
    _server: LocalServer,
}

impl Secured {
    async fn start(authority: &Authority, clients: &Authority) -> Self {
        let (server, dir) = (LocalServer::start(), tempfile::tempdir().unwrap());
        let upstream = server.url.strip_prefix("http://").unwrap().parse().unwrap();
        let tls = TlsProxy::start(upstream, &authority.server(dir.path(), Some(clients)).unwrap(), Serves::Grpc)
            .await
            .unwrap();
        let way = FaultProxy::start(tls.addr()).await.unwrap();
        Self { dir, way, _tls: tls, _server: server }
    }

    fn client(&self, tls: &ClientTlsConfig) -> Vectors {
        let mut config = QdrantConfig::new(format!("https://localhost:{}", self.way.addr().port()));
        config.tls = tls.of("qdrant.tls");
        Vectors::connect(&config).unwrap()
    }

    /// Asks with certificates of these.
    async fn ask(&self, trusted: &Authority, shown: Option<&Authority>) -> Result<String, VectorError> {
        let dir = tempfile::tempdir().unwrap();
        self.client(&trusted.client(dir.path(), shown).unwrap()).health().await
    }
}

#[tokio::test]
async fn either_side_trusts_whom_its_settings_name() {
    let [ours, clients, other] = Authority::several().unwrap();
    let secured = Secured::start(&ours, &clients).await;
    secured.ask(&ours, Some(&clients)).await.unwrap();
    for (trusted, shown, said) in [
        (&other, Some(&clients), "qdrant.tls.ca_file"),
        (&ours, None, "qdrant.tls.cert_file"),
        (&ours, Some(&other), "qdrant.tls.cert_file"),
    ] {
        let error = secured.ask(trusted, shown).await.unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
        // Files change: no point is given up for it.
        assert_ne!(error.class(), ErrorClass::Permanent, "{error}");
    }
}

#[tokio::test]
async fn a_new_connection_has_the_newest_certificates() {
    let [old, new, clients] = Authority::several().unwrap();
    let secured = Secured::start(&old, &clients).await;
    let files = tempfile::tempdir().unwrap();
    let vectors = secured.client(&old.client(files.path(), Some(&clients)).unwrap());
    vectors.health().await.unwrap();

    new.server(secured.dir.path(), Some(&clients)).unwrap();
    eventually("the server has its new certificate", PATIENCE, async || {
        secured.ask(&new, Some(&clients)).await.is_ok()
    })
    .await;
    // A connection that is open stays so.
    vectors.health().await.unwrap();
    new.client(files.path(), Some(&clients)).unwrap();
    secured.way.cut();
    eventually("the client trusts whom it should trust now", PATIENCE, async || vectors.health().await.is_ok()).await;
}

#[tokio::test]
async fn a_file_that_can_t_be_used_is_named_before_anything_is_sent() {
    let mut config = QdrantConfig::new("https://localhost:1");
    config.tls = ClientTlsConfig { ca_file: "/nowhere/ca.pem".into(), ..ClientTlsConfig::default() }.of("qdrant.tls");
    let error = Vectors::connect(&config).unwrap_err();
    assert!(matches!(&error, VectorError::Config(text) if text.contains("qdrant.tls.ca_file")), "{error}");
}
