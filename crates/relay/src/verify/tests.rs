//! What happens between two looks at a suspect.

use std::{net::SocketAddr, time::Duration};

use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use waybill_llm_queue::QueueConfig;
use waybill_qdrant_local::Server;
use waybill_storage::DbConfig;
use waybill_testkit::{FaultProxy, Mode, TestDb, eventually, psql};
use waybill_vectors::{CollectionSpec, PointWrite, QdrantConfig};

use super::*;
use crate::embedder::Embedder;

const ALIAS: &str = "live";
const DEADLINE: Duration = Duration::from_secs(30);
const KEY: Uuid = Uuid::from_u128(0xe1);

/// One entity, with its point, confirmed; and a Qdrant behind a proxy.
struct Fixture {
    db: TestDb,
    /// Straight to Qdrant.
    vectors: Vectors,
    address: SocketAddr,
    _stop: DropGuard,
    _dir: TempDir,
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Server::start(dir.path(), listener, stop.clone()).await.unwrap();
        let address = server.addr();
        let vectors = connect(address);
        vectors.ensure_collection(&CollectionSpec { name: "c".to_owned(), dimensions: 4 }, ALIAS).await.unwrap();
        let fixture =
            Self { db: TestDb::create().await.unwrap(), vectors, address, _stop: stop.drop_guard(), _dir: dir };
        fixture
            .sql(&format!(
                "INSERT INTO project (id, name) VALUES ('{0}', 'p');
                 INSERT INTO entity (id, project_id, type, canonical, aliases) VALUES ('{KEY}', '{0}', 'term', 'a', '{{a}}')",
                Uuid::from_u128(1)
            ))
            .await;
        fixture.deliver().await;
        fixture
    }

    async fn sql(&self, sql: &str) -> String {
        psql(&self.db.url, sql).await.unwrap()
    }

    /// What a relay does: the point, then the settle.
    async fn deliver(&self) {
        let version = self.sql("SELECT version FROM entity").await.parse().unwrap();
        let point = PointWrite {
            id: KEY,
            project_id: ProjectId::from_uuid(Uuid::from_u128(1)),
            kind: Kind::Entity,
            source_id: None,
            version,
            metadata: serde_json::Map::new(),
            dense: vec![0.5; 4],
            sparse: (Vec::new(), Vec::new()),
        };
        self.vectors.upsert(ALIAS, vec![point], DEADLINE).await.unwrap();
        self.sql(&format!(
            "INSERT INTO index_state (sink, kind, key, version) VALUES ('qdrant', 'entity', '{KEY}', {version})
             ON CONFLICT (sink, kind, key) DO UPDATE SET version = excluded.version;
             UPDATE outbox_cursor SET closed_seq = (SELECT last_value FROM outbox_seq)"
        ))
        .await;
    }

    /// A verifier that reaches Qdrant at `address`.
    fn verifier(&self, address: SocketAddr) -> Verifier {
        let db = Db::connect(&DbConfig {
            url: self.db.url.clone(),
            max_connections: 4,
            acquire_timeout: DEADLINE,
            application_name: "test".to_owned(),
        })
        .unwrap();
        let nobody = tonic::transport::Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
        let embedder = Embedder::new(waybill_runtime::grpc::peer_of(nobody), String::new(), DEADLINE);
        let vectors = connect(address);
        Verifier {
            sink: Arc::new(QdrantSink::new(db.clone(), vectors.clone(), embedder, ALIAS.to_owned())),
            db,
            vectors,
            queue: LlmQueue::connect(&QueueConfig::new("redis://127.0.0.1:1")).unwrap(),
            alias: ALIAS.to_owned(),
            config: VerifyConfig::default(),
        }
    }

    /// Looks at the key again, and has `meanwhile` done after Postgres was asked first and before
    /// Qdrant is.
    async fn confirm_while(&self, meanwhile: impl Future<Output = ()>) -> (Vec<Finding>, u64) {
        let proxy = FaultProxy::start(self.address).await.unwrap();
        proxy.set(Mode::BlackHole);
        // Connects when it asks for the first time.
        let verifier = self.verifier(proxy.addr());
        let (confirmed, ()) = tokio::join!(verifier.confirm(ALIAS, &[KEY]), async {
            eventually("Qdrant is asked", DEADLINE, async || proxy.open_connections() > 0).await;
            meanwhile.await;
            proxy.set(Mode::Pass);
        });
        let (drifted, undelivered) = confirmed.unwrap();
        (drifted.into_iter().map(|(finding, _)| finding).collect(), undelivered)
    }
}

fn connect(address: SocketAddr) -> Vectors {
    let mut config = QdrantConfig::new(format!("http://{address}"));
    config.timeout = DEADLINE;
    Vectors::connect(&config).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_delivered_between_two_looks_is_no_drift() {
    let fixture = Fixture::new().await;
    assert_eq!(fixture.confirm_while(async {}).await, (Vec::new(), 0));

    // Postgres says 1, then Qdrant 2.
    let changed = fixture.confirm_while(async {
        fixture.sql("UPDATE entity SET aliases = '{b}'").await;
        fixture.deliver().await;
    });
    assert_eq!(changed.await, (Vec::new(), 1), "it is not ahead");

    let gone = fixture.confirm_while(async {
        fixture.sql("DELETE FROM entity").await;
        fixture.vectors.delete(ALIAS, &[KEY], 1_000, DEADLINE).await.unwrap();
        fixture.sql("UPDATE index_state SET deleted = true").await;
    });
    assert_eq!(gone.await, (Vec::new(), 1), "it is not missing");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_changes_between_two_looks_is_drift() {
    let fixture = Fixture::new().await;
    let lost = fixture.confirm_while(async {
        fixture.vectors.delete(ALIAS, &[KEY], 1_000, DEADLINE).await.unwrap();
    });
    let (found, undelivered) = lost.await;
    assert_eq!((found.len(), undelivered), (1, 0));
    assert_eq!((found[0].kind, found[0].key_kind), (FindingKind::Missing, Kind::Entity));
}
