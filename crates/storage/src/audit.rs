//! What operators did.

use chrono::{DateTime, Utc};

use crate::{Db, Result};

/// An action that begins.
#[derive(Debug, Clone)]
pub struct Begun<'a> {
    /// Who: a key's name, or who runs a command.
    pub actor: &'a str,
    /// The key's prefix, if there is one.
    pub key_prefix: Option<&'a str>,
    /// What: a gRPC method, or a command.
    pub action: &'a str,
    /// What exactly, as JSON.
    pub request: &'a str,
    /// The call's id.
    pub request_id: &'a str,
}

/// An action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Grows with time.
    pub id: i64,
    /// When it began.
    pub at: DateTime<Utc>,
    /// Who.
    pub actor: String,
    /// The key's prefix, if there was one.
    pub key_prefix: Option<String>,
    /// What: a gRPC method, or a command.
    pub action: String,
    /// What exactly, as JSON.
    pub request: String,
    /// The call's id, as logs have it.
    pub request_id: String,
    /// When it ended; `None`: it goes on, or its process died.
    pub ended_at: Option<DateTime<Utc>>,
    /// How it ended: a gRPC status code's name.
    pub outcome: Option<String>,
    /// The last answer as JSON, or the status message.
    pub result: Option<String>,
}

/// Which actions to list.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only those whose actor or key prefix is this.
    pub actor: Option<String>,
    /// Only those whose action holds this, such as `Pause`.
    pub action: Option<String>,
    /// Only those that began in the last so many seconds.
    pub within_s: Option<i64>,
    /// Only those before this id, for the next page.
    pub before: Option<i64>,
}

/// Notes that an action begins. Returns the id by which its end is noted.
///
/// # Errors
/// If the statement fails.
pub async fn begin(db: &Db, begun: &Begun<'_>) -> Result<i64> {
    Ok(sqlx::query_scalar!(
        "INSERT INTO audit (actor, key_prefix, action, request, request_id) VALUES ($1, $2, $3, $4, $5) RETURNING id",
        begun.actor,
        begun.key_prefix,
        begun.action,
        begun.request,
        begun.request_id
    )
    .fetch_one(db.pool())
    .await?)
}

/// Notes how an action ended. What is noted once stays.
///
/// # Errors
/// If the statement fails.
pub async fn end(db: &Db, id: i64, outcome: &str, result: &str) -> Result<()> {
    sqlx::query!(
        "UPDATE audit SET ended_at = now(), outcome = $2, result = $3 WHERE id = $1 AND ended_at IS NULL",
        id,
        outcome,
        result
    )
    .execute(db.pool())
    .await?;
    Ok(())
}

/// Lists actions, the newest first.
///
/// # Errors
/// If the statement fails.
pub async fn list(db: &Db, filter: &Filter, limit: i64) -> Result<Vec<Entry>> {
    Ok(sqlx::query_as!(
        Entry,
        "SELECT id, at, actor, key_prefix, action, request, request_id, ended_at, outcome, result
         FROM audit
         WHERE ($1::text IS NULL OR actor = $1 OR key_prefix = $1)
           AND ($2::text IS NULL OR strpos(lower(action), lower($2)) > 0)
           AND ($3::bigint IS NULL OR at > now() - $3 * interval '1 second')
           AND ($4::bigint IS NULL OR id < $4)
         ORDER BY id DESC LIMIT $5",
        filter.actor,
        filter.action,
        filter.within_s,
        filter.before,
        limit
    )
    .fetch_all(db.pool())
    .await?)
}

/// Removes actions that began more than `keep_days` ago, at most `limit` of them. Returns how many.
///
/// # Errors
/// If the statement fails.
pub async fn purge(db: &Db, keep_days: i32, limit: i64) -> Result<u64> {
    let purged = sqlx::query!(
        "DELETE FROM audit WHERE id IN (
             SELECT id FROM audit WHERE at < now() - $1::int * interval '1 day' ORDER BY id LIMIT $2)",
        keep_days,
        limit
    )
    .execute(db.pool())
    .await?;
    Ok(purged.rows_affected())
}
