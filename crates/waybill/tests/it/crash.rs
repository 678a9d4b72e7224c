//! Kills one process after the other in the middle of an import, and compares Postgres and
//! Qdrant key by key.

use std::{
    collections::BTreeMap,
    net::TcpListener,
    path::{Path, PathBuf},
    time::Duration,
};

use tempfile::TempDir;
use uuid::Uuid;
use waybill_testkit::{Program, TestDb, TestPostgres, corpus, eventually, psql};
use waybill_vectors::{DEFAULT_ALIAS, QdrantConfig, Vectors};

/// Long enough for a loaded machine; nothing waits for it when all is well.
const PATIENCE: Duration = Duration::from_secs(120);
/// Some 6,000 chunks: enough that each kill finds work under way.
const DOCUMENTS: usize = 1_500;

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn models_dir() -> PathBuf {
    std::env::var_os("WAYBILL_MODELS_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/models"), PathBuf::from)
}

fn binary(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_waybill")).with_file_name(name);
    assert!(path.exists(), "{name} is not built: run the tests with `cargo xtask test`");
    path
}

/// Every part in a process of its own.
struct World {
    postgres: TestPostgres,
    db: TestDb,
    dir: TempDir,
    ports: Ports,
    qdrant: Program,
    relay: Program,
    _embedding: Program,
    _ingestion: Program,
    vectors: Vectors,
}

struct Ports {
    qdrant: u16,
    ingestion: u16,
    embedding: u16,
    relay: u16,
}

async fn serve(config: &Path, service: &str) -> Program {
    let args = ["serve", service, "--config"].map(Into::into).into_iter().chain([config.to_owned()]);
    let program = Program::start(env!("CARGO_BIN_EXE_waybill"), args, [("WAYBILL_LOG", "info")]).unwrap();
    program.line("serving", PATIENCE).await.unwrap();
    program
}

async fn start_qdrant(dir: &Path, port: u16) -> Program {
    let args = ["--data-dir".into(), dir.join("qdrant"), "--listen".into(), format!("127.0.0.1:{port}").into()];
    let program = Program::start(binary("qdrant-local"), args, [("RUST_LOG", "warn")]).unwrap();
    program.line("127.0.0.1:", PATIENCE).await.unwrap();
    program
}

