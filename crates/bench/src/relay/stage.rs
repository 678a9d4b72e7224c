//! The servers of a measurement: the programs themselves, as they ship.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Deserialize;
use tempfile::TempDir;
use tonic::transport::Channel;
use uuid::Uuid;
use waybill_api::embedding::v1::embedding_service_client::EmbeddingServiceClient;
use waybill_api::embedding::v1::{EmbedRequest, ListModelsRequest, Purpose};
use waybill_domain::{Kind, SinkName, TextHash};
use waybill_runtime::grpc;
use waybill_storage::{Db, cache, settle};
use waybill_testkit::{Program, Signal, TestDb, TestPostgres, eventually, psql, psql_file};
use waybill_vectors::CollectionSpec;

use super::rows::{Round, Xorshift};
use crate::servers::{START, STOP, connect, sibling};

/// Longer than any round that is worth looking at.
const DELIVERY: Duration = Duration::from_secs(600);

/// How often it is looked whether all is delivered. The time itself is not taken so.
const POLL: Duration = Duration::from_millis(100);

/// Rows that are looked at meanwhile: the last ones, as the log is read in order.
const SAMPLE: usize = 64;

/// Vectors stored in one statement.
const CACHE_BATCH: usize = 1_000;

/// Everything that runs.
pub(crate) struct Stage {
    waybill: Program,
    qdrant: Option<Program>,
    qdrant_url: String,
    db: TestDb,
    pool: Db,
    embedding: EmbeddingServiceClient<Channel>,
    cache_key: String,
    dimensions: usize,
    collection: String,
    dir: TempDir,
    /// Last, so that it goes down after those who use it.
    _postgres: TestPostgres,
}

#[derive(Deserialize)]
struct Endpoints {
    embedding: String,
}

impl Stage {
    /// Starts everything. Postgres and Qdrant are processes of their own, so that both the
    /// relay and the ceiling reach Qdrant in the same way.
    pub(crate) async fn set(model_dir: &Path, qdrant_url: Option<&str>) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("waybill-bench-").tempdir()?;
        let postgres = TestPostgres::own().await?;
        let db = postgres.database().await?;
        let (qdrant, qdrant_url) = match qdrant_url {
            Some(url) => (None, url.to_owned()),
            None => start_qdrant(&dir.path().join("qdrant")).await.map(|(p, url)| (Some(p), url))?,
        };

        let ready = dir.path().join("ready.json");
        let arguments = [
            "up".into(),
            "--free-ports".into(),
            "--data-dir".into(),
            dir.path().join("up"),
            "--ready-file".into(),
            ready.clone(),
            "--model-dir".into(),
            model_dir.to_owned(),
        ];
        let environment = [("DATABASE_URL", db.url.as_str()), ("QDRANT_URL", qdrant_url.as_str())];
        let waybill = Program::start(sibling("waybill")?, arguments.map(PathBuf::into_os_string), environment)?;
        eventually("waybill up is ready", START, async || ready.is_file()).await;
        let endpoints = std::fs::read_to_string(&ready).context("read the ready file")?;
        let endpoints: Endpoints = serde_json::from_str(&endpoints).context("read the ready file")?;

