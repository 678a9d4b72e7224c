//! Redis' own TLS: private authorities, certificates of clients, and files that change.

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use deadpool_redis::redis::cmd;
use waybill_domain::ErrorClass;
use waybill_llm_queue::{LlmQueue, Priority, QueueConfig, QueueError};
use waybill_testkit::{Authority, TestRedis, eventually};
use waybill_tls::ClientTlsConfig;

use crate::{added, messages, raw};

const PATIENCE: Duration = Duration::from_secs(30);

/// A server that speaks TLS beside what it spoke before, and asks clients for certificates.
struct Secured {
    redis: TestRedis,
    dir: tempfile::TempDir,
    url: String,
}

impl Secured {
    async fn start(authority: &Authority, clients: &Authority) -> Self {
        let (redis, dir) = (TestRedis::volatile().await.unwrap(), tempfile::tempdir().unwrap());
        let plain = format!("127.0.0.1:{}/", redis.server().port());
        let mut secured = Self { url: redis.url(), redis, dir };
        secured.renew(authority, clients).await;
        let mut raw = raw(&secured.redis.url()).await;
        let mut port = 0;
        eventually("a port is free", PATIENCE, async || {
            port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let set = cmd("CONFIG").arg(&["SET", "tls-port"]).arg(port).query_async::<()>(&mut raw).await;
            set.is_ok()
        })
        .await;
        secured.url = secured.url.replace("redis://", "rediss://").replace(&plain, &format!("localhost:{port}/"));
        secured
    }

    /// Has it show another certificate from now on.
    async fn renew(&self, authority: &Authority, clients: &Authority) {
        let config = authority.server(self.dir.path(), Some(clients)).unwrap();
        let mut set = cmd("CONFIG");
        set.arg("SET").arg("tls-auth-clients").arg("yes");
        for (name, file) in [
            ("tls-cert-file", &config.cert_file),
            ("tls-key-file", &config.key_file),
            ("tls-ca-cert-file", &config.client_ca_file),
        ] {
            set.arg(name).arg(file.to_str());
        }
        set.query_async::<()>(&mut raw(&self.redis.url()).await).await.unwrap();
    }

    /// Makes a queue with these certificates.
    fn queue(&self, tls: &ClientTlsConfig) -> LlmQueue {
        let config = QueueConfig { tls: tls.of("redis.tls"), ..QueueConfig::new(&self.url) };
        LlmQueue::connect(&config).unwrap()
    }

    /// Asks over TLS, with certificates of these.
    async fn ask(&self, trusted: &Authority, shown: Option<&Authority>) -> Result<(), QueueError> {
        let dir = tempfile::tempdir().unwrap();
        self.queue(&trusted.client(dir.path(), shown).unwrap()).stats().await.map(drop)
    }
}

#[tokio::test]
async fn either_side_trusts_whom_its_settings_name() {
    let [ours, clients, other] = Authority::several().unwrap();
    let secured = Secured::start(&ours, &clients).await;
    secured.ask(&ours, Some(&clients)).await.unwrap();
    for (trusted, shown, said) in [
        (&other, Some(&clients), "redis.tls.ca_file"),
        (&ours, None, "redis.tls.cert_file"),
        (&ours, Some(&other), "redis.tls.cert_file"),
    ] {
        let error = secured.ask(trusted, shown).await.unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
        // Files change: a worker that waits works again when they are mended.
        assert_eq!(error.class(), ErrorClass::Transient, "{error}");
    }
}

#[tokio::test]
async fn the_server_may_have_another_name_than_its_url() {
    let [ours, clients] = Authority::several().unwrap();
    let mut secured = Secured::start(&ours, &clients).await;
    secured.url = secured.url.replace("localhost", "127.0.0.1");
    let mut tls = ours.client(secured.dir.path(), Some(&clients)).unwrap();
    let error = secured.queue(&tls).stats().await.unwrap_err().to_string();
    assert!(error.contains("redis.tls.server_name"), "{error}");
    tls.server_name = "localhost".to_owned();
    secured.queue(&tls).stats().await.unwrap();
}

#[tokio::test]
async fn a_new_connection_has_the_newest_certificates() {
    let [old, new, clients, new_clients] = Authority::several().unwrap();
    let secured = Secured::start(&old, &clients).await;
    let files = tempfile::tempdir().unwrap();
    let queue = secured.queue(&old.client(files.path(), Some(&clients)).unwrap());
    assert_eq!(added(&queue.send(Priority::High, &messages(0..2)).await.unwrap()), 2);

    secured.renew(&new, &new_clients).await;
    let kill = async || {
        let mut raw = raw(&secured.redis.url()).await;
        let kill = cmd("CLIENT").arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"]).query_async::<u64>(&mut raw).await;
        kill.unwrap()
    };
    assert!(kill().await > 0);
    let error = queue.stats().await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Transient, "{error}");

    new.client(files.path(), Some(&new_clients)).unwrap();
    assert_eq!(queue.claim("w", Priority::High, 2, None).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_file_that_can_t_be_used_is_named_before_anything_is_sent() {
    let config = ClientTlsConfig { ca_file: Path::new("/nowhere/ca.pem").to_owned(), ..ClientTlsConfig::default() };
    let of = |url| LlmQueue::connect(&QueueConfig { tls: config.of("redis.tls"), ..QueueConfig::new(url) });
    let error = of("rediss://localhost:1").unwrap_err();
    assert!(matches!(&error, QueueError::Config(text) if text.contains("redis.tls.ca_file")), "{error}");
    // Not read where it is of no use.
    of("redis://localhost:1").unwrap();
}
