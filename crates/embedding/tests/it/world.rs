//! The services with everything they need, for one test.

use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Map;
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::oneshot};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use uuid::Uuid;
use waybill_api::embedding::v1::{
    EmbedRequest, Purpose, embedding_service_client::EmbeddingServiceClient, search_service_client::SearchServiceClient,
};
use waybill_domain::{ChunkId, Kind, ProjectId, SourceId, TextHash, embedding_text};
use waybill_embedding::{Config, Deps, run};
use waybill_models::ProviderKind;
use waybill_runtime::{Shutdown, Signals, grpc::channel};
use waybill_storage::{Db, DbConfig};
use waybill_testkit::{TestDb, psql};
use waybill_vectors::{CollectionSpec, PointWrite, QdrantConfig, Vectors};

use crate::model::{DIMENSIONS, FakeModel};

/// Long enough for a busy machine; a test that waits as long has failed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) const MODEL: &str = "words";

pub(crate) struct World {
    pub(crate) model: FakeModel,
    pub(crate) vectors: Vectors,
    pub(crate) embedding: EmbeddingServiceClient<Channel>,
    pub(crate) search: SearchServiceClient<Channel>,
    pub(crate) shutdown: Shutdown,
    /// Before the database: connections are closed, then it is dropped.
    _process: Process,
    pub(crate) database: TestDb,
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// Starts the services, configured as `change` leaves it.
    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let database = TestDb::create().await.unwrap();
        let url = database.url.clone();
        Self::on(database, &url, change).await
    }

    /// Starts the services on a database that is reached by `database_url`, or not.
    pub(crate) async fn on(database: TestDb, database_url: &str, change: impl FnOnce(&mut Config)) -> Self {
        let model = FakeModel::start().await;
        let mut config = Config::default();
        config.model.kind = ProviderKind::OpenAi;
        config.model.openai.base_url.clone_from(&model.url);
        config.model.openai.model = MODEL.to_owned();
        config.model.openai.dimensions = Some(DIMENSIONS);
        change(&mut config);

        let shutdown = Shutdown::manual(Duration::from_secs(10));
        let process = Process::start(config, database_url.to_owned(), shutdown.clone());
        let channel = channel(&process.service_url).unwrap();
        Self {
            model,
            vectors: Vectors::connect(&QdrantConfig::new(&process.qdrant_url)).unwrap(),
            embedding: EmbeddingServiceClient::new(channel.clone()).max_encoding_message_size(usize::MAX),
            search: SearchServiceClient::new(channel),
            shutdown,
            _process: process,
            database,
        }
    }

    pub(crate) async fn psql(&self, sql: &str) -> String {
        psql(&self.database.url, sql).await.unwrap()
    }

    /// Makes a project and its collection, as ingestion and the relay would.
    pub(crate) async fn project(&self, name: &str) -> ProjectId {
        let id = ProjectId::derive(&name.parse().unwrap());
        self.psql(&format!("INSERT INTO project (id, name) VALUES ('{id}', '{name}')")).await;
        self.vectors.ensure_collection(&collection(), "waybill").await.unwrap();
        id
    }

    /// Writes a source of one chunk, and delivers its point. Returns the chunk's id.
    pub(crate) async fn document(&self, project: ProjectId, uri: &str, text: &str, metadata: &str) -> Uuid {
        let source = SourceId::derive(project, uri);
        let hash = TextHash::of(embedding_text(&[], text));
        let chunk = ChunkId::derive(source, &hash, 0).as_uuid();
        self.psql(&format!(
            "INSERT INTO source (id, project_id, uri, title, media_type, metadata, content_hash, text, state, chunker)
             VALUES ('{source}', '{project}', '{uri}', 'Title of {uri}', 'text', '{metadata}', sha256('x'), '{text}', 'chunked', 'test');
             INSERT INTO chunk (id, project_id, source_id, ordinal, headings, text, text_hash, start_byte, end_byte, token_count)
             VALUES ('{chunk}', '{project}', '{source}', 0, '{{Part,Section}}', '{text}', '\\x{hash}', 0, {}, 1)",
            text.len(),
        ))
        .await;
        self.deliver(project, uri, chunk, text, metadata).await;
        chunk
    }

    /// Writes the point of a chunk at the chunk's current version.
    pub(crate) async fn deliver(&self, project: ProjectId, uri: &str, chunk: Uuid, text: &str, metadata: &str) {
        let version = self.psql(&format!("SELECT version FROM chunk WHERE id = '{chunk}'")).await;
        let request = EmbedRequest {
            texts: vec![text.to_owned()],
            purpose: Purpose::Document.into(),
            with_sparse: true,
            ..EmbedRequest::default()
        };
        let embedding = self.embedding.clone().embed(request).await.unwrap().into_inner().embeddings.remove(0);
        let sparse = embedding.sparse.unwrap();
        let metadata: Map<String, serde_json::Value> = serde_json::from_str(metadata).unwrap();
        let point = PointWrite {
            id: chunk,
            project_id: project,
            kind: Kind::Chunk,
            source_id: Some(SourceId::derive(project, uri)),
            version: version.parse().unwrap(),
            metadata,
            dense: floats(&embedding.dense),
            sparse: (sparse.indices, sparse.values),
        };
        self.vectors.upsert(&collection().name, vec![point], DEADLINE).await.unwrap();
    }
}

pub(crate) fn collection() -> CollectionSpec {
    CollectionSpec::for_model(MODEL, DIMENSIONS)
}

pub(crate) fn floats(bytes: &[u8]) -> Vec<f32> {
    let (numbers, rest) = bytes.as_chunks::<4>();
    assert!(rest.is_empty());
    numbers.iter().copied().map(f32::from_le_bytes).collect()
}

/// The services and a vector store on a thread and a runtime of their own, which end when it
/// is dropped, whatever is under way.
struct Process {
    qdrant_url: String,
    service_url: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    /// Removed last: the engine writes when it is closed.
    _dir: TempDir,
}

impl Process {
    fn start(config: Config, database_url: String, shutdown: Shutdown) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let (stop, stopped) = oneshot::channel();
        let (started, addresses) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let qdrant =
                    waybill_qdrant_local::Server::start(&path, listener, CancellationToken::new()).await.unwrap();
                let qdrant_url = format!("http://{}", qdrant.addr());
                let db = Db::connect(&DbConfig {
                    url: database_url,
                    max_connections: 4,
                    acquire_timeout: Duration::from_secs(2),
                    application_name: "embedding-test".to_owned(),
                });
                let vectors = Vectors::connect(&QdrantConfig::new(&qdrant_url)).unwrap();
                let deps = Deps { db: db.unwrap(), vectors, signals: Signals::default() };
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let service_url = format!("http://{}", listener.local_addr().unwrap());
                started.send((qdrant_url, service_url)).unwrap();
                tokio::spawn(run(config, deps, listener, shutdown));
                let _dropped = stopped.await;
            });
        });
        let (qdrant_url, service_url) = addresses.recv().unwrap();
        Self { qdrant_url, service_url, stop: Some(stop), thread: Some(thread), _dir: dir }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}
