//! The cache in Postgres: read in front of a model, written behind the caller's back.
//!
//! Nothing here fails. Without Postgres every text is a miss, and what can't be written is
//! dropped: both cost model time, and no more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use waybill_domain::TextHash;
use waybill_storage::{Db, StorageError, cache};

use crate::config::CacheConfig;
use crate::meter::CacheMeter;

/// How long a lookup may take. It takes milliseconds; past this the model is as fast.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);

/// After a failed lookup, callers don't ask for so long: they would all wait in vain.
const REST_AFTER_FAILURE: Duration = Duration::from_secs(5);

/// Writes that may wait: with 384 dimensions 12 MB. What comes on top is dropped.
const WAITING_WRITES: usize = 8_192;

/// Rows of one statement: beyond a few hundred they don't get cheaper.
const ROWS_PER_WRITE: usize = 512;

/// How long one write may take before it is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Rows of one eviction statement, so that none holds its locks for long.
const ROWS_PER_EVICTION: i64 = 1_000;

/// Between two eviction statements, so that they don't take the disk from everybody else.
const EVICTION_PAUSE: Duration = Duration::from_millis(50);

/// Reads the cache.
pub(crate) struct VectorCache {
    db: Db,
    enabled: bool,
    writer: CacheWriter,
    rest_until: Mutex<Option<Instant>>,
    meter: CacheMeter,
}

/// Hands vectors to the task that writes them.
#[derive(Clone)]
pub(crate) struct CacheWriter(Option<mpsc::Sender<Write>>);

/// The task that writes vectors.
pub(crate) struct WriteBehind {
    db: Db,
    writes: mpsc::Receiver<Write>,
}

struct Write {
    model: Arc<str>,
    hash: TextHash,
    /// Absent: the row is there, and is to be marked as used.
    vector: Option<Arc<[u8]>>,
}

/// What is written of one model at a time.
#[derive(Default)]
struct Rows {
    vectors: Vec<(TextHash, Arc<[u8]>)>,
    touched: Vec<TextHash>,
}

/// Makes the two ends of a cache; the writer goes nowhere if it is switched off.
pub(crate) fn write_behind(db: &Db, config: &CacheConfig) -> (CacheWriter, WriteBehind) {
    let (sender, writes) = mpsc::channel(WAITING_WRITES);
    (CacheWriter(config.enabled.then_some(sender)), WriteBehind { db: db.clone(), writes })
}

impl VectorCache {
    pub(crate) fn new(db: Db, config: &CacheConfig, writer: CacheWriter, meter: CacheMeter) -> Self {
        Self { db, enabled: config.enabled, writer, rest_until: Mutex::new(None), meter }
    }

    /// Looks vectors of `dimensions` numbers up, as many answers as hashes and in their order.
    pub(crate) async fn lookup(
        &self,
        model: &Arc<str>,
        dimensions: usize,
        hashes: &[TextHash],
    ) -> Vec<Option<Vec<u8>>> {
        if !self.enabled || self.is_resting() {
            return vec![None; hashes.len()];
        }
        let found = match timeout(LOOKUP_TIMEOUT, cache::lookup(&self.db, model, hashes)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return self.rest(hashes.len(), &error),
            Err(_) => return self.rest(hashes.len(), &StorageError::Timeout(LOOKUP_TIMEOUT)),
        };
        let length = dimensions * size_of::<f32>();
        let hits = found.iter().flatten().count();
        self.meter.looked_up(model, hits, found.len() - hits);
        found
            .into_iter()
            .zip(hashes)
            .map(|(vector, hash)| {
                // Another length would be somebody's meddling; it must not reach a collection.
                let vector = vector.filter(|vector| vector.dense.len() == length)?;
                if vector.touch_due {
                    self.writer.touch(model, *hash);
                }
                Some(vector.dense)
            })
            .collect()
    }

    fn is_resting(&self) -> bool {
        let rest_until = self.rest_until.lock().unwrap_or_else(PoisonError::into_inner);
        rest_until.is_some_and(|until| until > Instant::now())
    }

