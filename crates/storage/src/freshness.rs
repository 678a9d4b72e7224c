//! Whether the vector store shows a write, asked by key and version.
//!
//! Never by `closed_seq`: that one waits for every open transaction, and somebody else's must
//! delay nobody here.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;
use waybill_domain::SourceId;

use crate::{Db, Result};

/// The first pause between two looks; it doubles. A chunk takes some milliseconds to arrive.
const FIRST_PAUSE: Duration = Duration::from_millis(5);

/// The longest pause between two looks: who waits that long won't notice it.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// A pause is at least so many times as long as the look before it, so that waiting for a
/// source of many chunks costs Postgres a fifth of a core at most.
const PAUSE_FACTOR: u32 = 4;

/// A look may take so long even when the time is up: the last one is as good as any.
const LOOK_TIMEOUT_MIN: Duration = Duration::from_millis(100);

/// A source that somebody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Awaited {
    /// The source.
    pub source: SourceId,
    /// At this version or a newer one.
    pub version: i64,
}

/// Returns those of `awaited` that the vector store does not show as they are now: a chunk
/// of theirs is not confirmed at its current version, or the source itself is older than what
/// is waited for (Postgres was restored from a backup).
///
/// What was confirmed of a collection that has been lost since does not count, see [`crate::index`].
///
/// A source that is gone counts as shown. Search reads each hit's row from Postgres, so a
/// deleted source can't come up, delivered or not; which points it had is not known any more.
///
/// # Errors
/// If Postgres is away or the statement fails.
pub async fn unconfirmed(db: &Db, awaited: &[Awaited]) -> Result<Vec<Awaited>> {
    // Subqueries with LIMIT, never joins: see `sources::read` about what the planner makes of
    // `index_state` as long as it has no fresh statistics.
    let rows = sqlx::query!(
        r#"SELECT w.id AS "id!", w.version AS "version!"
           FROM unnest($1::uuid[], $2::bigint[]) AS w (id, version)
           WHERE (SELECT s.version < w.version FROM source s WHERE s.id = w.id) IS TRUE
              OR (SELECT true FROM chunk c
                  WHERE c.source_id = w.id AND (
                      SELECT i.version >= c.version AND i.generation >= (SELECT x.generation FROM vector_index x) FROM index_state i
                      WHERE i.sink = 'qdrant' AND i.kind = 'chunk' AND i.key = c.id AND NOT i.deleted) IS NOT TRUE
                  LIMIT 1) IS TRUE"#,
        &awaited.iter().map(|awaited| awaited.source.as_uuid()).collect::<Vec<_>>(),
        &awaited.iter().map(|awaited| awaited.version).collect::<Vec<_>>()
    )
    .fetch_all(db.pool())
    .await?;
    Ok(rows.into_iter().map(|row| Awaited { source: SourceId::from_uuid(row.id), version: row.version }).collect())
}

/// Waits until the vector store shows all of `awaited`, at the latest until `until`. Returns
/// those that it does not show yet: none, if all is well. Holds no connection between two looks.
///
/// # Errors
/// If Postgres is away or a statement fails.
pub async fn wait(db: &Db, awaited: &[Awaited], until: Instant) -> Result<Vec<Awaited>> {
    let mut missing = awaited.to_vec();
    let mut pace = Pace::new(until);
    while !missing.is_empty() {
        match pace.look(unconfirmed(db, &missing)).await {
            Some(looked) => missing = looked?,
            None => break,
        }
    }
    Ok(missing)
}

/// When to look again: with growing pauses, until the time is up.
pub(crate) struct Pace {
    until: Instant,
    next: Duration,
    /// What is still to be waited before the next look.
    rest: Duration,
}

impl Pace {
    pub(crate) const fn new(until: Instant) -> Self {
        Self { until, next: FIRST_PAUSE, rest: Duration::ZERO }
    }

    /// Pauses, but for the first time, and looks. `None` if the time is up; a look that takes
    /// longer is dropped, as its connection may hang.
    pub(crate) async fn look<T>(&mut self, look: impl Future<Output = T>) -> Option<T> {
        if !self.rest.is_zero() {
            let now = Instant::now();
            if now >= self.until {
                return None;
            }
            sleep(self.rest.min(self.until - now)).await;
        }
        let begun = Instant::now();
        let looked = timeout_at(self.until.max(begun + LOOK_TIMEOUT_MIN), look).await.ok();
        self.rest = self.next.max(begun.elapsed() * PAUSE_FACTOR);
        self.next = (self.next * 2).min(LONGEST_PAUSE);
        looked
    }
}

/// Returns the uris of sources, for people; of at most `limit` of them.
///
/// # Errors
/// If Postgres is away or the statement fails.
pub async fn uris(db: &Db, sources: &[SourceId], limit: i64) -> Result<Vec<String>> {
    let ids: Vec<Uuid> = sources.iter().map(|id| id.as_uuid()).collect();
    Ok(sqlx::query_scalar!("SELECT uri FROM source WHERE id = ANY($1) ORDER BY uri LIMIT $2", &ids, limit)
        .fetch_all(db.pool())
        .await?)
}
