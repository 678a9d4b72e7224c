//! Every service and every store in a process of its own, to be killed one by one.

use std::{
    collections::BTreeMap,
    net::TcpListener,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use tempfile::TempDir;
use tonic::transport::Channel;
use uuid::Uuid;
use waybill_api::relay::v1::relay_service_client::RelayServiceClient;
use waybill_domain::CrashPoint;
use waybill_testkit::{Program, Signal, TestDb, TestPostgres, TestRedis, corpus, eventually, psql};
use waybill_vectors::{DEFAULT_ALIAS, QdrantConfig, Vectors};

use crate::program::{Ran, ran, waybill};

/// Long enough for a loaded machine; nothing waits for it when all is well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Finds a port that nobody listens on, below those that the system takes for outgoing
/// connections: a service that is down for a moment would lose its own to one of them.
pub(crate) fn free_port() -> u16 {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    loop {
        // Processes that run beside each other begin apart.
        let nth = std::process::id().wrapping_mul(97).wrapping_add(ASKED.fetch_add(1, Ordering::Relaxed));
        let port = 10_000 + u16::try_from(nth % 20_000).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn models_dir() -> PathBuf {
    std::env::var_os("WAYBILL_MODELS_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/models"), PathBuf::from)
}

/// Returns the folder of the model.
pub(crate) fn model() -> PathBuf {
    models_dir().join("wordllama")
}

fn binary(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_waybill")).with_file_name(name);
    assert!(path.exists(), "{name} is not built: run the tests with `cargo xtask test`");
    path
}

/// Every part in a process of its own.
pub(crate) struct World {
    pub(crate) postgres: TestPostgres,
    pub(crate) db: TestDb,
    pub(crate) redis: TestRedis,
    pub(crate) dir: TempDir,
    pub(crate) ports: Ports,
    pub(crate) qdrant: Program,
    pub(crate) relay: Program,
    pub(crate) embedding: Program,
    pub(crate) ingestion: Program,
    pub(crate) vectors: Vectors,
}

pub(crate) struct Ports {
    pub(crate) qdrant: u16,
    pub(crate) ingestion: u16,
    pub(crate) embedding: u16,
    pub(crate) relay: u16,
    pub(crate) extraction: u16,
}

pub(crate) async fn serve(config: &Path, service: &str) -> Program {
    let args = ["serve", service, "--config"].map(Into::into).into_iter().chain([config.to_owned()]);
    let program = Program::start(env!("CARGO_BIN_EXE_waybill"), args, [("WAYBILL_LOG", "info")]).unwrap();
    program.line("serving", PATIENCE).await.unwrap();
    program
}

/// Writes documents as files: the same for the same seed.
pub(crate) fn write_corpus(folder: &Path, seed: u64, count: usize) {
    std::fs::create_dir_all(folder).unwrap();
    for (index, document) in corpus::documents(seed, count).enumerate() {
        // The uri tells the form by its ending.
        let ending = document.uri.rsplit('.').next().unwrap_or("txt");
        std::fs::write(folder.join(format!("{index:04}.{ending}")), document.body).unwrap();
    }
}

async fn start_qdrant(dir: &Path, port: u16) -> Program {
    let args = ["--data-dir".into(), dir.join("qdrant"), "--listen".into(), format!("127.0.0.1:{port}").into()];
    let program = Program::start(binary("qdrant-local"), args, [("RUST_LOG", "warn")]).unwrap();
    program.line("127.0.0.1:", PATIENCE).await.unwrap();
    program
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_with("").await
    }

    /// With more configuration.
    pub(crate) async fn start_with(more: &str) -> Self {
        let postgres = TestPostgres::own().await.unwrap();
        let db = postgres.database().await.unwrap();
        let redis = TestRedis::own().await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let ports = Ports {
            qdrant: free_port(),
            ingestion: free_port(),
            embedding: free_port(),
            relay: free_port(),
            extraction: free_port(),
        };
        let model = models_dir().join("wordllama");
        assert!(model.is_dir(), "{} is missing: run `cargo xtask fetch-models`", model.display());
        std::fs::write(
            dir.path().join("waybill.toml"),
            format!(
                r#"
                [database]
                url = "{}"
                [redis]
                url = "{}"
                [qdrant]
                url = "http://127.0.0.1:{}"
                [listen]
                ingestion = "127.0.0.1:{}"
                embedding = "127.0.0.1:{}"
                relay = "127.0.0.1:{}"
                extraction = "127.0.0.1:{}"
                [endpoints]
                embedding = "http://127.0.0.1:{}"
                [embedding.model]
                kind = "local"
                [embedding.model.local]
                path = "{}"
                [relay.engine]
                lease_ms = 3000
                grace_ms = 500
                batch_keys_max = 64
                {more}
                "#,
                db.url,
                redis.url(),
                ports.qdrant,
                ports.ingestion,
                ports.embedding,
                ports.relay,
                ports.extraction,
                ports.embedding,
                model.display(),
            ),
        )
        .unwrap();
        let config = dir.path().join("waybill.toml");
        let qdrant = start_qdrant(dir.path(), ports.qdrant).await;
        let embedding = serve(&config, "embedding").await;
        let ingestion = serve(&config, "ingestion").await;
        let relay = serve(&config, "relay").await;
        let vectors = Vectors::connect(&QdrantConfig::new(format!("http://127.0.0.1:{}", ports.qdrant))).unwrap();
        Self { postgres, db, redis, dir, ports, qdrant, relay, embedding, ingestion, vectors }
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir.path().join("waybill.toml")
    }

    pub(crate) fn import(&self, folder: &Path) -> Program {
        let endpoint = format!("http://127.0.0.1:{}", self.ports.ingestion);
        let args = ["import", folder.to_str().unwrap(), "--project", "p", "--endpoint", &endpoint];
        Program::start(env!("CARGO_BIN_EXE_waybill"), args, [("NO_COLOR", "1")]).unwrap()
    }

    pub(crate) async fn confirmed(&self) -> usize {
        let count = psql(
            &self.db.url,
            "COPY (SELECT count(*) FROM index_state WHERE sink = 'qdrant' AND NOT deleted) TO STDOUT",
        )
        .await;
        count.ok().and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }

    pub(crate) async fn kill_relay(&mut self) {
        self.relay.kill9().await.unwrap();
        self.relay = serve(&self.config(), "relay").await;
    }

    /// Starts the relay so that it aborts at `crash`, and waits until it has.
    pub(crate) async fn relay_aborts(&mut self, crash: &str) {
        self.arm_relay(crash).await;
        self.relay_aborted().await;
    }

    /// Starts the relay so that it aborts at `crash`, in the place of the one before.
    pub(crate) async fn arm_relay(&mut self, crash: &str) {
        if self.relay.pid().is_some() {
            self.relay.kill9().await.unwrap();
        }
        let config = self.config();
        let args = ["serve", "relay", "--config"].map(Into::into).into_iter().chain([config]);
        let env = [("WAYBILL_LOG", "info"), ("WAYBILL_TEST_CRASH_AT", crash)];
        self.relay = Program::start(env!("CARGO_BIN_EXE_waybill"), args, env).unwrap();
    }

    /// Starts a service that aborts at `crash`.
    pub(crate) async fn serve_with_crash(&self, service: &str, crash: CrashPoint) -> Program {
        let args = ["serve", service, "--config"].map(Into::into).into_iter().chain([self.config()]);
        let env = [("WAYBILL_LOG", "info"), ("WAYBILL_TEST_CRASH_AT", crash.as_str())];
        let program = Program::start(env!("CARGO_BIN_EXE_waybill"), args, env).unwrap();
        program.line("serving", PATIENCE).await.unwrap();
        program
    }

    /// Waits until the relay has aborted.
    pub(crate) async fn relay_aborted(&mut self) {
        let ended = self.relay.wait(PATIENCE).await.unwrap();
        assert_eq!(ended.signal(), Some(Signal::SIGABRT as i32), "{:?}", self.relay.output());
    }

    /// Starts the relay after it has ended.
    pub(crate) async fn start_relay(&mut self) {
        self.relay = serve(&self.config(), "relay").await;
    }

    pub(crate) fn relay_client(&self) -> RelayServiceClient<Channel> {
        let url = format!("http://127.0.0.1:{}", self.ports.relay);
        RelayServiceClient::new(waybill_runtime::grpc::channel(&url).unwrap())
    }

    /// Runs a command against the relay, with nobody to answer questions.
    pub(crate) async fn run(&self, args: &[&str]) -> Ran {
        let mut command = waybill(self.dir.path());
        command.args(args).args(["--endpoint", &format!("http://127.0.0.1:{}", self.ports.relay)]);
        command.stdin(Stdio::null());
        ran(tokio::process::Command::from(command).output().await.unwrap())
    }

    pub(crate) async fn kill_postgres(&mut self) {
        self.postgres.server_mut().kill9().unwrap();
        self.postgres.server_mut().restart().await.unwrap();
    }

    pub(crate) async fn kill_qdrant(&mut self) {
        self.qdrant.kill9().await.unwrap();
        self.qdrant = start_qdrant(self.dir.path(), self.ports.qdrant).await;
    }

    /// Starts Qdrant after it was killed.
    pub(crate) async fn start_qdrant(&mut self) {
        self.qdrant = start_qdrant(self.dir.path(), self.ports.qdrant).await;
    }

    /// Stops Qdrant, has `work` done to its directory, and starts it again.
    pub(crate) async fn while_qdrant_is_down(&mut self, work: impl FnOnce(&Path)) {
        self.qdrant.kill9().await.unwrap();
        work(&self.dir.path().join("qdrant"));
        self.qdrant = start_qdrant(self.dir.path(), self.ports.qdrant).await;
    }

    pub(crate) async fn rows(&self) -> BTreeMap<Uuid, i64> {
        let mirrored = "COPY (SELECT id, version FROM chunk UNION ALL SELECT id, version FROM extraction
                              UNION ALL SELECT id, version FROM entity) TO STDOUT";
        let text = psql(&self.db.url, mirrored).await.unwrap();
        text.lines()
            .filter_map(|line| line.split_once('\t'))
            .map(|(id, version)| (id.parse().unwrap(), version.trim().parse().unwrap()))
            .collect()
    }

    pub(crate) async fn points(&self) -> BTreeMap<Uuid, i64> {
        let mut points = BTreeMap::new();
        let mut next = None;
        loop {
            let Ok(page) = self.vectors.scroll_versions(DEFAULT_ALIAS, None, next, 1_000).await else {
                return points;
            };
            points.extend(page.points);
            next = page.next;
            if next.is_none() {
                return points;
            }
        }
    }

    pub(crate) async fn wait_until_equal(&self) {
        eventually("Qdrant shows what Postgres says, key by key", PATIENCE, async || {
            let rows = self.rows().await;
            self.confirmed().await == rows.len() && self.points().await == rows
        })
        .await;
    }
}
