//! What a search hit says, read at the time of the search.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use uuid::Uuid;
use waybill_domain::{ProjectId, SourceId};

use crate::{Db, Result};

/// A chunk with what a hit shows of its source.
#[derive(Debug, Clone, PartialEq)]
pub struct HydratedChunk {
    /// The chunk's id.
    pub id: Uuid,
    /// The project it is in now.
    pub project_id: ProjectId,
    /// Its version now.
    pub version: i64,
    /// Headings above the text, outermost first.
    pub headings: Vec<String>,
    /// The passage.
    pub text: String,
    /// Where it begins in the source's readable text, in bytes.
    pub start_byte: i64,
    /// Where it ends there.
    pub end_byte: i64,
    /// The source's uri.
    pub source_uri: String,
    /// The source's title; may be empty.
    pub source_title: String,
    /// The source's metadata.
    pub metadata: Map<String, Value>,
    /// When the source last changed.
    pub source_updated_at: DateTime<Utc>,
}

/// Loads the chunks among `ids` that exist, in no particular order.
///
/// # Errors
/// If the statement fails.
pub async fn chunks(db: &Db, ids: &[Uuid]) -> Result<Vec<HydratedChunk>> {
    let rows = sqlx::query!(
        "SELECT c.id, c.project_id, c.version, c.headings, c.text, c.start_byte, c.end_byte,
                s.uri, s.title, s.metadata, s.updated_at
         FROM chunk c
         JOIN source s ON s.id = c.source_id
         WHERE c.id = ANY($1)",
        ids
    )
    .fetch_all(db.pool())
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| HydratedChunk {
            id: row.id,
            project_id: ProjectId::from_uuid(row.project_id),
            version: row.version,
            headings: row.headings,
            text: row.text,
            start_byte: row.start_byte,
            end_byte: row.end_byte,
            source_uri: row.uri,
            source_title: row.title,
            metadata: match row.metadata {
                Value::Object(map) => map,
                // Nothing of ours writes such a row; it should not take a search down.
                _ => Map::new(),
            },
            source_updated_at: row.updated_at,
        })
        .collect())
}

/// Finds sources of a project by their uris; those that don't exist are left out.
///
/// # Errors
/// If the statement fails.
pub async fn source_ids(db: &Db, project: ProjectId, uris: &[String]) -> Result<Vec<SourceId>> {
    // The index is in the collation "C"; under another one it would not be used.
    let ids = sqlx::query_scalar!(
        r#"SELECT id FROM source WHERE project_id = $1 AND uri COLLATE "C" = ANY($2)"#,
        project.as_uuid(),
        uris
    )
    .fetch_all(db.pool())
    .await?;
    Ok(ids.into_iter().map(SourceId::from_uuid).collect())
}
