//! One collection: its engine shard, who may touch it when, and when a write
//! may be acknowledged.
//!
//! The engine writes a log but doesn't replay it when it opens, so a write is
//! on record only after `flush()`. Flushing costs about ten milliseconds
//! whatever it covers, hence the group commit: a writer applies its operations
//! under the writer lock and releases it, then queues for the lock again; when
//! its turn comes, either a flush that began after its apply has happened
//! meanwhile, or it flushes for everybody who applied before it. The lock is
//! fair, so writers that queued behind an apply get in before its flush.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use qdrant_edge::{CreateIndex, EdgeShard, FieldIndexOperations, OperationResult, UpdateOperation};
use tokio::sync::{Mutex, OwnedMutexGuard, Semaphore};
use tokio::task::spawn_blocking;

use crate::convert::json_path;
use crate::error::Error;
use crate::manifest::CollectionSpec;
use crate::wal;

/// Reads of one collection that may occupy a blocking thread at a time. The
/// engine answers from memory, so more than a few only take turns on the cores.
const CONCURRENT_READS: usize = 4;

/// Writes of one collection that may be under way, most of them waiting. More
/// than the requests one connection may have, so only a crowd is turned away.
const MAX_QUEUED_WRITES: usize = 256;

/// Flushes between two looks at the size of the engine's log: listing a
/// directory is cheap, but not as cheap as not doing it.
const FLUSHES_PER_LOG_CHECK: u64 = 32;

/// What a real server says of a collection that nobody has set it for.
const INDEXING_THRESHOLD_KIB: u64 = 10_000;

/// An open collection.
#[derive(Debug)]
pub(crate) struct Store {
    /// How it is built.
    pub(crate) spec: CollectionSpec,
    dir: PathBuf,
    /// `None` once closed. The write half is for closing and reopening only.
    shard: RwLock<Option<EdgeShard>>,
    /// Held while applying and while flushing: the engine panics if they meet.
    writer: Arc<Mutex<Writes>>,
    readers: Arc<Semaphore>,
    /// Places for writes under way, each with its points in memory.
    queue: Semaphore,
    /// Set when the engine could not flush: what it holds in memory and what
    /// is on disk may differ from then on, so nothing is answered any more.
    failed: AtomicBool,
    /// Told to clients, see the manifest.
    indexing_threshold: AtomicU64,
}

/// How far writing has come, in operations since the store was opened.
#[derive(Debug, Default)]
struct Writes {
    applied: u64,
    flushed: u64,
    flushes: u64,
}

impl Store {
    /// Creates the shard in `dir`, which must not exist; durable when it returns.
    pub(crate) fn create(dir: PathBuf, spec: CollectionSpec) -> Result<Arc<Self>, Error> {
        let shard = contain("create", || {
            fs::create_dir_all(&dir).map_err(|error| Error::Internal(error.to_string()))?;
            let shard = EdgeShard::new(&dir, spec.engine_config())?;
            shard.flush();
            Ok(shard)
        })?;
        Ok(Self::of(dir, spec, shard))
    }

    /// Opens the shard in `dir`; `repair` says that it was not closed properly.
    pub(crate) fn open(dir: PathBuf, spec: CollectionSpec, repair: bool) -> Result<Arc<Self>, Error> {
        let shard = load(&dir, &spec)?;
        if repair {
            contain("repair", || rebuild_indexes(&shard, &spec))?;
        }
        Ok(Self::of(dir, spec, shard))
    }

    fn of(dir: PathBuf, spec: CollectionSpec, shard: EdgeShard) -> Arc<Self> {
        let indexing_threshold = spec.indexing_threshold.unwrap_or(INDEXING_THRESHOLD_KIB);
        Arc::new(Self {
            indexing_threshold: AtomicU64::new(indexing_threshold),
            spec,
            dir,
            shard: RwLock::new(Some(shard)),
            writer: Arc::default(),
            readers: Arc::new(Semaphore::new(CONCURRENT_READS)),
            queue: Semaphore::new(MAX_QUEUED_WRITES),
            failed: AtomicBool::new(false),
        })
    }

    /// Returns the indexing threshold, in KiB.
    pub(crate) fn indexing_threshold(&self) -> u64 {
        self.indexing_threshold.load(Ordering::Relaxed)
    }

    /// Sets it.
    pub(crate) fn set_indexing_threshold(&self, kib: u64) {
        self.indexing_threshold.store(kib, Ordering::Relaxed);
    }

    /// Runs `read` against the engine on a blocking thread.
    pub(crate) async fn read<T, F>(self: &Arc<Self>, read: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&EdgeShard) -> OperationResult<T> + Send + 'static,
    {
        let permit = Arc::clone(&self.readers).acquire_owned().await;
        let permit = permit.map_err(|_| Error::Closed)?;
        let store = Arc::clone(self);
        blocking(move || {
            let _permit = permit;
            contain("read", || Ok(read(store.engine()?.shard()?)?))
        })
        .await
    }

