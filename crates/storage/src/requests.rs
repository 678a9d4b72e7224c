//! LLM requests: what the relay sends, what a worker does with one, and what Redis has lost.

use serde_json::Value;
use uuid::Uuid;
use waybill_domain::{ErrorClass, JobId, ProjectId};

use crate::{Db, Result};

mod list;

pub use list::{EntitiesState, EntityCounts, Request, RequestFilter, RequestState, list};

/// A request that Redis should hold a message of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingRequest {
    /// Its id.
    pub id: Uuid,
    /// The tenant.
    pub project_id: ProjectId,
    /// What it was made for.
    pub job_id: JobId,
    /// `high`, `normal` or `low`.
    pub priority: String,
    /// Grows with every change.
    pub version: i64,
    /// Trace context and correlation id of the transaction that made it pending, as JSON.
    pub headers: Option<String>,
}

/// What a worker needs to answer a request.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenRequest {
    /// Its id.
    pub id: Uuid,
    /// The tenant.
    pub project_id: ProjectId,
    /// The tenant's name.
    pub project: String,
    /// What it was made for.
    pub job_id: JobId,
    /// The chunk to read.
    pub chunk_id: Uuid,
    /// The title of the chunk's source.
    pub title: String,
    /// Headings above the text, outermost first.
    pub headings: Vec<String>,
    /// The text.
    pub text: String,
    /// The job's settings, a JSON object.
    pub settings: Value,
    /// Calls that failed and count.
    pub attempts: i32,
}

/// A request that Redis should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuedRequest {
    /// Its id.
    pub id: Uuid,
    /// `high`, `normal` or `low`.
    pub priority: String,
    /// The message that Redis confirmed.
    pub stream_id: String,
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// For people; holds no secret.
    pub message: String,
    /// What it means for a retry.
    pub class: ErrorClass,
    /// The beginning of an answer that could not be used.
    pub excerpt: Option<String>,
    /// The model that was asked.
    pub model: String,
    /// The prompt that was used.
    pub prompt_version: String,
    /// The trace of the call.
    pub trace_id: Option<String>,
    /// What the call used up all the same.
    pub spent: Spent,
}

/// What answers used up.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Spent {
    /// Tokens of the prompts.
    pub prompt_tokens: i64,
    /// Tokens of the answers.
    pub completion_tokens: i64,
    /// By the prices that were configured.
    pub cost: f64,
}

/// Loads those of `ids` that have to be sent. Whatever is finished, cancelled, gone or with
/// Redis already needs nothing.
///
/// # Errors
/// If the statement fails.
pub async fn pending(db: &Db, ids: &[Uuid]) -> Result<Vec<PendingRequest>> {
    let rows = sqlx::query!(
        "SELECT id, project_id, job_id, priority, version, headers FROM llm_request
         WHERE id = ANY($1) AND state = 'pending'",
        ids
    )
    .fetch_all(db.pool())
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| PendingRequest {
            id: row.id,
            project_id: ProjectId::from_uuid(row.project_id),
            job_id: JobId::from_uuid(row.job_id),
            priority: row.priority,
            version: row.version,
            headers: row.headers,
        })
        .collect())
}

/// Marks a request as running and returns what is needed to answer it. `None` if nobody wants
/// it any more: then its message can go.
///
/// A message may be claimed before the relay has recorded that it was sent; and again, by
/// another worker, after the first has died. Both are fine here.
///
/// # Errors
/// If the statement fails.
pub async fn open(db: &Db, id: Uuid, stream_id: &str) -> Result<Option<OpenRequest>> {
    let row = sqlx::query!(
        "WITH opened AS (
             UPDATE llm_request SET state = 'running', stream_id = $2, updated_at = now()
             WHERE id = $1 AND state IN ('pending', 'queued', 'running')
             RETURNING id, project_id, job_id, chunk_id, attempts)
         SELECT o.id, o.project_id, p.name, o.job_id, o.chunk_id, o.attempts, s.title, c.headings, c.text, j.settings
         FROM opened o JOIN chunk c ON c.id = o.chunk_id JOIN source s ON s.id = c.source_id JOIN job j ON j.id = o.job_id
              JOIN project p ON p.id = o.project_id",
        id,
        stream_id
    )
    .fetch_optional(db.pool())
    .await?;
    Ok(row.map(|row| OpenRequest {
        id: row.id,
        project_id: ProjectId::from_uuid(row.project_id),
        project: row.name,
        job_id: JobId::from_uuid(row.job_id),
        chunk_id: row.chunk_id,
        title: row.title,
        headings: row.headings,
        text: row.text,
        settings: row.settings,
        attempts: row.attempts,
    }))
}

/// Reads a request, and whether it is still wanted. `None` if it or its chunk is gone.
///
/// # Errors
/// If the statement fails.
pub async fn find(db: &Db, id: Uuid) -> Result<Option<(bool, OpenRequest)>> {
    let row = sqlx::query!(
        r#"SELECT r.state IN ('pending', 'queued', 'running') AS "is_open!", r.project_id, p.name, r.job_id, r.chunk_id,
                  r.attempts, s.title, c.headings, c.text, j.settings
           FROM llm_request r JOIN chunk c ON c.id = r.chunk_id JOIN source s ON s.id = c.source_id
                JOIN job j ON j.id = r.job_id JOIN project p ON p.id = r.project_id
           WHERE r.id = $1"#,
        id
    )
    .fetch_optional(db.pool())
    .await?;
    Ok(row.map(|row| {
        let request = OpenRequest {
            id,
            project_id: ProjectId::from_uuid(row.project_id),
            project: row.name,
            job_id: JobId::from_uuid(row.job_id),
            chunk_id: row.chunk_id,
            title: row.title,
            headings: row.headings,
            text: row.text,
            settings: row.settings,
            attempts: row.attempts,
        };
        (row.is_open, request)
    }))
}

