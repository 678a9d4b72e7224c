//! Sources that are there wholly or not at all: confirming them, and taking them back.
//!
//! While `provisional_until` is set, nobody but the put that wrote the source, and whoever
//! takes it back, may touch it, and no read shows it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;
use uuid::Uuid;
use waybill_domain::{CrashPoint, ProjectId};

use super::{PutResult, RequestKey, begin, requests};
use crate::{Db, Result, freshness::Pace, outbox::millis};

/// A source that waits for its confirmation.
#[derive(Debug, Clone)]
pub struct Provisional {
    /// The project it is in.
    pub project_id: ProjectId,
    /// What the put answered. Its version tells this source from a later one of the same uri.
    pub put: PutResult,
    /// What a retry of the put is known by; remembered with the confirmation, so that nothing
    /// that was taken back is ever replayed.
    pub request: Option<RequestKey>,
}

/// What became of a source that was to be taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TakeBack {
    /// It is gone from Postgres.
    Taken(Traces),
    /// It had been confirmed; its version is now this.
    Confirmed(i64),
    /// It was not there any more: somebody else deleted it or took it back.
    Gone,
}

/// What the vector store may still show of a source that was taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traces {
    /// Its chunks.
    chunks: Vec<Uuid>,
    /// A moment within the transaction that deleted them.
    deleted_at: DateTime<Utc>,
}

/// Makes a source visible, if its time is not up and the vector store shows all of it. Returns
/// what the put is to answer; `None` if it can't be confirmed, or not yet.
///
/// # Errors
/// If Postgres is away or a statement fails. If a commit was under way, the outcome is unknown:
/// [`take_back`] says what it was.
pub async fn confirm(db: &Db, source: &Provisional) -> Result<Option<PutResult>> {
    let mut tx = begin(db, None).await?;
    // The project first, as everywhere: the trigger that asks for extraction locks it.
    sqlx::query!("SELECT id FROM project WHERE id = $1 FOR KEY SHARE", source.project_id.as_uuid())
        .fetch_optional(&mut *tx)
        .await?;
    let version = sqlx::query_scalar!(
        "UPDATE source s SET provisional_until = NULL
         WHERE s.id = $1 AND s.version = $2 AND s.provisional_until > clock_timestamp()
           AND (SELECT true FROM chunk c
                WHERE c.source_id = s.id AND (
                    SELECT i.version >= c.version AND i.generation >= (SELECT x.generation FROM vector_index x) FROM index_state i
                    WHERE i.sink = 'qdrant' AND i.kind = 'chunk' AND i.key = c.id AND NOT i.deleted) IS NOT TRUE
                LIMIT 1) IS NOT TRUE
         RETURNING s.version",
        source.put.source_id.as_uuid(),
        source.put.version
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(version) = version else {
        return Ok(None);
    };
    let put = PutResult { version, provisional: false, ..source.put };
    if let Some(request) = &source.request {
        // Whether another put has taken the id meanwhile is of no interest: this one is done.
        requests::remember_all(&mut tx, &[(source.project_id, request, put)]).await?;
    }
    tx.commit().await?;
    Ok(Some(put))
}

/// Deletes a source that is still provisional. `headers` go into the outbox rows, which have
/// the points deleted.
///
/// # Errors
/// If Postgres is away or a statement fails; then nothing is deleted, and [`sweep`] will do it.
pub async fn take_back(db: &Db, source: &Provisional, headers: Option<&str>) -> Result<TakeBack> {
    let id = source.put.source_id.as_uuid();
    let mut tx = begin(db, headers).await?;
    let found = sqlx::query!(
        r#"SELECT version, provisional_until IS NOT NULL AS "provisional!" FROM source WHERE id = $1 FOR UPDATE"#,
        id
    )
    .fetch_optional(&mut *tx)
    .await?;
    match found {
        Some(row) if row.provisional && row.version == source.put.version => {}
        Some(row) if !row.provisional => return Ok(TakeBack::Confirmed(row.version)),
        Some(_) | None => return Ok(TakeBack::Gone),
    }
    let chunks =
        sqlx::query_scalar!("DELETE FROM chunk WHERE source_id = $1 RETURNING id", id).fetch_all(&mut *tx).await?;
    sqlx::query!("DELETE FROM source WHERE id = $1", id).execute(&mut *tx).await?;
    let deleted_at = sqlx::query_scalar!(r#"SELECT clock_timestamp() AS "now!""#).fetch_one(&mut *tx).await?;
    tx.commit().await?;
    CrashPoint::Compensation.hit();
    Ok(TakeBack::Taken(Traces { chunks, deleted_at }))
}

/// Waits until the vector store has confirmed that it shows nothing of what was taken back.
/// Returns whether it did before `until`.
///
/// What counts is a tombstone that was settled after the deletion, for each chunk, whether or
/// not its point was ever seen: a delivery that was under way may have written it. An older
/// tombstone is of an earlier life of the same uri. A chunk that is there again was put anew.
///
/// # Errors
/// If Postgres is away or a statement fails.
pub async fn wait_until_gone(db: &Db, traces: &Traces, until: Instant) -> Result<bool> {
    let mut left = traces.chunks.clone();
    let mut pace = Pace::new(until);
    while !left.is_empty() {
        match pace.look(shown(db, &left, traces.deleted_at)).await {
            Some(looked) => left = looked?,
            None => return Ok(false),
        }
    }
    Ok(true)
}

async fn shown(db: &Db, chunks: &[Uuid], deleted_at: DateTime<Utc>) -> Result<Vec<Uuid>> {
    Ok(sqlx::query_scalar!(
        r#"SELECT k.key AS "key!" FROM unnest($1::uuid[]) AS k (key)
           WHERE (SELECT i.deleted AND i.confirmed_at > $2 FROM index_state i
                  WHERE i.sink = 'qdrant' AND i.kind = 'chunk' AND i.key = k.key) IS NOT TRUE
             AND (SELECT true FROM chunk c WHERE c.id = k.key) IS NOT TRUE"#,
        chunks,
        deleted_at
    )
    .fetch_all(db.pool())
    .await?)
}

/// Takes back at most `limit` sources whose time is up since `grace`, and returns how many. May
/// run in any number of processes at once.
///
/// # Errors
/// If Postgres is away or the statement fails; then nothing is deleted.
pub async fn sweep(db: &Db, grace: Duration, limit: i64) -> Result<u64> {
    let done = sqlx::query!(
        "WITH due AS MATERIALIZED (
             SELECT id FROM source WHERE provisional_until <= now() - $1 * interval '1 millisecond'
             ORDER BY provisional_until LIMIT $2 FOR UPDATE SKIP LOCKED)
         DELETE FROM source WHERE id IN (SELECT id FROM due)",
        millis(grace),
        limit
    )
    .execute(db.pool())
    .await?;
    Ok(done.rows_affected())
}
