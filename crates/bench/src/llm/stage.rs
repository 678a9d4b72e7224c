//! The servers of a measurement: a Postgres, a Redis, and the relay as it ships.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::json;
use tempfile::TempDir;
use uuid::Uuid;
use waybill_domain::JobId;
use waybill_llm_queue::{LlmQueue, Message, Priority, QueueConfig};
use waybill_storage::jobs::NewJob;
use waybill_storage::{Db, OUTBOX_CHANNEL, requests};
use waybill_testkit::{Program, Signal, TestDb, TestPostgres, TestRedis, eventually, psql, psql_file};

use crate::relay::rows::Round;
use crate::servers::{START, STOP, connect, sibling};

/// Longer than any round that is worth looking at.
const DELIVERY: Duration = Duration::from_secs(600);

/// How often it is looked whether all is delivered. The time itself is not taken so.
const POLL: Duration = Duration::from_millis(100);

/// Requests that are looked at meanwhile: the last ones, as the log is read in order.
const SAMPLE: usize = 64;

/// What the names of all keys begin with, the relay's and ours.
const PREFIX: &str = "waybill-bench";

/// Nothing is there. With no chunk in the outbox, the relay asks neither Qdrant nor the
/// embedding service for anything.
const NOWHERE: &str = "http://127.0.0.1:9";

/// Chunks to make requests for: a source of many, and a source of a single one. What they
/// say is nothing to the relay: a message holds ids and no text.
struct Chunks {
    texts: Vec<String>,
}

impl Chunks {
    fn many(&self) -> Round<'_> {
        Round::new(0, &self.texts)
    }

    fn single(&self) -> Round<'_> {
        Round::new(1, self.texts.get(..1).unwrap_or_default())
    }
}

/// What a round came to.
pub(super) struct Delivered {
    /// From the commit to the record of the last message.
    pub(super) took: Duration,
    /// What the relay sent.
    pub(super) messages: Vec<Message>,
}

/// Everything that runs.
pub(super) struct Stage {
    relay: Program,
    db: TestDb,
    pool: Db,
    redis: TestRedis,
    queue: LlmQueue,
    chunks: Chunks,
    dir: TempDir,
    /// Last, so that it goes down after those who use it.
    _postgres: TestPostgres,
}

impl Stage {
    /// Starts everything, with so many chunks in Postgres.
    pub(super) async fn set(chunks: usize) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("waybill-bench-").tempdir()?;
        let postgres = TestPostgres::own().await?;
        let db = postgres.database().await?;
        let redis = TestRedis::own().await?;

        let chunks = Chunks { texts: (0..chunks).map(|number| format!("text {number}")).collect() };
        let sql = dir.path().join("chunks.sql");
        for round in [chunks.many(), chunks.single()] {
            round.write_sql(&sql)?;
            psql_file(&db.url, &sql).await.context("write the chunks")?;
        }
        // Before the relay starts: these chunks are not to be embedded.
        psql(&db.url, "DELETE FROM outbox").await.context("empty the outbox")?;
        // Or autovacuum would do it in the middle of a round.
        psql(&db.url, "VACUUM ANALYZE").await.context("vacuum")?;

