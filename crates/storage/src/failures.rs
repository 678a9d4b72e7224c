//! What sinks refused: keys that are tried again, and those that were given up.

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;
use waybill_domain::{Kind, Lane, ProjectId, SinkName};

use crate::{Db, Result, StorageError};

/// A key that waits for its next try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    /// What the key names.
    pub kind: Kind,
    /// The key.
    pub key: Uuid,
    /// The tenant.
    pub project_id: ProjectId,
    /// Deliveries that failed.
    pub attempts: u32,
    /// How long till the next; zero if it is due.
    pub due_in: Duration,
}

/// Lists keys of `lanes` that are to be tried again, the first due first.
///
/// # Errors
/// If the statement fails.
pub async fn parked(db: &Db, sink: SinkName, lanes: &[Lane], limit: i64) -> Result<Vec<Parked>> {
    let lanes: Vec<i16> = lanes.iter().map(|lane| lane.get().into()).collect();
    let rows = sqlx::query!(
        r#"SELECT kind, key, project_id, attempts, extract(epoch FROM next_at - now())::float8 AS "due_s!"
           FROM outbox_retry
           WHERE sink = $1 AND lane = ANY($2)
           ORDER BY next_at LIMIT $3"#,
        sink.as_str(),
        &lanes,
        limit
    )
    .fetch_all(db.pool())
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Parked {
                kind: kind(&row.kind)?,
                key: row.key,
                project_id: ProjectId::from_uuid(row.project_id),
                attempts: row.attempts.unsigned_abs(),
                due_in: Duration::try_from_secs_f64(row.due_s).unwrap_or_default(),
            })
        })
        .collect()
}

/// Counts the keys that wait for another try.
///
/// # Errors
/// If the statement fails.
pub async fn parked_count(db: &Db, sink: SinkName) -> Result<i64> {
    Ok(sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM outbox_retry WHERE sink = $1"#, sink.as_str())
        .fetch_one(db.pool())
        .await?)
}

/// Counts the dead letters of a sink.
///
/// # Errors
/// If the statement fails.
pub async fn letter_count(db: &Db, sink: SinkName) -> Result<i64> {
    Ok(sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM dead_letter WHERE sink = $1"#, sink.as_str())
        .fetch_one(db.pool())
        .await?)
}

/// What was given up, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The letter's own id: a key that is given up again gets another.
    pub id: Uuid,
    /// Which sink lacks the key.
    pub sink: SinkName,
    /// What the key names.
    pub kind: Kind,
    /// The key.
    pub key: Uuid,
    /// The tenant.
    pub project_id: ProjectId,
    /// The tenant's name; `None` if the project is gone.
    pub project: Option<String>,
    /// The last error.
    pub error: String,
    /// Its class.
    pub error_class: String,
    /// Deliveries or calls that failed.
    pub attempts: i32,
    /// The beginning of a model's answer that could not be used.
    pub excerpt: Option<String>,
    /// The model that was asked.
    pub model: Option<String>,
    /// The prompt that was used.
    pub prompt_version: Option<String>,
    /// The trace of the change or the call, 32 hex digits.
    pub trace_id: Option<String>,
    /// When it failed first.
    pub first_failed_at: DateTime<Utc>,
    /// When it failed last.
    pub last_failed_at: DateTime<Utc>,
}

/// Which dead letters are meant. What is `None` or empty does not narrow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LetterFilter {
    /// Only these.
    pub ids: Option<Vec<Uuid>>,
    /// Of this sink.
    pub sink: Option<SinkName>,
    /// Of this kind.
    pub kind: Option<Kind>,
    /// Of this tenant.
    pub project_id: Option<ProjectId>,
    /// `transient`, `throttled`, `permanent` or `unknown`.
    pub error_class: Option<String>,
    /// Failed last at this moment or later.
    pub since: Option<DateTime<Utc>>,
    /// Failed last before this moment.
    pub until: Option<DateTime<Utc>>,
    /// Whose error contains this, whatever its case.
    pub text: Option<String>,
}

