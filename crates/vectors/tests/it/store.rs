//! A store for tests, and points to put into it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Map, Value};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use waybill_domain::{Kind, ProjectId, SourceId};
use waybill_qdrant_local::Server;
use waybill_vectors::{CollectionSpec, PointWrite, QdrantConfig, Vectors};

/// Long enough for a busy machine; a test that waits as long has failed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// A client, a collection of its own and the server behind them.
pub(crate) struct TestStore {
    pub(crate) vectors: Vectors,
    pub(crate) spec: CollectionSpec,
    pub(crate) alias: String,
    _server: Option<LocalServer>,
}

/// A server with a thread and a runtime of its own, which end before its files are removed.
pub(crate) struct LocalServer {
    pub(crate) url: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    _dir: TempDir,
}

impl LocalServer {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let (stop, stopped) = oneshot::channel();
        let (started, address) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let server = Server::start(&path, listener, CancellationToken::new()).await.unwrap();
                started.send(server.addr()).unwrap();
                let _dropped = stopped.await;
            });
        });
        let url = format!("http://{}", address.recv().unwrap());
        Self { url, stop: Some(stop), thread: Some(thread), _dir: dir }
    }
}

impl Drop for LocalServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

impl TestStore {
    /// Starts a store that has no collection yet. Vectors have 4 dimensions.
    pub(crate) async fn empty() -> Self {
        let (url, server) = match std::env::var("WAYBILL_TEST_QDRANT_URL") {
            Ok(url) => (url, None),
            Err(_) => {
                let server = LocalServer::start();
                (server.url.clone(), Some(server))
            }
        };
        static COUNT: AtomicU64 = AtomicU64::new(0);
        // A server that is shared keeps what earlier runs left there.
        let run = Uuid::now_v7().simple();
        let name = format!("t{run}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let mut config = QdrantConfig::new(url);
        config.timeout = DEADLINE;
        Self {
            vectors: Vectors::connect(&config).unwrap(),
            alias: format!("{name}-alias"),
            spec: CollectionSpec { name, dimensions: 4 },
            _server: server,
        }
    }

    /// Starts a store with its collection.
    pub(crate) async fn new() -> Self {
        let store = Self::empty().await;
        store.vectors.ensure_collection(&store.spec, &store.alias).await.unwrap();
        store
    }

    pub(crate) async fn upsert(&self, points: Vec<PointWrite>) {
        self.vectors.upsert(&self.spec.name, points, DEADLINE).await.unwrap();
    }

    pub(crate) async fn delete(&self, ids: &[Uuid], max_version: i64) {
        self.vectors.delete(&self.spec.name, ids, max_version, DEADLINE).await.unwrap();
    }

    /// Reads everything the collection holds.
    pub(crate) async fn versions(&self) -> Vec<(Uuid, i64)> {
        let page = self.vectors.scroll_versions(&self.spec.name, None, None, 10_000).await.unwrap();
        assert_eq!(page.next, None);
        page.points
    }
}

/// Makes the id of the point number `n`. They ascend.
pub(crate) fn id(n: u128) -> Uuid {
    Uuid::from_u128(n + 1)
}

pub(crate) fn project(n: u128) -> ProjectId {
    ProjectId::from_uuid(Uuid::from_u128(1_000 + n))
}

pub(crate) fn source(n: u128) -> SourceId {
    SourceId::from_uuid(Uuid::from_u128(2_000 + n))
}

/// Makes a point of project 0 that looks in the direction of `n`.
pub(crate) fn point(n: u128, version: i64) -> PointWrite {
    let mut dense = vec![0.1; 4];
    dense[(n % 4) as usize] = 1.0;
    PointWrite {
        id: id(n),
        project_id: project(0),
        kind: Kind::Chunk,
        source_id: Some(source(0)),
        version,
        metadata: Map::new(),
        dense,
        sparse: (vec![7, 100 + n as u32], vec![0.5, 1.5]),
    }
}

pub(crate) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("not an object: {other}"),
    }
}
