//! Removing facts, and entities that nothing mentions any more.

use uuid::Uuid;
use waybill_domain::{ExtractionId, JobId, ProjectId};

use super::FactFilter;
use crate::{Db, Result, sources::begin};

/// Facts that one step of a rejection looks at: what it deletes is locked for milliseconds.
pub const REJECT_STEP: i64 = 1_000;

/// Deletes those of `ids` that are facts of `project`, and entities that no fact mentions any
/// more. Returns how many facts. `headers` go into the outbox rows.
///
/// # Errors
/// If Postgres is away or a statement fails; then nothing is deleted.
pub async fn reject(db: &Db, project: ProjectId, ids: &[Uuid], headers: Option<&str>) -> Result<u64> {
    let mut tx = begin(db, headers).await?;
    let mentioned = sqlx::query_scalar!(
        "SELECT DISTINCT l.entity_id FROM extraction_entity l JOIN extraction e ON e.id = l.extraction_id
         WHERE e.project_id = $1 AND e.id = ANY($2) ORDER BY 1",
        project.as_uuid(),
        ids
    )
    .fetch_all(&mut *tx)
    .await?;
    let rejected =
        sqlx::query!("DELETE FROM extraction WHERE project_id = $1 AND id = ANY($2)", project.as_uuid(), ids)
            .execute(&mut *tx)
            .await?
            .rows_affected();
    // First the lock, then a look of its own: a worker that mentions one of them at this moment
    // is waited for, and what it wrote is seen.
    sqlx::query!("SELECT id FROM entity WHERE id = ANY($1) ORDER BY id FOR UPDATE", &mentioned)
        .fetch_all(&mut *tx)
        .await?;
    sqlx::query!(
        "DELETE FROM entity e
         WHERE e.id = ANY($1) AND NOT EXISTS (SELECT FROM extraction_entity l WHERE l.entity_id = e.id)",
        &mentioned
    )
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(rejected)
}

/// Looks at the next [`REJECT_STEP`] facts by id, from after `after`, and rejects those that
/// `filter` is about. Returns how many those were, and where the next step begins, `None` after
/// the last.
///
/// # Errors
/// If Postgres is away or a statement fails; then this step has deleted nothing.
pub async fn reject_step(
    db: &Db,
    filter: &FactFilter,
    after: Uuid,
    headers: Option<&str>,
) -> Result<(u64, Option<Uuid>)> {
    let seen = sqlx::query!(
        r#"SELECT e.id, (($4::uuid IS NULL OR e.job_id = $4)
                  AND (cardinality($5::uuid[]) = 0 OR EXISTS (
                      SELECT FROM extraction_entity l WHERE l.extraction_id = e.id AND l.entity_id = ANY($5)))
                  AND ($6 = '' OR EXISTS (
                      SELECT FROM chunk c JOIN source s ON s.id = c.source_id
                      WHERE c.id = e.chunk_id AND starts_with(s.uri, $6)))
                  AND ($7::text IS NULL OR e.type = $7)
                  AND ($8::real IS NULL OR e.confidence < $8)) AS "is_meant!"
           FROM (SELECT * FROM extraction
                 WHERE project_id = $1 AND id > $2 AND ($3::uuid IS NULL OR chunk_id = $3)
                   AND ($10::uuid IS NULL OR id = $10)
                 ORDER BY id LIMIT $9) AS e
           ORDER BY e.id"#,
        filter.project_id.as_uuid(),
        after,
        filter.chunk_id,
        filter.job_id.map(JobId::as_uuid),
        &filter.entity_ids(),
        filter.uri_prefix,
        filter.kind,
        filter.confidence_below,
        REJECT_STEP,
        filter.id.map(ExtractionId::as_uuid)
    )
    .fetch_all(db.pool())
    .await?;
    let is_last = i64::try_from(seen.len()).unwrap_or(i64::MAX) < REJECT_STEP;
    let next = seen.last().filter(|_| !is_last).map(|row| row.id);
    let ids: Vec<Uuid> = seen.iter().filter(|row| row.is_meant).map(|row| row.id).collect();
    let rejected = if ids.is_empty() { 0 } else { reject(db, filter.project_id, &ids, headers).await? };
    Ok((rejected, next))
}
