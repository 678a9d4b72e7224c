//! API keys. Postgres knows a key's hash and never the key.

use chrono::{DateTime, Utc};
use waybill_domain::Role;

use crate::{Db, Result, StorageError};

/// The most keys that are listed.
const LIST_MAX: i64 = 10_000;

/// What is known of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// The part of it that is shown.
    pub prefix: String,
    /// What it is for.
    pub name: String,
    /// What it lets its holder do.
    pub role: Role,
    /// The projects it is good for; `None`: all.
    pub projects: Option<Vec<String>>,
    /// What it may use up in each process.
    pub limits: KeyLimits,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// By whom.
    pub created_by: String,
    /// From when on it is good for nothing; `None`: never.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was revoked, if it was.
    pub revoked_at: Option<DateTime<Utc>>,
    /// Whether it had expired when it was read, by Postgres' clock.
    pub is_expired: bool,
}

/// What a key may use up in each process; `None`: what is configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeyLimits {
    /// Calls that begin in a second.
    pub requests_per_second: Option<u32>,
    /// Calls, streams among them, at a time.
    pub concurrent_calls: Option<u32>,
    /// Bytes of one message to the server.
    pub max_message_bytes: Option<u64>,
}

/// A key to be.
#[derive(Debug, Clone)]
pub struct NewKey<'a> {
    /// The part of it that is shown.
    pub prefix: &'a str,
    /// SHA-256 of the whole key.
    pub hash: [u8; 32],
    /// What it is for.
    pub name: &'a str,
    /// What it lets its holder do.
    pub role: Role,
    /// The projects it is good for; `None`: all.
    pub projects: Option<&'a [String]>,
    /// What it may use up in each process.
    pub limits: KeyLimits,
    /// By whom it is made.
    pub created_by: &'a str,
    /// For how many seconds it is good; `None`: for ever.
    pub valid_s: Option<i64>,
}

/// Stores a key.
///
/// # Errors
/// If the statement fails, also because there is a key of that prefix already.
pub async fn create(db: &Db, key: &NewKey<'_>) -> Result<()> {
    sqlx::query!(
        "INSERT INTO api_key (prefix, hash, name, role, projects, requests_per_second, concurrent_calls,
                              max_message_bytes, created_by, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, now() + $10::bigint * interval '1 second')",
        key.prefix,
        &key.hash[..],
        key.name,
        key.role.as_str(),
        key.projects,
        key.limits.requests_per_second.map(|limit| i32::try_from(limit).unwrap_or(i32::MAX)),
        key.limits.concurrent_calls.map(|limit| i32::try_from(limit).unwrap_or(i32::MAX)),
        key.limits.max_message_bytes.map(|limit| i64::try_from(limit).unwrap_or(i64::MAX)),
        key.created_by,
        key.valid_s
    )
    .execute(db.pool())
    .await?;
    Ok(())
}

/// Finds a key by its hash, also one that has expired or was revoked.
///
/// # Errors
/// If the statement fails.
pub async fn find(db: &Db, hash: &[u8; 32]) -> Result<Option<ApiKey>> {
    let row = sqlx::query_as!(
        Row,
        r#"SELECT prefix, name, role, projects, requests_per_second, concurrent_calls, max_message_bytes, created_at,
                  created_by, expires_at, revoked_at, expires_at <= now() AS is_expired
           FROM api_key WHERE hash = $1"#,
        &hash[..]
    )
    .fetch_optional(db.pool())
    .await?;
    row.map(ApiKey::try_from).transpose()
}

/// Lists keys, the newest first; those that were revoked or have expired only if `also_dead`.
///
/// # Errors
/// If the statement fails.
pub async fn list(db: &Db, also_dead: bool) -> Result<Vec<ApiKey>> {
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT prefix, name, role, projects, requests_per_second, concurrent_calls, max_message_bytes, created_at,
                  created_by, expires_at, revoked_at, expires_at <= now() AS is_expired
           FROM api_key
           WHERE $1 OR (revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now()))
           ORDER BY created_at DESC, prefix LIMIT $2"#,
        also_dead,
        LIST_MAX
    )
    .fetch_all(db.pool())
    .await?;
    rows.into_iter().map(ApiKey::try_from).collect()
}

/// Says whether there is a key that somebody could call with.
///
/// # Errors
/// If the statement fails.
pub async fn any(db: &Db) -> Result<bool> {
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM api_key
                          WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())) AS "any!""#
    )
    .fetch_one(db.pool())
    .await?)
}

/// Revokes the key of that prefix, for good. Returns its name and whether this call did it;
/// `None` if there is no such key.
///
/// # Errors
/// If the statement fails.
pub async fn revoke(db: &Db, prefix: &str, revoked_by: &str) -> Result<Option<(String, bool)>> {
    let row = sqlx::query!(
        r#"WITH revoked AS (
               UPDATE api_key SET revoked_at = now(), revoked_by = $2
               WHERE prefix = $1 AND revoked_at IS NULL RETURNING prefix)
           SELECT name, EXISTS (SELECT FROM revoked) AS "is_new!" FROM api_key WHERE prefix = $1"#,
        prefix,
        revoked_by
    )
    .fetch_optional(db.pool())
    .await?;
    Ok(row.map(|row| (row.name, row.is_new)))
}

struct Row {
    prefix: String,
    name: String,
    role: String,
    projects: Option<Vec<String>>,
    requests_per_second: Option<i32>,
    concurrent_calls: Option<i32>,
    max_message_bytes: Option<i64>,
    created_at: DateTime<Utc>,
    created_by: String,
    expires_at: Option<DateTime<Utc>>,
    revoked_at: Option<DateTime<Utc>>,
    is_expired: Option<bool>,
}

impl TryFrom<Row> for ApiKey {
    type Error = StorageError;

    fn try_from(row: Row) -> Result<Self> {
        let role = Role::parse(&row.role).map_err(|error| StorageError::Corrupt(error.to_string()))?;
        let limits = KeyLimits {
            requests_per_second: row.requests_per_second.and_then(|limit| u32::try_from(limit).ok()),
            concurrent_calls: row.concurrent_calls.and_then(|limit| u32::try_from(limit).ok()),
            max_message_bytes: row.max_message_bytes.and_then(|limit| u64::try_from(limit).ok()),
        };
        Ok(Self {
            prefix: row.prefix,
            name: row.name,
            role,
            projects: row.projects,
            limits,
            created_at: row.created_at,
            created_by: row.created_by,
            expires_at: row.expires_at,
            revoked_at: row.revoked_at,
            is_expired: row.is_expired == Some(true),
        })
    }
}
