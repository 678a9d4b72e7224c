//! What the vector store should show: the current state of keys.

use serde_json::Value;
use uuid::Uuid;
use waybill_domain::{Kind, ProjectId, SourceId, embedding_text};

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

/// A row as its point shows it.
#[derive(Debug, Clone)]
pub struct PointRow {
    /// What the row is.
    pub kind: Kind,
    /// The row's id, and the point's.
    pub id: Uuid,
    /// The tenant.
    pub project_id: ProjectId,
    /// The source that it comes from; an entity comes from many.
    pub source_id: Option<SourceId>,
    /// What is embedded.
    pub text: String,
    /// Grows with every change of what the point shows.
    pub version: i64,
    /// The source's metadata, a JSON object.
    pub metadata: Value,
}

/// Loads the rows among `keys` that exist, in no particular order. Requests are no points:
/// none is loaded.
///
/// # Errors
/// If a statement fails.
pub async fn load(db: &Db, keys: &[(Kind, Uuid)]) -> Result<Vec<PointRow>> {
    let of = |kind: Kind| -> Vec<Uuid> { keys.iter().filter(|key| key.0 == kind).map(|key| key.1).collect() };
    let mut rows = Vec::with_capacity(keys.len());
    let chunks = of(Kind::Chunk);
    if !chunks.is_empty() {
        rows.extend(load_chunks(db, &chunks).await?.into_iter().map(|row| PointRow {
            kind: Kind::Chunk,
            id: row.id,
            project_id: row.project_id,
            source_id: Some(row.source_id),
            text: embedding_text(&row.headings, &row.text),
            version: row.version,
            metadata: row.metadata,
        }));
    }
    let extractions = of(Kind::Extraction);
    if !extractions.is_empty() {
        let found = sqlx::query!(
            "SELECT e.id, e.project_id, c.source_id, e.statement, e.version, s.metadata
             FROM extraction e JOIN chunk c ON c.id = e.chunk_id JOIN source s ON s.id = c.source_id
             WHERE e.id = ANY($1)",
            &extractions
        )
        .fetch_all(db.pool())
        .await?;
        rows.extend(found.into_iter().map(|row| PointRow {
            kind: Kind::Extraction,
            id: row.id,
            project_id: ProjectId::from_uuid(row.project_id),
            source_id: Some(SourceId::from_uuid(row.source_id)),
            text: row.statement,
            version: row.version,
            metadata: row.metadata,
        }));
    }
    let entities = of(Kind::Entity);
    if !entities.is_empty() {
        let found = sqlx::query!(
            "SELECT id, project_id, type AS kind, aliases, version FROM entity WHERE id = ANY($1)",
            &entities
        )
        .fetch_all(db.pool())
        .await?;
        rows.extend(found.into_iter().map(|row| PointRow {
            kind: Kind::Entity,
            id: row.id,
            project_id: ProjectId::from_uuid(row.project_id),
            source_id: None,
            text: format!("{} ({})", row.aliases.join(", "), row.kind),
            version: row.version,
            metadata: Value::Object(serde_json::Map::new()),
        }));
    }
    Ok(rows)
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