/// Says whether a request is still wanted.
///
/// # Errors
/// If the statement fails.
pub async fn is_open(db: &Db, id: Uuid) -> Result<bool> {
    let found = sqlx::query_scalar!(
        "SELECT id FROM llm_request WHERE id = $1 AND state IN ('pending', 'queued', 'running')",
        id
    )
    .fetch_optional(db.pool())
    .await?;
    Ok(found.is_some())
}

/// Notes a failed call; `counts` says whether it costs an attempt. Returns the attempts so
/// far, or `None` if the request is no longer open. What the call used up is added in any case.
///
/// # Errors
/// If the statement fails.
pub async fn failed(db: &Db, id: Uuid, failure: &Failure, counts: bool) -> Result<Option<i32>> {
    let row = sqlx::query!(
        r#"UPDATE llm_request
           SET attempts = attempts + CASE WHEN state = 'running' THEN $4::int ELSE 0 END,
               last_error = CASE WHEN state = 'running' THEN $2 ELSE last_error END,
               last_error_class = CASE WHEN state = 'running' THEN $3 ELSE last_error_class END,
               prompt_tokens = prompt_tokens + $5::bigint, completion_tokens = completion_tokens + $6::bigint, cost = cost + $7,
               updated_at = now()
           WHERE id = $1 AND (state = 'running' OR $5::bigint > 0 OR $6::bigint > 0) RETURNING attempts, state = 'running' AS "is_open!""#,
        id,
        failure.message,
        failure.class.as_str(),
        i32::from(counts),
        failure.spent.prompt_tokens,
        failure.spent.completion_tokens,
        failure.spent.cost
    )
    .fetch_optional(db.pool())
    .await?;
    Ok(row.filter(|row| row.is_open).map(|row| row.attempts))
}

/// Gives a request up: it is dead, and a dead letter says why. Adds what the failure used up, if
/// [`failed`] has not. Returns whether it was open.
///
/// # Errors
/// If a statement fails; then nothing has changed.
pub async fn bury(db: &Db, id: Uuid, failure: &Failure) -> Result<bool> {
    let mut tx = db.pool().begin().await?;
    let row = sqlx::query!(
        "UPDATE llm_request
         SET state = 'dead', last_error = $2, last_error_class = $3, updated_at = now(),
             prompt_tokens = prompt_tokens + $4, completion_tokens = completion_tokens + $5, cost = cost + $6
         WHERE id = $1 AND state IN ('pending', 'queued', 'running') RETURNING project_id, attempts, created_at",
        id,
        failure.message,
        failure.class.as_str(),
        failure.spent.prompt_tokens,
        failure.spent.completion_tokens,
        failure.spent.cost
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(row) = row else {
        return Ok(false);
    };
    sqlx::query!(
        "INSERT INTO dead_letter (sink, kind, key, project_id, error, error_class, attempts, excerpt, model, prompt_version, trace_id)
         VALUES ('llm', 'llm_request', $1, $2, $3, $4, $5, $6, $7, $8, $9)
         ON CONFLICT (sink, kind, key) DO UPDATE
         SET error = excluded.error, error_class = excluded.error_class, attempts = excluded.attempts,
             excerpt = excluded.excerpt, model = excluded.model, prompt_version = excluded.prompt_version,
             trace_id = excluded.trace_id, last_failed_at = now()",
        id,
        row.project_id,
        failure.message,
        failure.class.as_str(),
        row.attempts,
        failure.excerpt,
        failure.model,
        failure.prompt_version,
        failure.trace_id
    )
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(true)
}

/// Lists requests that are with Redis since `age_s` seconds or longer, by id, from after `after`.
///
/// # Errors
/// If the statement fails.
pub async fn with_redis(db: &Db, age_s: f64, after: Uuid, limit: i64) -> Result<Vec<QueuedRequest>> {
    let rows = sqlx::query!(
        r#"SELECT id, priority, stream_id AS "stream_id!" FROM llm_request
           WHERE state IN ('queued', 'running') AND stream_id IS NOT NULL
             AND updated_at < now() - make_interval(secs => $1) AND id > $2
           ORDER BY id LIMIT $3"#,
        age_s,
        after,
        limit
    )
    .fetch_all(db.pool())
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| QueuedRequest { id: row.id, priority: row.priority, stream_id: row.stream_id })
        .collect())
}

/// Puts requests back to pending whose messages Redis has lost: the trigger makes outbox rows
/// of them. One that got another message or was finished meanwhile is left alone. Returns how many.
///
/// # Errors
/// If the statement fails.
pub async fn lost(db: &Db, requests: &[QueuedRequest]) -> Result<u64> {
    let ids: Vec<Uuid> = requests.iter().map(|request| request.id).collect();
    let streams: Vec<String> = requests.iter().map(|request| request.stream_id.clone()).collect();
    let done = sqlx::query!(
        "UPDATE llm_request r SET state = 'pending', stream_id = NULL, updated_at = now()
         FROM unnest($1::uuid[], $2::text[]) AS l (id, stream_id)
         WHERE r.id = l.id AND r.stream_id = l.stream_id AND r.state IN ('queued', 'running')",
        &ids,
        &streams
    )
    .execute(db.pool())
    .await?;
    Ok(done.rows_affected())
}
