//! A real Postgres, engines beside each other, and a sink that remembers what it shows.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::{sync::Semaphore, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use waybill_domain::{ErrorClass, Kind, RelayId, SinkName};
use waybill_outbox::{DeliveryError, Engine, EngineConfig, Key, Permit, Sink, Stats, Wake};
use waybill_runtime::Signals;
use waybill_storage::{Db, DbConfig, points, settle::Confirmed};
use waybill_testkit::psql;

/// Long enough for a loaded machine; nothing waits for it when all is well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A store in memory. It shows what deliveries bring, and refuses two of a key at once.
pub(crate) struct MemorySink {
    db: Db,
    shared: Arc<Shown>,
}

#[derive(Default)]
pub(crate) struct Shown {
    pub(crate) points: Mutex<BTreeMap<Uuid, i64>>,
    delivering: Mutex<HashSet<Uuid>>,
    /// Keys delivered, counted each time.
    pub(crate) deliveries: Mutex<BTreeMap<Uuid, u32>>,
    pub(crate) overlaps: Mutex<Vec<Uuid>>,
    pub(crate) down: AtomicBool,
    /// Asks to be left alone.
    pub(crate) throttles: AtomicBool,
    /// Keys refused, and how.
    pub(crate) poison: Mutex<BTreeMap<Uuid, ErrorClass>>,
    /// Projects all of whose keys are refused, after a while.
    pub(crate) poisoned_project: Mutex<Option<Uuid>>,
    /// The size of each batch that was tried, in order.
    pub(crate) batches: Mutex<Vec<usize>>,
    /// Calls that were refused.
    pub(crate) refusals: AtomicUsize,
    /// Closed: deliveries that have loaded wait here.
    pub(crate) gate: Gate,
    /// Closed: deliveries of the poisoned project never end.
    pub(crate) poison_gate: Gate,
}

/// Holds deliveries between loading and sending.
pub(crate) struct Gate(Semaphore);

impl Default for Gate {
    fn default() -> Self {
        Self(Semaphore::new(Semaphore::MAX_PERMITS))
    }
}

impl Gate {
    pub(crate) fn close(&self) {
        self.0.forget_permits(Semaphore::MAX_PERMITS);
    }

    pub(crate) fn open(&self) {
        self.0.add_permits(Semaphore::MAX_PERMITS);
    }

    async fn pass(&self) {
        drop(self.0.acquire().await.unwrap());
    }
}

#[async_trait]
impl Sink for MemorySink {
    fn name(&self) -> SinkName {
        SinkName::Qdrant
    }

    async fn deliver(&self, keys: &[Key], permit: &Permit) -> Result<Vec<Confirmed>, DeliveryError> {
        let ids: Vec<Uuid> = keys.iter().map(|key| key.id).collect();
        {
            let mut delivering = self.shared.delivering.lock().unwrap();
            let overlaps = ids.iter().filter(|id| !delivering.insert(**id));
            self.shared.overlaps.lock().unwrap().extend(overlaps);
        }
        let outcome = self.send(&ids, permit).await;
        self.shared.delivering.lock().unwrap().retain(|id| !ids.contains(id));
        outcome
    }

    async fn probe(&self) -> Result<(), DeliveryError> {
        if self.shared.down.load(Ordering::SeqCst) {
            return Err(DeliveryError::new(ErrorClass::Transient, "down"));
        }
        Ok(())
    }
}

impl MemorySink {
    async fn send(&self, ids: &[Uuid], permit: &Permit) -> Result<Vec<Confirmed>, DeliveryError> {
        self.shared.batches.lock().unwrap().push(ids.len());
        if let Some(class) =
            self.shared.poison.lock().unwrap().iter().find(|(id, _)| ids.contains(id)).map(|(_, class)| *class)
        {
            self.shared.refusals.fetch_add(1, Ordering::SeqCst);
            return Err(DeliveryError::new(class, "poisoned"));
        }
        if self.shared.throttles.load(Ordering::SeqCst) {
            return Err(DeliveryError::new(ErrorClass::Throttled, "slower"));
        }
        let rows = points::load_chunks(&self.db, ids)
            .await
            .map_err(|error| DeliveryError::new(ErrorClass::Transient, error.to_string()))?;
        let poisoned = *self.shared.poisoned_project.lock().unwrap();
        if rows.iter().any(|row| Some(row.project_id.as_uuid()) == poisoned) {
            self.shared.refusals.fetch_add(1, Ordering::SeqCst);
            self.shared.poison_gate.pass().await;
            return Err(DeliveryError::new(ErrorClass::Unknown, "poisoned project"));
        }
        self.shared.gate.pass().await;
        permit.time_left()?;
        if self.shared.down.load(Ordering::SeqCst) {
            return Err(DeliveryError::new(ErrorClass::Transient, "down"));
        }
        let mut points = self.shared.points.lock().unwrap();
        Ok(ids
            .iter()
            .map(|&key| {
                *self.shared.deliveries.lock().unwrap().entry(key).or_default() += 1;
                let version = rows.iter().find(|row| row.id == key).map(|row| row.version);
                match version {
                    Some(version) => points.insert(key, version),
                    None => points.remove(&key),
                };
                Confirmed { kind: Kind::Chunk, key, version, reference: None, generation: 0 }
            })
            .collect())
    }
}