    /// Applies `operations` in order and waits until they are on disk.
    ///
    /// Stops at the first operation the engine refuses; those before it stay
    /// applied. Returns the number of operations applied since the store was
    /// opened, which serves as operation id.
    pub(crate) async fn write(self: &Arc<Self>, operations: Vec<UpdateOperation>) -> Result<u64, Error> {
        let queue = self.queue.try_acquire();
        let _place = queue.map_err(|_| Error::Busy(MAX_QUEUED_WRITES))?;
        let target = self.apply(operations).await?;
        self.wait_flushed(target).await?;
        Ok(target)
    }

    async fn apply(self: &Arc<Self>, operations: Vec<UpdateOperation>) -> Result<u64, Error> {
        // The guard goes along into the blocking closure: if the caller goes
        // away, the engine still works, and nobody else may come near it.
        let mut writes = Arc::clone(&self.writer).lock_owned().await;
        let store = Arc::clone(self);
        blocking(move || {
            let result = contain("write", || {
                let engine = store.engine()?;
                let shard = engine.shard()?;
                for operation in operations {
                    writes.applied += 1;
                    shard.update(operation)?;
                }
                Ok(writes.applied)
            });
            // What the engine merely refuses it has also undone or noted; a
            // panic may have left anything behind.
            if let Err(Error::Panicked(_)) = &result {
                store.fail();
            }
            result
        })
        .await
    }

    async fn wait_flushed(self: &Arc<Self>, target: u64) -> Result<(), Error> {
        let writes = Arc::clone(&self.writer).lock_owned().await;
        if writes.flushed >= target {
            return Ok(());
        }
        let store = Arc::clone(self);
        blocking(move || store.flush(writes)).await
    }

    fn flush(&self, mut writes: OwnedMutexGuard<Writes>) -> Result<(), Error> {
        let result = contain("flush", || {
            self.engine()?.shard()?.flush();
            Ok(())
        });
        match result {
            Ok(()) => {
                writes.flushed = writes.applied;
                writes.flushes += 1;
                if writes.flushes.is_multiple_of(FLUSHES_PER_LOG_CHECK) && wal::is_too_long(&self.dir) {
                    self.reopen();
                }
                Ok(())
            }
            Err(error) => {
                if matches!(error, Error::Panicked(_)) {
                    self.fail();
                }
                Err(error)
            }
        }
    }

    /// Reopens the shard, which trims the engine's log. For the holder of the
    /// writer lock.
    ///
    /// Nothing ever reads the log again once its operations are flushed, but
    /// the engine neither truncates it nor lets others do so while it is open.
    fn reopen(&self) {
        let mut shard = self.shard_mut();
        if let Err(error) = drop_shard(&mut shard) {
            tracing::error!(%error, "reopen a collection");
            self.fail();
            return;
        }
        match load(&self.dir, &self.spec) {
            Ok(reopened) => *shard = Some(reopened),
            Err(error) => {
                tracing::error!(%error, "reopen a collection");
                self.fail();
            }
        }
    }

    /// Flushes and closes; later calls answer that the server is closing.
    /// Fails too if the storage had failed before: it needs a repair then.
    ///
    /// Must be called on a blocking thread.
    pub(crate) fn close(&self) -> Result<(), Error> {
        let _writes = self.writer.blocking_lock();
        drop_shard(&mut self.shard_mut())?;
        if self.failed.load(Ordering::Acquire) {
            return Err(Error::Internal("the storage failed before".into()));
        }
        Ok(())
    }

    /// Closes and removes the files.
    ///
    /// Must be called on a blocking thread, after the manifest has forgotten
    /// the collection. What can't be removed is removed at the next start.
    pub(crate) fn remove(&self) {
        if let Err(error) = self.close() {
            tracing::warn!(%error, "close a deleted collection");
        }
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            tracing::warn!(%error, dir = %self.dir.display(), "remove a deleted collection");
        }
    }

    fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }

    fn engine(&self) -> Result<Engine<'_>, Error> {
        if self.failed.load(Ordering::Acquire) {
            return Err(Error::Internal("the storage of this collection failed earlier: restart the server".into()));
        }
        Ok(Engine(self.shard.read().unwrap_or_else(PoisonError::into_inner)))
    }

    fn shard_mut(&self) -> RwLockWriteGuard<'_, Option<EdgeShard>> {
        self.shard.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // The engine flushes when dropped, and panics if it can't.
        let shard = self.shard.get_mut().unwrap_or_else(PoisonError::into_inner);
        if !self.dir.exists() {
            // Nothing to flush to; a test's directory goes before its server.
            std::mem::forget(shard.take());
            return;
        }
        if let Err(error) = drop_shard(shard) {
            tracing::error!(%error, "close a collection");
        }
    }
}

/// A shared hold on the shard.
struct Engine<'a>(RwLockReadGuard<'a, Option<EdgeShard>>);

impl Engine<'_> {
    fn shard(&self) -> Result<&EdgeShard, Error> {
        self.0.as_ref().ok_or(Error::Closed)
    }
}

