//! TLS to the server: private authorities, certificates of clients, and files that change.

use std::time::Duration;

use waybill_domain::ErrorClass;
use waybill_llm::{Answer, LlmError, LlmProvider, OpenAi, OpenAiConfig};
use waybill_testkit::{Authority, FaultProxy, TlsProxy, eventually};
use waybill_tls::{ClientTlsConfig, Serves};

use crate::{
    openai::{config, good, task},
    server::{Reply, Server},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// A server behind TLS that asks clients for certificates.
struct Secured {
    dir: tempfile::TempDir,
    way: FaultProxy,
    _tls: TlsProxy,
    _server: Server,
}

impl Secured {
    async fn start(authority: &Authority, clients: &Authority) -> Self {
        let server = Server::start(|_, _| Reply::completion(&good())).await;
        let dir = tempfile::tempdir().unwrap();
        let upstream = server.url.strip_prefix("http://").unwrap().parse().unwrap();
        let files = authority.server(dir.path(), Some(clients)).unwrap();
        let tls = TlsProxy::start(upstream, &files, Serves::Http).await.unwrap();
        let way = FaultProxy::start(tls.addr()).await.unwrap();
        Self { dir, way, _tls: tls, _server: server }
    }

    fn client(&self, tls: ClientTlsConfig) -> OpenAi {
        let url = format!("https://localhost:{}", self.way.addr().port());
        OpenAi::new(&OpenAiConfig { tls, ..config(&url) }).unwrap()
    }

    /// Asks with certificates of these.
    async fn ask(&self, trusted: &Authority, shown: Option<&Authority>) -> Result<Answer, LlmError> {
        let dir = tempfile::tempdir().unwrap();
        self.client(trusted.client(dir.path(), shown).unwrap()).extract(&task()).await
    }
}

#[tokio::test]
async fn either_side_trusts_whom_its_settings_name() {
    let [ours, clients, other] = Authority::several().unwrap();
    let secured = Secured::start(&ours, &clients).await;
    secured.ask(&ours, Some(&clients)).await.unwrap();
    let error = secured.ask(&other, Some(&clients)).await.unwrap_err();
    assert!(error.to_string().contains("openai.tls.ca_file"), "{error}");
    assert_eq!(error.class(), ErrorClass::Transient, "files change");
    for shown in [None, Some(&other)] {
        let error = secured.ask(&ours, shown).await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Transient, "{error}");
    }
    // Unless the connection is gone before the server's word of it is read.
    eventually("the error names what the server does not like", PATIENCE, async || {
        let error = secured.ask(&ours, Some(&other)).await.unwrap_err().to_string();
        error.contains("openai.tls.cert_file")
    })
    .await;
}

#[tokio::test]
async fn a_new_connection_has_the_newest_certificates() {
    let [old, new, clients] = Authority::several().unwrap();
    let secured = Secured::start(&old, &clients).await;
    let files = tempfile::tempdir().unwrap();
    let client = secured.client(old.client(files.path(), Some(&clients)).unwrap());
    client.extract(&task()).await.unwrap();

    new.server(secured.dir.path(), Some(&clients)).unwrap();
    eventually("the server has its new certificate", PATIENCE, async || {
        secured.ask(&new, Some(&clients)).await.is_ok()
    })
    .await;
    new.client(files.path(), Some(&clients)).unwrap();
    secured.way.cut();
    eventually("the client trusts whom it should trust now", PATIENCE, async || client.extract(&task()).await.is_ok())
        .await;
}

#[tokio::test]
async fn the_server_may_have_another_name_than_its_url() {
    let [ours, clients] = Authority::several().unwrap();
    let secured = Secured::start(&ours, &clients).await;
    let files = tempfile::tempdir().unwrap();
    let mut tls = ours.client(files.path(), Some(&clients)).unwrap();
    tls.server_name = "elsewhere".to_owned();
    let error = secured.client(tls.clone()).extract(&task()).await.unwrap_err();
    assert!(error.to_string().contains("openai.tls.server_name"), "{error}");
    // The certificate is for localhost, and that is not how it is called.
    tls.server_name = "localhost".to_owned();
    let url = format!("https://127.0.0.1:{}", secured.way.addr().port());
    OpenAi::new(&OpenAiConfig { tls, ..config(&url) }).unwrap().extract(&task()).await.unwrap();
}

#[test]
fn what_can_t_be_used_is_named_before_anything_is_sent() {
    let tls = ClientTlsConfig { ca_file: "/nowhere/ca.pem".into(), ..ClientTlsConfig::default() };
    let error = OpenAi::new(&OpenAiConfig { tls: tls.clone(), ..config("https://localhost:1") }).err().unwrap();
    assert!(error.to_string().contains("openai.tls.ca_file"), "{error}");
    let error = OpenAiConfig { tls, ..config("http://localhost:1") }.validate().unwrap_err();
    assert!(error.to_string().contains("openai.tls"), "{error}");
}
