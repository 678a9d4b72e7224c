//! Telemetry over TLS: a collector and an admin port that ask for certificates.

use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use waybill_testkit::{Authority, FaultProxy, Program, TlsProxy, eventually};
use waybill_tls::{ClientTlsConfig, Serves};

use super::rotel::Rotel;
use crate::place::{Place, UP_LIMIT};

/// A real collector behind TLS, and the way to it.
struct Collector {
    rotel: Rotel,
    _tls: TlsProxy,
    way: FaultProxy,
}

impl Collector {
    async fn start(dir: &Path, authority: &Authority, clients: &Authority) -> Self {
        let rotel = Rotel::start(dir).await;
        let upstream = rotel.endpoint.strip_prefix("http://").unwrap().parse().unwrap();
        let tls =
            TlsProxy::start(upstream, &authority.server(dir, Some(clients)).unwrap(), Serves::Grpc).await.unwrap();
        let way = FaultProxy::start(tls.addr()).await.unwrap();
        Self { rotel, _tls: tls, way }
    }

    /// Runs everything, with traces sent here.
    async fn up(&self, place: &Place, tls: &ClientTlsConfig, more: &[(&str, &Path)]) -> Program {
        let endpoint = format!("https://localhost:{}", self.way.addr().port());
        let mut variables = vec![("WAYBILL_TELEMETRY__OTLP_ENDPOINT", endpoint.as_str())];
        let files = [
            ("WAYBILL_TELEMETRY__TLS__CA_FILE", &*tls.ca_file),
            ("WAYBILL_TELEMETRY__TLS__CERT_FILE", &*tls.cert_file),
            ("WAYBILL_TELEMETRY__TLS__KEY_FILE", &*tls.key_file),
        ];
        variables.extend(files.iter().chain(more).map(|(name, file)| (*name, file.to_str().unwrap())));
        place.up_with(&variables).await
    }
}

async fn get(url: &str, tls: &ClientTlsConfig) -> String {
    let port = url.strip_prefix("https://127.0.0.1:").unwrap().parse().unwrap();
    let mut stream = tls.of("test").connect("localhost", port, &[]).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn collector_and_scraper_meet_with_certificates_on_both_sides() {
    let [old, new, clients] = Authority::several().unwrap();
    let (place, servers) = (Place::new(), tempfile::tempdir().unwrap());
    let collector = Collector::start(servers.path(), &old, &clients).await;
    let tls = old.client(place.dir(), Some(&clients)).unwrap();
    let admin = old.server(place.dir(), Some(&clients)).unwrap();
    let files = [
        ("WAYBILL_ADMIN__TLS__CERT_FILE", &*admin.cert_file),
        ("WAYBILL_ADMIN__TLS__KEY_FILE", &*admin.key_file),
        ("WAYBILL_ADMIN__TLS__CLIENT_CA_FILE", &*admin.client_ca_file),
    ];
    let up = collector.up(&place, &tls, &files).await;
    // Each is a call, which has a span of its own.
    let calls = async || place.run(&["projects", "ls"]).await.expect_code(0);
    calls().await;
    let count = || collector.rotel.spans().iter().filter(|span| span.name.ends_with("/ListProjects")).count();
    eventually("the collector has the call's span", UP_LIMIT, async || count() > 0).await;

    let url = place.endpoints()["admin"].as_str().unwrap().to_owned();
    let metrics = get(&url, &tls).await;
    assert!(metrics.starts_with("HTTP/1.1 200") && metrics.contains("waybill_build_info"), "{metrics}");
    let stranger = get(&url, &ClientTlsConfig { ca_file: tls.ca_file.clone(), ..ClientTlsConfig::default() }).await;
    assert!(stranger.starts_with("HTTP/1.1 403"), "{stranger}");

    // All is renewed at the collector, and its old connections end.
    new.server(servers.path(), Some(&clients)).unwrap();
    new.client(place.dir(), Some(&clients)).unwrap();
    let before = count();
    collector.way.cut();
    eventually("the collector has spans again", UP_LIMIT, async || {
        calls().await;
        count() > before
    })
    .await;
    drop(up);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_not_trusted_is_said_with_the_setting() {
    let [ours, other, clients] = Authority::several().unwrap();
    let (place, servers) = (Place::new(), tempfile::tempdir().unwrap());
    let collector = Collector::start(servers.path(), &ours, &clients).await;
    let tls = other.client(place.dir(), Some(&clients)).unwrap();
    let up = collector.up(&place, &tls, &[]).await;
    place.run(&["projects", "ls"]).await.expect_code(0);
    up.line("telemetry.tls.ca_file", UP_LIMIT).await.unwrap();
    assert_eq!(collector.rotel.spans(), []);
}