    fn rest(&self, count: usize, error: &StorageError) -> Vec<Option<Vec<u8>>> {
        tracing::warn!(%error, rest_s = REST_AFTER_FAILURE.as_secs(), "cache can't be read, embedding without it");
        *self.rest_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + REST_AFTER_FAILURE);
        vec![None; count]
    }
}

impl CacheWriter {
    /// Has a vector stored, unless too many wait already.
    pub(crate) fn store(&self, model: &Arc<str>, hash: TextHash, vector: Arc<[u8]>) {
        self.send(Write { model: Arc::clone(model), hash, vector: Some(vector) });
    }

    fn touch(&self, model: &Arc<str>, hash: TextHash) {
        self.send(Write { model: Arc::clone(model), hash, vector: None });
    }

    fn send(&self, write: Write) {
        if let Some(sender) = &self.0 {
            // Full: the text will be embedded once more some day.
            let _dropped = sender.try_send(write);
        }
    }
}

impl WriteBehind {
    /// Writes until every writer is gone or `stop` is cancelled, then writes what is left.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            let mut writes = Vec::with_capacity(ROWS_PER_WRITE);
            let received = stop.run_until_cancelled(self.writes.recv_many(&mut writes, ROWS_PER_WRITE)).await;
            match received {
                Some(0) => return,
                Some(_) => self.write(writes).await,
                None => break,
            }
        }
        self.writes.close();
        loop {
            let mut writes = Vec::with_capacity(ROWS_PER_WRITE);
            if self.writes.recv_many(&mut writes, ROWS_PER_WRITE).await == 0 {
                return;
            }
            self.write(writes).await;
        }
    }

    async fn write(&self, writes: Vec<Write>) {
        let mut by_model: HashMap<Arc<str>, Rows> = HashMap::new();
        for write in writes {
            let rows = by_model.entry(write.model).or_default();
            match write.vector {
                Some(vector) => rows.vectors.push((write.hash, vector)),
                None => rows.touched.push(write.hash),
            }
        }
        for (model, Rows { vectors, touched }) in by_model {
            let write = async {
                if !vectors.is_empty() {
                    cache::store(&self.db, &model, &vectors).await?;
                }
                if !touched.is_empty() {
                    cache::touch(&self.db, &model, &touched).await?;
                }
                Ok(())
            };
            let done = timeout(WRITE_TIMEOUT, write).await.unwrap_or(Err(StorageError::Timeout(WRITE_TIMEOUT)));
            if let Err(error) = done {
                tracing::warn!(%error, vectors = vectors.len(), "vectors not cached");
            }
        }
    }
}

/// Deletes what the cache should not hold, now and then, until `stop` is cancelled.
pub(crate) async fn evict(db: Db, config: CacheConfig, stop: CancellationToken) {
    let mut ticks = interval(Duration::from_secs(config.evict_every_s));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        if stop.run_until_cancelled(ticks.tick()).await.is_none() {
            return;
        }
        match stop.run_until_cancelled(evict_once(&db, &config)).await {
            None => return,
            Some(Ok(0)) => {}
            Some(Ok(rows)) => tracing::info!(rows, "evicted vectors from the cache"),
            Some(Err(error)) => tracing::warn!(%error, "cache not evicted"),
        }
    }
}

/// Deletes what is too old, then the oldest of what is too much. Returns how many rows.
pub(crate) async fn evict_once(db: &Db, config: &CacheConfig) -> Result<u64, StorageError> {
    let days = i32::try_from(config.max_age_days).unwrap_or(i32::MAX);
    let mut total = 0;
    loop {
        let rows = cache::evict_unused(db, days, ROWS_PER_EVICTION).await?;
        total += rows;
        if rows < ROWS_PER_EVICTION.unsigned_abs() {
            break;
        }
        sleep(EVICTION_PAUSE).await;
    }
    let max_bytes = i64::try_from(config.max_bytes).unwrap_or(i64::MAX);
    let mut excess = cache::excess_rows(db, max_bytes).await?;
    while excess > 0 {
        let rows = cache::evict_oldest(db, excess.min(ROWS_PER_EVICTION)).await?;
        total += rows;
        if rows == 0 {
            break;
        }
        excess -= i64::try_from(rows).unwrap_or(i64::MAX);
        sleep(EVICTION_PAUSE).await;
    }
    Ok(total)
}
