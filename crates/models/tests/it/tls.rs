//! TLS to servers of models. What a handshake does is tested where `waybill-llm` talks to its own:
//! here, that either kind of server is spoken to as its section says.

use waybill_models::{ModelError, Purpose, build};
use waybill_testkit::{Authority, TlsProxy};
use waybill_tls::{ClientTlsConfig, Serves};

use crate::{
    remote::{openai, openai_answer, tei, tei_answer},
    server::{Reply, Server},
};

/// Embeds by a server of either kind behind TLS that asks clients for certificates.
async fn embed(authority: &Authority, clients: &Authority, tls: ClientTlsConfig) -> [Result<(), ModelError>; 2] {
    let server = Server::start(|request| {
        let is_openai = request.line.starts_with("POST /v1/");
        Reply::ok(&if is_openai { openai_answer(request) } else { tei_answer(request) })
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let files = authority.server(dir.path(), Some(clients)).unwrap();
    let upstream = server.url.strip_prefix("http://").unwrap().parse().unwrap();
    let proxy = TlsProxy::start(upstream, &files, Serves::Http).await.unwrap();
    let url = format!("https://localhost:{}", proxy.addr().port());
    let (mut by_openai, mut by_tei) = (openai(&url), tei(&url));
    by_openai.openai.tls = tls.clone();
    by_tei.tei.tls = tls;
    let mut done = [Ok(()), Ok(())];
    for (config, done) in [by_openai, by_tei].iter().zip(&mut done) {
        let embedded = async { build(config).await?.embed(&["text 1".to_owned()], Purpose::Query).await };
        *done = embedded.await.map(drop);
    }
    done
}

#[tokio::test]
async fn either_side_trusts_whom_its_settings_name() {
    let [ours, clients, other] = Authority::several().unwrap();
    let dir = tempfile::tempdir().unwrap();
    for done in embed(&ours, &clients, ours.client(dir.path(), Some(&clients)).unwrap()).await {
        done.unwrap();
    }
    let refused = embed(&ours, &clients, other.client(dir.path(), Some(&clients)).unwrap()).await;
    for (done, said) in refused.into_iter().zip(["openai.tls.ca_file", "tei.tls.ca_file"]) {
        let error = done.unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    for done in embed(&ours, &clients, ours.client(dir.path(), None).unwrap()).await {
        done.unwrap_err();
    }
}

#[tokio::test]
async fn certificates_for_a_url_without_tls_are_refused() {
    let tls = ClientTlsConfig { ca_file: "/ca.pem".into(), ..ClientTlsConfig::default() };
    let (mut by_openai, mut by_tei) = (openai("http://localhost:1"), tei("http://localhost:1"));
    (by_openai.openai.tls, by_tei.tei.tls) = (tls.clone(), tls);
    for (config, said) in [(by_openai, "openai.tls"), (by_tei, "tei.tls")] {
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}