        let relay = start_relay(&db, &redis).await?;
        let mut config = QueueConfig::new(redis.url());
        config.prefix = PREFIX.to_owned();
        Ok(Self {
            relay,
            pool: connect(&db)?,
            db,
            queue: LlmQueue::connect(&config)?,
            redis,
            chunks,
            dir,
            _postgres: postgres,
        })
    }

    /// Returns our own connections to Postgres.
    pub(super) fn pool(&self) -> &Db {
        &self.pool
    }

    /// Returns the queue, as a worker has it.
    pub(super) fn queue(&self) -> &LlmQueue {
        &self.queue
    }

    /// Returns where Redis is.
    pub(super) fn redis_url(&self) -> String {
        self.redis.url()
    }

    /// Forgets every message, so that each measurement begins with an empty Redis.
    pub(super) async fn clear(&self) -> anyhow::Result<()> {
        self.redis.flush().await
    }

    /// Makes up a job that comes to one request.
    pub(super) fn job_of_one_chunk(&self) -> NewJob {
        let source = self.chunks.single();
        NewJob {
            follow: false,
            id: JobId::generate(),
            project_id: source.project(),
            uri_prefix: source.uri().to_owned(),
            priority: Priority::Normal.to_string(),
            settings: json!({}),
        }
    }

    /// Commits a job of `count` requests and returns the time from the commit until the relay
    /// has recorded the last message, by the clock of Postgres.
    ///
    /// Meanwhile a few rows are looked at now and then, and no more: who asks for the state of
    /// the whole backlog takes the time that is measured.
    pub(super) async fn deliver(&self, count: usize) -> anyhow::Result<Delivered> {
        let job = JobId::generate();
        let sql = self.dir.path().join("round.sql");
        std::fs::write(&sql, self.round_sql(job, count)?)?;
        let written = psql_file(&self.db.url, &sql).await.context("write the requests")?;
        let committed_at: f64 = written.lines().last().unwrap_or_default().trim().parse()?;

        let last: Vec<Uuid> = written.lines().filter_map(|line| line.trim().parse().ok()).collect();
        ensure!(last.len() == count.min(SAMPLE), "psql printed {} of the last requests", last.len());
        eventually("the last requests are queued", DELIVERY, async || {
            tokio::time::sleep(POLL).await;
            requests::pending(&self.pool, &last).await.is_ok_and(|pending| pending.is_empty())
        })
        .await;
        let query = format!(
            "SELECT count(*) FILTER (WHERE state = 'queued') = {count}, extract(epoch FROM max(updated_at))
             FROM llm_request WHERE job_id = '{job}'"
        );
        let mut queued_at = String::new();
        eventually("all requests are queued", DELIVERY, async || {
            tokio::time::sleep(POLL).await;
            let answer = psql(&self.db.url, &query).await.unwrap_or_default();
            queued_at = answer.strip_prefix("t|").unwrap_or_default().to_owned();
            !queued_at.is_empty()
        })
        .await;
        let took = Duration::try_from_secs_f64(queued_at.parse::<f64>()? - committed_at)?;

        let held: u64 = self.queue.stats().await?.iter().map(|stream| stream.length).sum();
        ensure!(held == count as u64, "Redis holds {held} messages of {count} requests");
        Ok(Delivered { took, messages: self.messages(job).await? })
    }

    /// Writes SQL that inserts a job and its requests. It prints the last requests' ids, and
    /// in the last line the time just before the commit.
    fn round_sql(&self, job: JobId, count: usize) -> anyhow::Result<String> {
        let source = self.chunks.many();
        let (project, source) = (source.project(), source.source());
        let mut sql = format!(
            "INSERT INTO job (id, project_id, settings) VALUES ('{job}', '{project}', '{{}}');
             INSERT INTO llm_request (id, project_id, chunk_id, job_id)
             SELECT derived_id('{job}', c.id::text), c.project_id, c.id, '{job}'::uuid
             FROM chunk c WHERE c.source_id = '{source}' AND c.ordinal < {count} ORDER BY c.ordinal;
             SELECT derived_id('{job}', c.id::text)
             FROM chunk c WHERE c.source_id = '{source}' AND c.ordinal < {count} ORDER BY c.ordinal DESC LIMIT {SAMPLE};\n"
        );
        // Rings at the commit, as a writer does right after it.
        writeln!(sql, "SELECT pg_notify('{OUTBOX_CHANNEL}', '');")?;
        sql.push_str("SELECT extract(epoch FROM clock_timestamp());\n");
        Ok(sql)
    }

    /// Returns what the relay has sent of a job.
    async fn messages(&self, job: JobId) -> anyhow::Result<Vec<Message>> {
        let project_id = self.chunks.many().project().as_uuid();
        let ids = psql(&self.db.url, &format!("SELECT id FROM llm_request WHERE job_id = '{job}'")).await?;
        ids.lines()
            .map(|id| {
                let request_id = id.trim().parse().context("read the id of a request")?;
                Ok(Message { request_id, project_id, job_id: Some(job.as_uuid()), headers: None })
            })
            .collect()
    }

    /// Stops everything.
    pub(super) async fn strike(mut self) -> anyhow::Result<()> {
        self.pool.close().await;
        self.relay.signal(Signal::SIGTERM)?;
        self.relay.wait(STOP).await?;
        Ok(())
    }
}

async fn start_relay(db: &TestDb, redis: &TestRedis) -> anyhow::Result<Program> {
    // These variables are above every other layer: whatever else this machine's environment
    // says, it is our servers that the relay works on.
    let redis_url = redis.url();
    let environment = [
        ("WAYBILL_DATABASE__URL", db.url.as_str()),
        ("WAYBILL_REDIS__URL", &redis_url),
        ("WAYBILL_REDIS__PREFIX", PREFIX),
        ("WAYBILL_QDRANT__URL", NOWHERE),
        ("WAYBILL_ENDPOINTS__EMBEDDING", NOWHERE),
        ("WAYBILL_LOG", "info"),
    ];
    let arguments = ["serve", "relay", "--listen", "127.0.0.1:0"];
    let relay = Program::start(sibling("waybill")?, arguments, environment)?;
    relay.line("serving", START).await?;
    Ok(relay)
}
