//! The admin port over TLS: who is told what, and certificates that change under it.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use waybill_runtime::{Signals, admin, grpc};
use waybill_testkit::{Authority, eventually};
use waybill_tls::{ServerTls, Serves};

use crate::admin::get;

/// No working reload needs as long.
const PATIENCE: Duration = Duration::from_secs(30);

/// An admin port with a certificate, in files that can be replaced.
struct Secured {
    dir: TempDir,
    address: SocketAddr,
    _serving: AbortOnDropHandle<anyhow::Result<()>>,
}

impl Secured {
    async fn start(authority: &Authority, callers: Option<&Authority>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = authority.server(dir.path(), callers).unwrap();
        let tls = ServerTls::load("admin.tls", &config, Serves::Http).unwrap();
        let (signals, scrape) = Signals::measured().unwrap();
        signals.components.hold(grpc::STARTING, "waits for postgres");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(admin::serve(listener, tls, scrape, signals.components, CancellationToken::new()));
        Self { dir, address, _serving: AbortOnDropHandle::new(serving) }
    }

    /// Asks over a connection of its own, trusting `authority` and showing a certificate of `shows`.
    async fn get(&self, authority: &Authority, shows: Option<&Authority>, path: &str) -> io::Result<String> {
        let dir = tempfile::tempdir()?;
        let tls = authority.client(dir.path(), shows).unwrap().of("test");
        let mut stream = tls.connect("localhost", self.address.port(), &[b"h2", b"http/1.1"]).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }
}

fn is(answer: &str, status: u16) -> bool {
    answer.starts_with(&format!("HTTP/1.1 {status}"))
}

#[tokio::test]
async fn it_is_scraped_over_tls_and_not_without() {
    let [ours, other] = Authority::several().unwrap();
    let secured = Secured::start(&ours, None).await;
    let metrics = secured.get(&ours, None, "/metrics").await.unwrap();
    assert!(is(&metrics, 200) && metrics.contains("waybill_process_start"), "{metrics}");
    let refused = secured.get(&other, None, "/metrics").await.unwrap_err().to_string();
    assert!(refused.contains("invalid peer certificate") && refused.contains("test.ca_file"), "{refused}");
    let plain = get(secured.address, "/livez").await;
    assert!(!plain.contains("HTTP"), "{plain}");
}

#[tokio::test]
async fn strangers_are_told_whether_it_lives_and_nothing_else() {
    let [ours, theirs, other] = Authority::several().unwrap();
    let secured = Secured::start(&ours, Some(&theirs)).await;
    for (path, content) in [("/metrics", "waybill_process_start"), ("/healthz", "waits for postgres")] {
        let refused = secured.get(&ours, None, path).await.unwrap();
        assert!(is(&refused, 403) && refused.contains("admin.tls.client_ca_file"), "{path}: {refused}");
        assert!(!refused.contains(content), "{path}: {refused}");
        let told = secured.get(&ours, Some(&theirs), path).await.unwrap();
        assert!(told.contains(content), "{path}: {told}");
    }
    assert!(is(&secured.get(&ours, None, "/livez").await.unwrap(), 200));
    let ready = secured.get(&ours, None, "/readyz").await.unwrap();
    assert!(is(&ready, 503) && !ready.contains("postgres"), "{ready}");
    let why = secured.get(&ours, Some(&theirs), "/readyz").await.unwrap();
    assert!(is(&why, 503) && why.contains("waits for postgres"), "{why}");
    // Worse than none.
    secured.get(&ours, Some(&other), "/livez").await.unwrap_err();
}

#[tokio::test]
async fn a_certificate_that_is_replaced_is_shown_to_who_comes_next() {
    let [old, new] = Authority::several().unwrap();
    let secured = Secured::start(&old, None).await;
    secured.get(&old, None, "/livez").await.unwrap();
    new.server(secured.dir.path(), None).unwrap();
    eventually("the new certificate is shown", PATIENCE, async || {
        secured.get(&new, None, "/livez").await.is_ok_and(|answer| is(&answer, 200))
    })
    .await;
    secured.get(&old, None, "/livez").await.unwrap_err();
}

#[tokio::test]
async fn whoever_says_nothing_holds_up_nobody() {
    let ours = Authority::new().unwrap();
    let secured = Secured::start(&ours, None).await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(secured.address).await.unwrap());
    }
    // Sooner than the first of them is given up.
    let answer = tokio::time::timeout(Duration::from_secs(5), secured.get(&ours, None, "/livez")).await;
    assert!(is(&answer.unwrap().unwrap(), 200));
}
