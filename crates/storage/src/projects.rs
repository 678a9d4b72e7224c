//! Projects: the tenants.

use chrono::{DateTime, Utc};
use waybill_domain::{ProjectId, ProjectName};

use crate::{Db, Result, sources::begin};

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    /// Derived from the name.
    pub id: ProjectId,
    /// 1 to 64 of a-z, 0-9 and "-".
    pub name: String,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// Makes a project. `None` if the name is taken.
///
/// # Errors
/// If Postgres is away or the statement fails.
pub async fn create(db: &Db, name: &ProjectName) -> Result<Option<Project>> {
    let id = ProjectId::derive(name);
    let row = sqlx::query!(
        "INSERT INTO project (id, name) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING created_at",
        id.as_uuid(),
        name.as_str()
    )
    .fetch_optional(db.pool())
    .await?;
    Ok(row.map(|row| Project { id, name: name.to_string(), created_at: row.created_at }))
}

/// Returns a project and how many sources it holds.
///
/// Counting reads an index entry of each source: about 100 ms for a million of them. Those that
/// are provisional have an index of their own, and are few.
///
/// # Errors
/// If Postgres is away or the statement fails.
pub async fn get(db: &Db, name: &ProjectName) -> Result<Option<(Project, i64)>> {
    let row = sqlx::query!(
        r#"SELECT p.id, p.name, p.created_at,
                  (SELECT count(*) FROM source s WHERE s.project_id = p.id)
                  - (SELECT count(*) FROM source s
                     WHERE s.project_id = p.id AND s.provisional_until IS NOT NULL) AS "source_count!"
           FROM project p WHERE p.name = $1"#,
        name.as_str()
    )
    .fetch_optional(db.pool())
    .await?;
    Ok(row.map(|row| {
        (Project { id: ProjectId::from_uuid(row.id), name: row.name, created_at: row.created_at }, row.source_count)
    }))
}

/// Returns the id of a project.
///
/// # Errors
/// If Postgres is away or the statement fails.
pub async fn find(db: &Db, name: &ProjectName) -> Result<Option<ProjectId>> {
    let id =
        sqlx::query_scalar!("SELECT id FROM project WHERE name = $1", name.as_str()).fetch_optional(db.pool()).await?;
    Ok(id.map(ProjectId::from_uuid))
}

/// Lists at most `limit` projects by name, from after the name `after` on; if `among` is given,
/// only those named there.
///
/// # Errors
/// If Postgres is away or the statement fails.
pub async fn list(db: &Db, after: Option<&str>, among: Option<&[String]>, limit: i64) -> Result<Vec<Project>> {
    let rows = sqlx::query!(
        "SELECT id, name, created_at FROM project
         WHERE ($1::text IS NULL OR name > $1) AND ($2::text[] IS NULL OR name = ANY ($2))
         ORDER BY name LIMIT $3",
        after,
        among,
        limit
    )
    .fetch_all(db.pool())
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Project { id: ProjectId::from_uuid(row.id), name: row.name, created_at: row.created_at })
        .collect())
}

/// Deletes a project with everything in it and returns how many sources that were.
/// `None` if there is none. `headers` go into the outbox rows.
///
/// # Errors
/// If Postgres is away or a statement fails; then nothing is deleted.
pub async fn delete(db: &Db, name: &ProjectName, headers: Option<&str>) -> Result<Option<i64>> {
    let mut tx = begin(db, headers).await?;
    // Waits for the puts that hold the project, so that none escapes the count.
    let Some(id) = sqlx::query_scalar!("SELECT id FROM project WHERE name = $1 FOR UPDATE", name.as_str())
        .fetch_optional(&mut *tx)
        .await?
    else {
        return Ok(None);
    };
    // The outer SELECT sees what the statement began with: the sources as they were.
    let sources = sqlx::query_scalar!(
        r#"WITH gone AS (DELETE FROM project WHERE id = $1)
           SELECT count(*) AS "count!" FROM source WHERE project_id = $1 AND provisional_until IS NULL"#,
        id
    )
    .fetch_one(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(Some(sources))
}
