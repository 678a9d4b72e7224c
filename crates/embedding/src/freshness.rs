//! Searches that must see certain writes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;
use waybill_domain::{FreshnessToken, SourceId};
use waybill_storage::Db;
use waybill_storage::freshness::{self, Awaited};

use crate::config::Config;
use crate::search::SearchError;

/// Sources that an error names; it counts the others.
const NAMED_SOURCES: i64 = 5;

/// Waits for the vector store to show what a search must see.
#[derive(Debug)]
pub(crate) struct Freshness {
    db: Db,
    wait_max: Duration,
    waiting: Arc<Semaphore>,
}

impl Freshness {
    pub(crate) fn new(db: Db, config: &Config) -> Self {
        Self {
            db,
            wait_max: Duration::from_millis(config.freshness_wait_max_ms),
            waiting: Arc::new(Semaphore::new(config.max_waiting_searches)),
        }
    }

    /// Waits until the vector store shows each source of `tokens` as it is now, which is as the
    /// write left it or newer; at the latest until the configured maximum or `answer_by`.
    ///
    /// A deletion is not waited for: hits are read from Postgres, so what is deleted can't come
    /// up, whatever the vector store still has. Which points those were is not known any more;
    /// where they take up places, the search fetches more.
    ///
    /// # Errors
    /// [`SearchError::Stale`] with the sources that are missing, [`SearchError::TooManyWaiting`], or
    /// a failure of Postgres.
    pub(crate) async fn wait(&self, tokens: &[FreshnessToken], answer_by: Option<Instant>) -> Result<(), SearchError> {
        let awaited: Vec<Awaited> = tokens
            .iter()
            .filter(|token| !token.deleted)
            .map(|token| Awaited { source: token.source, version: token.version })
            .collect();
        if awaited.is_empty() {
            return Ok(());
        }
        let Ok(_waiting) = self.waiting.try_acquire() else {
            return Err(SearchError::TooManyWaiting);
        };
        let begun = Instant::now();
        let until = answer_by.map_or(begun + self.wait_max, |by| by.min(begun + self.wait_max));
        let missing = freshness::wait(&self.db, &awaited, until).await?;
        if missing.is_empty() {
            return Ok(());
        }
        let mut sources: Vec<SourceId> = missing.iter().map(|awaited| awaited.source).collect();
        sources.sort_unstable();
        sources.dedup();
        let waited = begun.elapsed();
        Err(SearchError::Stale { sources: self.name(&sources).await, waited })
    }

    /// Names sources for people.
    async fn name(&self, sources: &[SourceId]) -> String {
        let named = match freshness::uris(&self.db, sources, NAMED_SOURCES).await {
            Ok(uris) if !uris.is_empty() => uris,
            // The ids will do.
            _ => sources.iter().take(NAMED_SOURCES.unsigned_abs() as usize).map(ToString::to_string).collect(),
        };
        let quoted: Vec<String> = named.iter().map(|name| format!("{name:?}")).collect();
        match sources.len().saturating_sub(named.len()) {
            0 => quoted.join(", "),
            more => format!("{} and {more} more", quoted.join(", ")),
        }
    }
}