pub(crate) fn database(url: &str) -> Db {
    Db::connect(&DbConfig {
        url: url.to_owned(),
        max_connections: 8,
        acquire_timeout: Duration::from_secs(5),
        application_name: "waybill-test".to_owned(),
    })
    .unwrap()
}

/// Short waits, so that tests of lost leases are quick.
pub(crate) fn config() -> EngineConfig {
    EngineConfig {
        lease_ms: 3_000,
        grace_ms: 500,
        batch_keys_max: 64,
        read_rows_max: 100,
        outstanding_rows_max: 1_000,
        key_retry_base_ms: 20,
        key_retry_max_ms: 100,
        statement_timeout_ms: 5_000,
        ..EngineConfig::default()
    }
}

/// An engine that runs.
pub(crate) struct Running {
    pub(crate) id: RelayId,
    pub(crate) stats: Stats,
    soft: CancellationToken,
    hard: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    pub(crate) fn start(url: &str, shared: &Arc<Shown>, config: EngineConfig) -> Self {
        Self::start_measured(url, shared, config, &Signals::default())
    }

    /// Starts one that says what it does.
    pub(crate) fn start_measured(url: &str, shared: &Arc<Shown>, config: EngineConfig, signals: &Signals) -> Self {
        let db = database(url);
        let id = RelayId::generate();
        let sink = MemorySink { db: db.clone(), shared: Arc::clone(shared) };
        let engine = Engine::new(db, Arc::new(sink), config, id).measured(&signals.meter);
        let (soft, hard) = (CancellationToken::new(), CancellationToken::new());
        let stats = engine.stats();
        let task = tokio::spawn(engine.run(Wake::default(), soft.clone(), hard.clone()));
        Self { id, stats, soft, hard, task }
    }

    /// Ends it in order.
    pub(crate) async fn stop(self) {
        self.soft.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.expect("the engine stops").unwrap();
    }

    /// Ends it as a crash would: no lane is given back.
    pub(crate) async fn crash(self) {
        self.hard.cancel();
        self.task.await.unwrap();
    }
}

/// Makes a project with one source.
pub(crate) async fn set_up(url: &str) {
    psql(
        url,
        "INSERT INTO project (id, name) VALUES ('00000000-0000-0000-0000-000000000001', 'p');
         INSERT INTO source (id, project_id, uri, title, media_type, content_hash, text, state, chunker)
         VALUES ('00000000-0000-0000-0000-000000000002', '00000000-0000-0000-0000-000000000001', 'u', 't', 'text',
                 sha256('x'), 'x', 'chunked', 'test')",
    )
    .await
    .unwrap();
}

/// The statement that inserts `count` chunks with random ids.
pub(crate) fn insert_chunks(count: u32) -> String {
    format!(
        "INSERT INTO chunk (id, project_id, source_id, ordinal, text, text_hash, start_byte, end_byte, token_count)
         SELECT gen_random_uuid(), '00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-000000000002',
                n, 'text', sha256('x'), 0, 4, 1 FROM generate_series(1, {count}) AS n;"
    )
}

/// The statement that makes project `n` of several, should it not exist, and inserts `count`
/// chunks of it.
pub(crate) fn insert_chunks_of(n: u32, count: u32) -> String {
    let project = format!("00000000-0000-0001-0000-{n:012}");
    let source = format!("00000000-0000-0002-0000-{n:012}");
    format!(
        "INSERT INTO project (id, name) VALUES ('{project}', 'p{n}') ON CONFLICT DO NOTHING;
         INSERT INTO source (id, project_id, uri, title, media_type, content_hash, text, state, chunker)
         VALUES ('{source}', '{project}', 'u', 't', 'text', sha256('x'), 'x', 'chunked', 'test') ON CONFLICT DO NOTHING;
         INSERT INTO chunk (id, project_id, source_id, ordinal, text, text_hash, start_byte, end_byte, token_count)
         SELECT gen_random_uuid(), '{project}', '{source}', n, 'text', sha256('x'), 0, 4, 1
         FROM generate_series(1, {count}) AS n;"
    )
}

/// Reads every chunk's version.
pub(crate) async fn rows(url: &str) -> BTreeMap<Uuid, i64> {
    let text = psql(url, "COPY (SELECT id, version FROM chunk) TO STDOUT").await.unwrap();
    text.lines()
        .filter_map(|line| line.split_once('\t'))
        .map(|(id, version)| (id.parse().unwrap(), version.trim().parse().unwrap()))
        .collect()
}

/// Reads what index_state says is shown.
pub(crate) async fn confirmed(url: &str) -> BTreeMap<Uuid, i64> {
    let text = psql(url, "COPY (SELECT key, version FROM index_state WHERE NOT deleted) TO STDOUT").await.unwrap();
    text.lines()
        .filter_map(|line| line.split_once('\t'))
        .map(|(id, version)| (id.parse().unwrap(), version.trim().parse().unwrap()))
        .collect()
}

pub(crate) async fn number(url: &str, sql: &str) -> i64 {
    psql(url, &format!("COPY ({sql}) TO STDOUT")).await.unwrap().trim().parse().unwrap()
}

impl Shown {
    pub(crate) fn points(&self) -> BTreeMap<Uuid, i64> {
        self.points.lock().unwrap().clone()
    }

    pub(crate) fn assert_no_overlap(&self) {
        assert_eq!(*self.overlaps.lock().unwrap(), Vec::<Uuid>::new(), "keys delivered twice at once");
    }
}
