//! What the vector store should show: the current state of keys.

use serde_json::Value;
use uuid::Uuid;
use waybill_domain::{ProjectId, SourceId};

use crate::{Db, Result};

/// A chunk as it is now, with what its point carries.
#[derive(Debug, Clone)]
pub struct ChunkRow {
    /// The chunk's id, and the point's.
    pub id: Uuid,
    /// The tenant.
    pub project_id: ProjectId,
    /// The source it is a passage of.
    pub source_id: SourceId,
    /// Headings above the text, outermost first.
    pub headings: Vec<String>,
    /// The passage.
    pub text: String,
    /// Grows with every change of what the point shows.
    pub version: i64,
    /// The source's metadata, a JSON object.
    pub metadata: Value,
}

/// Loads the chunks among `keys` that exist, in no particular order.
///
/// # Errors
/// If the statement fails.
pub async fn load_chunks(db: &Db, keys: &[Uuid]) -> Result<Vec<ChunkRow>> {
    let rows = sqlx::query!(
        "SELECT c.id, c.project_id, c.source_id, c.headings, c.text, c.version, s.metadata
           FROM chunk c
           JOIN source s ON s.id = c.source_id
           WHERE c.id = ANY($1)",
        keys
    )
    .fetch_all(db.pool())
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| ChunkRow {
            id: row.id,
            project_id: ProjectId::from_uuid(row.project_id),
            source_id: SourceId::from_uuid(row.source_id),
            headings: row.headings,
            text: row.text,
            version: row.version,
            metadata: row.metadata,
        })
        .collect())
}

/// Returns a version that no row has passed yet: whatever was committed before this call has
/// it or a lower one, whatever takes a version after this call a higher one.
///
/// # Errors
/// If the statement fails.
pub async fn version_bound(db: &Db) -> Result<i64> {
    Ok(sqlx::query_scalar!(r#"SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS "version!" FROM row_version"#)
        .fetch_one(db.pool())
        .await?)
}