/// Lists letters by id, from after `after`, at most `limit`.
///
/// # Errors
/// If the statement fails.
pub async fn letters(db: &Db, filter: &LetterFilter, after: Option<Uuid>, limit: i64) -> Result<Vec<DeadLetter>> {
    let rows = sqlx::query!(
        r#"SELECT d.id, d.sink, d.kind, d.key, d.project_id, p.name AS "project?", d.error, d.error_class, d.attempts,
                  d.excerpt, d.model, d.prompt_version, d.trace_id, d.first_failed_at, d.last_failed_at
           FROM dead_letter d LEFT JOIN project p ON p.id = d.project_id
           WHERE ($1::uuid[] IS NULL OR d.id = ANY($1))
             AND ($2::text IS NULL OR d.sink = $2)
             AND ($3::text IS NULL OR d.kind = $3)
             AND ($4::uuid IS NULL OR d.project_id = $4)
             AND ($5::text IS NULL OR d.error_class = $5)
             AND ($6::timestamptz IS NULL OR d.last_failed_at >= $6)
             AND ($7::timestamptz IS NULL OR d.last_failed_at < $7)
             AND ($8::text IS NULL OR position(lower($8) IN lower(d.error)) > 0)
             AND ($9::uuid IS NULL OR d.id > $9)
           ORDER BY d.id LIMIT $10"#,
        filter.ids.as_deref(),
        filter.sink.map(SinkName::as_str),
        filter.kind.map(Kind::as_str),
        filter.project_id.map(ProjectId::as_uuid),
        filter.error_class.as_deref(),
        filter.since,
        filter.until,
        filter.text.as_deref(),
        after,
        limit
    )
    .fetch_all(db.pool())
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(DeadLetter {
                id: row.id,
                sink: sink(&row.sink)?,
                kind: kind(&row.kind)?,
                key: row.key,
                project_id: ProjectId::from_uuid(row.project_id),
                project: row.project,
                error: row.error,
                error_class: row.error_class,
                attempts: row.attempts,
                excerpt: row.excerpt,
                model: row.model,
                prompt_version: row.prompt_version,
                trace_id: row.trace_id,
                first_failed_at: row.first_failed_at,
                last_failed_at: row.last_failed_at,
            })
        })
        .collect()
}

/// Returns Postgres' time: what fails from now on is no letter that was there before.
///
/// # Errors
/// If the statement fails.
pub async fn now(db: &Db) -> Result<DateTime<Utc>> {
    Ok(sqlx::query_scalar!(r#"SELECT clock_timestamp() AS "now!""#).fetch_one(db.pool()).await?)
}

/// What becomes of letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposal {
    /// Their keys are delivered again.
    Redrive,
    /// Their keys stay as the sink has them.
    Discard,
}

/// Takes at most `limit` of the letters that match, by id, and queues their keys again or
/// forgets them; returns how many. One statement: of two callers, one gets a letter, and
/// what dies in between has taken none. Letters that another caller is at are passed over.
///
/// A request that was given up is pending again with all its attempts.
///
/// # Errors
/// If the statement fails.
pub async fn dispose(db: &Db, filter: &LetterFilter, disposal: Disposal, limit: i64) -> Result<u64> {
    let taken = sqlx::query_scalar!(
        r#"WITH picked AS MATERIALIZED (
               SELECT d.id FROM dead_letter d
               WHERE ($1::uuid[] IS NULL OR d.id = ANY($1))
                 AND ($2::text IS NULL OR d.sink = $2)
                 AND ($3::text IS NULL OR d.kind = $3)
                 AND ($4::uuid IS NULL OR d.project_id = $4)
                 AND ($5::text IS NULL OR d.error_class = $5)
                 AND ($6::timestamptz IS NULL OR d.last_failed_at >= $6)
                 AND ($7::timestamptz IS NULL OR d.last_failed_at < $7)
                 AND ($8::text IS NULL OR position(lower($8) IN lower(d.error)) > 0)
               ORDER BY d.id LIMIT $10 FOR UPDATE SKIP LOCKED),
           gone AS (
               DELETE FROM dead_letter d USING picked p WHERE d.id = p.id
               RETURNING d.sink, d.kind, d.key, d.project_id),
           reopened AS (
               UPDATE llm_request r
               SET state = 'pending', stream_id = NULL, attempts = 0, updated_at = now()
               FROM gone g
               WHERE $9 AND g.sink = 'llm' AND g.kind = 'llm_request' AND r.id = g.key AND r.state = 'dead'
               RETURNING r.id),
           queued AS (
               INSERT INTO outbox (sink, lane, kind, key, project_id)
               SELECT g.sink, outbox_lane(g.key), g.kind, g.key, g.project_id FROM gone g
               WHERE $9 AND g.key NOT IN (SELECT id FROM reopened))
           SELECT count(*) AS "count!" FROM gone"#,
        filter.ids.as_deref(),
        filter.sink.map(SinkName::as_str),
        filter.kind.map(Kind::as_str),
        filter.project_id.map(ProjectId::as_uuid),
        filter.error_class.as_deref(),
        filter.since,
        filter.until,
        filter.text.as_deref(),
        disposal == Disposal::Redrive,
        limit
    )
    .fetch_one(db.pool())
    .await?;
    Ok(taken.unsigned_abs())
}

fn kind(name: &str) -> Result<Kind> {
    name.parse().map_err(|error| StorageError::Corrupt(format!("a failed key: {error}")))
}

fn sink(name: &str) -> Result<SinkName> {
    name.parse().map_err(|error| StorageError::Corrupt(format!("a failed key: {error}")))
}