impl World {
    async fn start() -> Self {
        let postgres = TestPostgres::own().await.unwrap();
        let db = postgres.database().await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let ports = Ports { qdrant: free_port(), ingestion: free_port(), embedding: free_port(), relay: free_port() };
        let model = models_dir().join("wordllama");
        assert!(model.is_dir(), "{} is missing: run `cargo xtask fetch-models`", model.display());
        std::fs::write(
            dir.path().join("waybill.toml"),
            format!(
                r#"
                [database]
                url = "{}"
                [qdrant]
                url = "http://127.0.0.1:{}"
                [listen]
                ingestion = "127.0.0.1:{}"
                embedding = "127.0.0.1:{}"
                relay = "127.0.0.1:{}"
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
                "#,
                db.url,
                ports.qdrant,
                ports.ingestion,
                ports.embedding,
                ports.relay,
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
        Self { postgres, db, dir, ports, qdrant, relay, _embedding: embedding, _ingestion: ingestion, vectors }
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("waybill.toml")
    }

    fn import(&self, folder: &Path) -> Program {
        let endpoint = format!("http://127.0.0.1:{}", self.ports.ingestion);
        let args = ["import", folder.to_str().unwrap(), "--project", "p", "--endpoint", &endpoint];
        Program::start(env!("CARGO_BIN_EXE_waybill"), args, [("NO_COLOR", "1")]).unwrap()
    }

    async fn confirmed(&self) -> usize {
        let count = psql(&self.db.url, "COPY (SELECT count(*) FROM index_state WHERE NOT deleted) TO STDOUT").await;
        count.ok().and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }

    async fn kill_relay(&mut self) {
        self.relay.kill9().await.unwrap();
        self.relay = serve(&self.config(), "relay").await;
    }

    async fn kill_postgres(&mut self) {
        self.postgres.server_mut().kill9().unwrap();
        self.postgres.server_mut().restart().await.unwrap();
    }

    async fn kill_qdrant(&mut self) {
        self.qdrant.kill9().await.unwrap();
        self.qdrant = start_qdrant(self.dir.path(), self.ports.qdrant).await;
    }

    async fn rows(&self) -> BTreeMap<Uuid, i64> {
        let text = psql(&self.db.url, "COPY (SELECT id, version FROM chunk) TO STDOUT").await.unwrap();
        text.lines()
            .filter_map(|line| line.split_once('\t'))
            .map(|(id, version)| (id.parse().unwrap(), version.trim().parse().unwrap()))
            .collect()
    }

    async fn points(&self) -> BTreeMap<Uuid, i64> {
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

    async fn wait_until_equal(&self) {
        eventually("Qdrant shows what Postgres says, key by key", PATIENCE, async || {
            let rows = self.rows().await;
            self.confirmed().await == rows.len() && self.points().await == rows
        })
        .await;
    }
}

fn write_corpus(folder: &Path, seed: u64) {
    std::fs::create_dir_all(folder).unwrap();
    for (index, document) in corpus::documents(seed, DOCUMENTS).enumerate() {
        // The uri tells the form by its ending.
        let ending = document.uri.rsplit('.').next().unwrap_or("txt");
        std::fs::write(folder.join(format!("{index:04}.{ending}")), document.body).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn relay_postgres_and_qdrant_killed_in_the_middle_of_an_import() {
    let mut world = World::start().await;
    let folder = world.dir.path().join("corpus");
    write_corpus(&folder, 7);
    let mut import = world.import(&folder);

    // Each kill waits until something new is confirmed, so that it hits work under way.
    let mut seen = Vec::new();
    for kill in 0..3 {
        let before = seen.last().copied().unwrap_or(0);
        eventually("deliveries go on", PATIENCE, async || world.confirmed().await > before + 100).await;
        match kill {
            0 => world.kill_relay().await,
            1 => world.kill_postgres().await,
            _ => world.kill_qdrant().await,
        }
        seen.push(world.confirmed().await);
    }
    let ended = import.wait(PATIENCE).await.unwrap();
    assert!(ended.success(), "the import got through: {:?}", import.output());
    world.wait_until_equal().await;
    let rows = world.rows().await;
    assert!(seen.iter().all(|&seen| seen < rows.len()), "each kill came in the middle: {seen:?} of {}", rows.len());

    // Once more with changes and deletes, and all three at once.
    write_corpus(&folder, 8);
    let mut import = world.import(&folder);
    eventually("the second import is under way", PATIENCE, async || world.rows().await != rows).await;
    psql(&world.db.url, "DELETE FROM source WHERE uri LIKE '%7.%'").await.unwrap();
    world.kill_relay().await;
    world.kill_postgres().await;
    world.kill_qdrant().await;
    assert!(import.wait(PATIENCE).await.unwrap().success(), "the import got through: {:?}", import.output());
    psql(&world.db.url, "DELETE FROM source WHERE uri LIKE '%3.%'").await.unwrap();
    world.wait_until_equal().await;
}

/// Held for the whole of an import, with an xid: the worst that a forgotten session can do.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_transaction_slows_neither_delivery_nor_search() {
    let world = World::start().await;
    psql(&world.db.url, "CREATE TABLE go (n int); INSERT INTO project (id, name) VALUES (gen_random_uuid(), 'other')")
        .await
        .unwrap();
    let open = tokio::spawn({
        let url = world.db.url.clone();
        let sql = "BEGIN; SELECT pg_current_xact_id(); INSERT INTO source (id, project_id, uri, title, media_type, content_hash, text, state, chunker)
                   SELECT gen_random_uuid(), id, 'u', 't', 'text', sha256('x'), 'x', 'chunked', 'test' FROM project WHERE name = 'other';
                   INSERT INTO chunk (id, project_id, source_id, ordinal, text, text_hash, start_byte, end_byte, token_count)
                   SELECT gen_random_uuid(), project_id, id, 0, 'held back', sha256('x'), 0, 9, 2 FROM source WHERE uri = 'u';
                   DO $$ BEGIN WHILE NOT EXISTS (SELECT FROM go) LOOP PERFORM pg_sleep(0.01); END LOOP; END $$; COMMIT";
        async move { psql(&url, sql).await }
    });
    let running = "COPY (SELECT count(*) FROM pg_locks WHERE relation = 'go'::regclass AND granted) TO STDOUT";
    eventually("the transaction is open", PATIENCE, async || psql(&world.db.url, running).await.unwrap().trim() == "1")
        .await;

    let folder = world.dir.path().join("corpus");
    write_corpus(&folder, 9);
    let mut import = world.import(&folder);
    assert!(import.wait(PATIENCE).await.unwrap().success(), "{:?}", import.output());
    world.wait_until_equal().await;
    let needle = corpus::document(9, 4).needle;
    let endpoint = format!("http://127.0.0.1:{}", world.ports.embedding);
    let args = ["search", &needle, "--project", "p", "--mode", "lexical", "--endpoint", &endpoint, "--json"];
    let mut search = Program::start(env!("CARGO_BIN_EXE_waybill"), args, [("NO_COLOR", "1")]).unwrap();
    assert!(search.wait(PATIENCE).await.unwrap().success());
    let output = search.output().join("\n");
    assert!(output.contains("0004."), "the needle is found while the transaction is open: {output}");

    let before = world.rows().await;
    psql(&world.db.url, "INSERT INTO go VALUES (1)").await.unwrap();
    open.await.unwrap().unwrap();
    world.wait_until_equal().await;
    assert_eq!(world.rows().await.len(), before.len() + 1, "its own row followed");
}