        let mut embedding = EmbeddingServiceClient::new(grpc::channel(&endpoints.embedding)?);
        let cache_key = find_cache_key(&mut embedding, &db.url).await?;
        let models = embedding.list_models(ListModelsRequest {}).await?.into_inner().models;
        let model = models.into_iter().find(|model| model.default).context("no default model")?;
        let dimensions = usize::try_from(model.dimensions)?;
        let pool = connect(&db)?;
        Ok(Self {
            waybill,
            qdrant,
            qdrant_url,
            db,
            pool,
            embedding,
            collection: CollectionSpec::for_model(&model.name, dimensions).name,
            cache_key,
            dimensions,
            dir,
            _postgres: postgres,
        })
    }

    /// Where everything is that is not in a store; `up` is the directory of `waybill up`.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn qdrant_url(&self) -> &str {
        &self.qdrant_url
    }

    /// The collection that the relay writes to.
    pub(super) fn collection(&self) -> &str {
        &self.collection
    }

    pub(super) fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// Stores a vector for each text, as if the model had made it, and checks that the
    /// embedding service takes it from there.
    pub(super) async fn fill_cache(&self, texts: &[String]) -> anyhow::Result<()> {
        stream::iter(texts.chunks(CACHE_BATCH))
            .map(Ok)
            .try_for_each(async |texts| {
                let vectors: Vec<_> =
                    texts.iter().map(|text| (TextHash::of(text), unit_vector(text, self.dimensions))).collect();
                cache::store(&self.pool, &self.cache_key, &vectors).await.map(drop)
            })
            .await
            .context("fill the cache")?;
        let request = EmbedRequest {
            texts: texts.first().cloned().into_iter().collect(),
            purpose: Purpose::Document.into(),
            ..EmbedRequest::default()
        };
        let answer = self.embedding.clone().embed(request).await?.into_inner();
        ensure!(answer.cached_count == 1, "the embedding service does not find the cached vectors");
        Ok(())
    }

    /// Writes a round's rows and returns the time from their commit to the relay's last
    /// confirmation, by the clock of Postgres.
    ///
    /// Meanwhile a few rows are looked at now and then, and no more: who asks for the state of
    /// the whole backlog takes the time that is measured.
    pub(super) async fn deliver(&self, round: &Round<'_>) -> anyhow::Result<Duration> {
        let sql = self.dir.path().join("round.sql");
        round.write_sql(&sql)?;
        let written = psql_file(&self.db.url, &sql).await.context("write the rows")?;
        let committed_at: f64 = written.lines().last().unwrap_or_default().trim().parse()?;

        let last: Vec<Uuid> = round.ids().skip(round.len().saturating_sub(SAMPLE)).collect();
        eventually("the last rows are confirmed", DELIVERY, async || {
            tokio::time::sleep(POLL).await;
            let confirmed = settle::confirmed(&self.pool, SinkName::Qdrant, Kind::Chunk, &last).await;
            confirmed.is_ok_and(|confirmed| confirmed.len() == last.len())
        })
        .await;
        let query = format!(
            "SELECT count(*) FILTER (WHERE i.version IS DISTINCT FROM c.version OR i.deleted) = 0,
                    extract(epoch FROM max(i.confirmed_at))
             FROM chunk c LEFT JOIN LATERAL (
                 SELECT * FROM index_state s WHERE s.sink = 'qdrant' AND s.kind = 'chunk' AND s.key = c.id LIMIT 1
             ) AS i ON true
             WHERE c.source_id = '{}'",
            round.source()
        );
        let mut confirmed_at = String::new();
        eventually("all rows are confirmed at their version", DELIVERY, async || {
            tokio::time::sleep(POLL).await;
            let answer = psql(&self.db.url, &query).await.unwrap_or_default();
            confirmed_at = answer.strip_prefix("t|").unwrap_or_default().to_owned();
            !confirmed_at.is_empty()
        })
        .await;
        Ok(Duration::try_from_secs_f64(confirmed_at.parse::<f64>()? - committed_at)?)
    }

    /// Stops everything.
    pub(crate) async fn strike(mut self) -> anyhow::Result<()> {
        self.pool.close().await;
        self.waybill.signal(Signal::SIGTERM)?;
        self.waybill.wait(STOP).await?;
        if let Some(mut qdrant) = self.qdrant {
            qdrant.signal(Signal::SIGTERM)?;
            qdrant.wait(STOP).await?;
        }
        Ok(())
    }
}

/// Finds out under which name the embedding service keeps its model's vectors: it embeds a
/// text and looks.
async fn find_cache_key(embedding: &mut EmbeddingServiceClient<Channel>, database_url: &str) -> anyhow::Result<String> {
    let request = EmbedRequest {
        texts: vec!["any text".to_owned()],
        purpose: Purpose::Document.into(),
        ..EmbedRequest::default()
    };
    embedding.embed(request).await.context("embed a text")?;
    let mut key = String::new();
    // The cache is written behind the caller's back.
    eventually("a vector is in the cache", START, async || {
        let found = psql(database_url, "SELECT model FROM embedding_cache LIMIT 1").await;
        key = found.unwrap_or_default();
        !key.is_empty()
    })
    .await;
    Ok(key)
}

async fn start_qdrant(data_dir: &Path) -> anyhow::Result<(Program, String)> {
    let arguments = ["--data-dir".into(), data_dir.to_owned(), "--listen".into(), "127.0.0.1:0".into()];
    let none: [(&str, &str); 0] = [];
    let program = Program::start(sibling("qdrant-local")?, arguments.map(PathBuf::into_os_string), none)?;
    // A line with nothing but the address.
    let address = || program.output().iter().find_map(|line| line.parse::<SocketAddr>().ok());
    eventually("qdrant-local listens", START, async || address().is_some()).await;
    let address = address().context("qdrant-local has not said where it listens")?;
    Ok((program, format!("http://{address}")))
}

/// Makes a vector of length 1 from the text's hash, little-endian.
fn unit_vector(text: &str, dimensions: usize) -> Vec<u8> {
    let seed = u64::from_le_bytes(TextHash::of(text).as_bytes()[..8].try_into().unwrap_or_default());
    let mut random = Xorshift::new(seed);
    let numbers: Vec<f32> = (0..dimensions).map(|_| (random.fraction() * 2.0 - 1.0) as f32).collect();
    let length = numbers.iter().map(|number| number * number).sum::<f32>().sqrt();
    numbers.iter().flat_map(|number| (number / length).to_le_bytes()).collect()
}
