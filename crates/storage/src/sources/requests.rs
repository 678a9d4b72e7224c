//! Remembered answers: what makes the retry of a put harmless.

use std::{collections::HashMap, time::Duration};

use sqlx::PgConnection;
use uuid::Uuid;
use waybill_domain::{ProjectId, PutOutcome, SourceId};

use super::{NewSource, PutAnswer, PutError, PutResult, RequestKey, SourceKey};
use crate::{Db, Result, StorageError};

/// An answer that was given before.
#[derive(Debug)]
pub(super) struct Remembered {
    fingerprint: Vec<u8>,
    result: PutResult,
}

impl Remembered {
    /// Answers a call that comes under the same id.
    pub(super) fn answer(&self, request: &RequestKey) -> PutAnswer {
        if self.fingerprint == request.fingerprint { Ok(self.result) } else { Err(PutError::RequestIdReused) }
    }
}

/// Answers by project and request id.
pub(super) type Memory = HashMap<(Uuid, String), Remembered>;

/// Looks up what is remembered of `keys`.
pub(super) async fn recall(connection: &mut PgConnection, keys: &[&SourceKey]) -> Result<Memory> {
    let (projects, ids): (Vec<Uuid>, Vec<&str>) =
        keys.iter().filter_map(|key| Some((key.project_id.as_uuid(), key.request.as_ref()?.id.as_str()))).unzip();
    if ids.is_empty() {
        return Ok(Memory::new());
    }
    // LIMIT keeps the planner from making a join of it, see `sources::read`.
    let rows = sqlx::query!(
        "SELECT r.project_id, r.request_id, r.fingerprint, r.source_id, r.outcome, r.version,
                r.chunk_count, r.chunks_added, r.chunks_removed
         FROM unnest($1::uuid[], $2::text[]) AS n (project_id, request_id)
         CROSS JOIN LATERAL (
             SELECT * FROM put_request p
             WHERE p.project_id = n.project_id AND p.request_id = n.request_id LIMIT 1) AS r",
        &projects,
        &ids as &[&str]
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            let outcome = PutOutcome::parse(&row.outcome).map_err(|error| StorageError::Corrupt(error.to_string()))?;
            let result = PutResult {
                source_id: SourceId::from_uuid(row.source_id),
                outcome,
                version: row.version,
                chunk_count: row.chunk_count,
                chunks_added: row.chunks_added,
                chunks_removed: row.chunks_removed,
                // It is remembered when it is confirmed.
                provisional: false,
            };
            Ok(((row.project_id, row.request_id), Remembered { fingerprint: row.fingerprint, result }))
        })
        .collect()
}

/// Remembers the answers of this transaction, but for those that may yet be taken back. Returns
/// whether all could be: if not, another transaction has just used one of the ids.
pub(super) async fn remember(connection: &mut PgConnection, done: &[(&NewSource, PutResult)]) -> Result<bool> {
    let done: Vec<_> = done
        .iter()
        .filter(|(_, result)| !result.provisional)
        .filter_map(|(item, result)| Some((item.key.project_id, item.key.request.as_ref()?, *result)))
        .collect();
    remember_all(connection, &done).await
}

/// Remembers answers. Returns as [`remember`].
pub(super) async fn remember_all(
    connection: &mut PgConnection,
    done: &[(ProjectId, &RequestKey, PutResult)],
) -> Result<bool> {
    if done.is_empty() {
        return Ok(true);
    }
    let inserted = sqlx::query!(
        "INSERT INTO put_request (project_id, request_id, fingerprint, source_id, outcome, version,
                                  chunk_count, chunks_added, chunks_removed)
         SELECT * FROM unnest($1::uuid[], $2::text[], $3::bytea[], $4::uuid[], $5::text[], $6::bigint[],
                              $7::bigint[], $8::bigint[], $9::bigint[])
         ON CONFLICT DO NOTHING",
        &done.iter().map(|(project, ..)| project.as_uuid()).collect::<Vec<_>>(),
        &done.iter().map(|(_, request, _)| request.id.as_str()).collect::<Vec<_>>() as &[&str],
        &done.iter().map(|(_, request, _)| request.fingerprint.as_slice()).collect::<Vec<_>>() as &[&[u8]],
        &done.iter().map(|(.., result)| result.source_id.as_uuid()).collect::<Vec<_>>(),
        &done.iter().map(|(.., result)| result.outcome.as_str()).collect::<Vec<_>>() as &[&str],
        &done.iter().map(|(.., result)| result.version).collect::<Vec<_>>(),
        &done.iter().map(|(.., result)| result.chunk_count).collect::<Vec<_>>(),
        &done.iter().map(|(.., result)| result.chunks_added).collect::<Vec<_>>(),
        &done.iter().map(|(.., result)| result.chunks_removed).collect::<Vec<_>>(),
    )
    .execute(connection)
    .await?
    .rows_affected();
    Ok(inserted == done.len() as u64)
}

/// Forgets at most `limit` answers older than `age`. Returns how many went: fewer than
/// `limit` says that none is left.
///
/// # Errors
/// If Postgres is away or the statement fails.
pub async fn purge(db: &Db, age: Duration, limit: i64) -> Result<u64> {
    let done = sqlx::query!(
        "DELETE FROM put_request WHERE (project_id, request_id) IN (
             SELECT project_id, request_id FROM put_request
             WHERE created_at < now() - $1::double precision * interval '1 second'
             ORDER BY created_at LIMIT $2)",
        age.as_secs_f64(),
        limit
    )
    .execute(db.pool())
    .await?;
    Ok(done.rows_affected())
}