fn load(dir: &Path, spec: &CollectionSpec) -> Result<EdgeShard, Error> {
    contain("open", || {
        wal::trim(dir).map_err(|error| Error::Internal(error.to_string()))?;
        Ok(EdgeShard::load(dir, Some(spec.engine_config()))?)
    })
}

/// Builds the payload indexes anew from the payloads.
///
/// A flush writes vectors, then indexes, then payloads. A process killed in
/// between leaves an index that knows a payload which isn't there: the point
/// would look newer than it is, and the conditional upsert that should complete
/// it would pass it by.
fn rebuild_indexes(shard: &EdgeShard, spec: &CollectionSpec) -> Result<(), Error> {
    for key in shard.info().payload_schema.into_keys() {
        let drop_index = FieldIndexOperations::DeleteIndex(key);
        shard.update(UpdateOperation::FieldIndexOperation(drop_index))?;
    }
    for (key, schema) in &spec.indexes {
        let create = FieldIndexOperations::CreateIndex(CreateIndex {
            field_name: json_path(key)?,
            field_schema: Some(schema.clone()),
        });
        shard.update(UpdateOperation::FieldIndexOperation(create))?;
    }
    shard.flush();
    Ok(())
}

fn drop_shard(shard: &mut Option<EdgeShard>) -> Result<(), Error> {
    let taken = shard.take();
    contain("close", || {
        drop(taken);
        Ok(())
    })
}

/// Turns a panic of the engine into an error: one collection's trouble must
/// not take the process down, and a lost flush must not pass for a success.
fn contain<T>(what: &str, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let reason = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("unknown panic");
        Err(Error::Panicked(format!("{what}: {reason}")))
    })
}

/// Runs `work` on a blocking thread.
pub(crate) async fn blocking<T, F>(work: F) -> Result<T, Error>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, Error> + Send + 'static,
{
    spawn_blocking(work).await.unwrap_or_else(|error| Err(Error::Internal(error.to_string())))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use qdrant_edge::external::serde_json::json;
    use qdrant_edge::{
        Payload, PointId, PointInsertOperations, PointOperations, PointStructPersisted, VectorStructPersisted,
    };
    use tempfile::TempDir;

    use super::*;

    /// Larger than half a log file, so that every second operation closes one.
    const TEXT_BYTES: usize = 5 * 1024 * 1024;

    fn upsert(version: u64) -> UpdateOperation {
        let text = "x".repeat(TEXT_BYTES);
        let payload = json!({"version": version, "text": text});
        let point = PointStructPersisted {
            id: PointId::NumId(1),
            vector: VectorStructPersisted::Named(HashMap::new()),
            payload: payload.as_object().cloned().map(Payload),
        };
        let points = PointInsertOperations::PointsList(vec![point]);
        UpdateOperation::PointOperation(PointOperations::UpsertPoints(points))
    }

    async fn version(store: &Arc<Store>) -> u64 {
        let read = store.read(|shard| shard.retrieve(&[PointId::NumId(1)], None, None));
        let payload = read.await.unwrap()[0].payload.clone().unwrap();
        payload.0["version"].as_u64().unwrap()
    }

    /// The engine ignores an operation whose number is below the point's: a log
    /// that started over would swallow the writes after it.
    #[tokio::test]
    async fn a_trimmed_log_goes_on_counting() {
        let dir = TempDir::new().unwrap();
        let shard_dir = dir.path().join("shard");
        let store = Store::create(shard_dir.clone(), CollectionSpec::default()).unwrap();
        for round in 1..=6 {
            store.write(vec![upsert(round)]).await.unwrap();
        }
        let before = wal::closed_files(&shard_dir).unwrap().len();
        assert!(before > 2, "{before} closed log files");

        let reopened = Arc::clone(&store);
        spawn_blocking(move || reopened.reopen()).await.unwrap();
        assert_eq!(wal::closed_files(&shard_dir).unwrap().len(), 1);
        assert_eq!(version(&store).await, 6);
        store.write(vec![upsert(7)]).await.unwrap();
        assert_eq!(version(&store).await, 7);

        let closed = Arc::clone(&store);
        spawn_blocking(move || closed.close()).await.unwrap().unwrap();
        let store = Store::open(shard_dir, CollectionSpec::default(), true).unwrap();
        store.write(vec![upsert(8)]).await.unwrap();
        assert_eq!(version(&store).await, 8);
    }

    #[test]
    fn a_panic_of_the_engine_is_an_error() {
        let result = contain("test", || -> Result<(), Error> { panic!("on purpose") });
        let error = result.unwrap_err();
        assert!(matches!(&error, Error::Panicked(reason) if reason == "test: on purpose"));
    }

    #[tokio::test]
    async fn a_store_whose_flush_failed_answers_nothing_any_more() {
        let dir = TempDir::new().unwrap();
        let store = Store::create(dir.path().join("shard"), CollectionSpec::default()).unwrap();
        store.fail();
        let read = store.read(|shard| Ok(shard.info())).await;
        assert!(matches!(read, Err(Error::Internal(_))));
        let write = store.write(vec![upsert(1)]).await;
        assert!(matches!(write, Err(Error::Internal(_))));
    }
}
