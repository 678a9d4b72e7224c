//! What bulk loads change in the vector store, and putting it back.
//!
//! An index that is built while much is written is built over and over. So the live collection's
//! indexing threshold is raised while a load goes on. What it was is in Postgres before it is
//! changed: whoever dies in between, another relay puts it back. Each step can be done twice, so
//! relays need not agree on who does it.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use waybill_storage::{Db, StorageError, bulk, index};
use waybill_vectors::{VectorError, Vectors};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// While nothing changes, the store is asked this often: its collection may be another by now.
const CHECK_EVERY: Duration = Duration::from_secs(30);
/// No segment gets that large: 100 GB, in KiB.
const THRESHOLD_KIB: u64 = 100_000_000;

/// Raises the threshold and puts it back.
pub(crate) struct BulkKeeper {
    pub(crate) db: Db,
    pub(crate) vectors: Vectors,
    pub(crate) alias: String,
}

#[derive(Debug, thiserror::Error)]
enum KeeperError {
    #[error("postgres: {0}")]
    Storage(#[from] StorageError),
    #[error("qdrant: {0}")]
    Vectors(#[from] VectorError),
}

impl BulkKeeper {
    /// Works until `stopping`.
    pub(crate) async fn run(self, stopping: CancellationToken) {
        let work = async {
            let mut done: Option<(bool, Instant)> = None;
            loop {
                match self.look(done).await {
                    Ok(now) => done = now,
                    Err(error) => {
                        tracing::debug!(%error, "indexing threshold not looked at, tried again");
                        done = None;
                    }
                }
                sleep(EVERY).await;
            }
        };
        stopping.run_until_cancelled(work).await;
    }

    /// Does what is to be done, unless `done` says that it was a moment ago.
    async fn look(&self, done: Option<(bool, Instant)>) -> Result<Option<(bool, Instant)>, KeeperError> {
        let is_on = bulk::is_on(&self.db).await?;
        if done.is_some_and(|(was_on, at)| was_on == is_on && at.elapsed() < CHECK_EVERY) {
            return Ok(done);
        }
        let remembered = index::remembered_threshold(&self.db).await?;
        if !is_on && remembered.is_none() {
            return Ok(Some((is_on, Instant::now())));
        }
        let Some(collection) = self.vectors.alias_target(&self.alias).await? else { return Ok(None) };
        if is_on {
            let now = self.vectors.collection_info(&collection).await?.indexing_threshold.unwrap_or_default();
            if now != THRESHOLD_KIB {
                index::remember_threshold(&self.db, i64::try_from(now).unwrap_or(i64::MAX)).await?;
                self.vectors.set_indexing_threshold(&collection, THRESHOLD_KIB).await?;
                tracing::info!(collection, from_kib = now, to_kib = THRESHOLD_KIB, "bulk load: indexing put off");
            }
        } else if let Some(kib) = remembered {
            self.vectors.set_indexing_threshold(&collection, kib.unsigned_abs()).await?;
            index::forget_threshold(&self.db).await?;
            tracing::info!(collection, kib, "bulk load over: indexing as before");
        }
        Ok(Some((is_on, Instant::now())))
    }
}
