//! What a search hit says, read at the time of the search. Nothing is said of a source that is
//! provisional; an entity has no source, and is made by facts, of which such a source has none.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use uuid::Uuid;
use waybill_domain::{Kind, ProjectId, SourceId};

use crate::{Db, Result};

/// A row with what a hit shows of it and of its source.
#[derive(Debug, Clone, PartialEq)]
pub struct Hydrated {
    /// What it is.
    pub kind: Kind,
    /// The row's id.
    pub id: Uuid,
    /// The project it is in now.
    pub project_id: ProjectId,
    /// Its version now.
    pub version: i64,
    /// Headings above the text, outermost first.
    pub headings: Vec<String>,
    /// The passage; of a fact its statement, of an entity its names.
    pub text: String,
    /// Of a fact, the source's own words.
    pub quote: String,
    /// Where passage or quote begin in the source's readable text, in bytes.
    pub start_byte: i64,
    /// Where it ends there.
    pub end_byte: i64,
    /// The source's uri; empty for an entity, which has many.
    pub source_uri: String,
    /// The source's title; may be empty.
    pub source_title: String,
    /// The source's metadata.
    pub metadata: Map<String, Value>,
    /// When the source last changed; of an entity, when it was made.
    pub source_updated_at: DateTime<Utc>,
    /// What made it: of a chunk the run of puts, if the client named one; of a fact its job.
    pub job_id: Option<Uuid>,
}

/// Loads the rows among `keys` that exist, in no particular order. Requests are no hits.
///
/// # Errors
/// If a statement fails.
pub async fn rows(db: &Db, keys: &[(Kind, Uuid)]) -> Result<Vec<Hydrated>> {
    let of = |kind: Kind| -> Vec<Uuid> { keys.iter().filter(|key| key.0 == kind).map(|key| key.1).collect() };
    let mut rows = Vec::with_capacity(keys.len());
    for (kind, ids) in [Kind::Chunk, Kind::Extraction, Kind::Entity].map(|kind| (kind, of(kind))) {
        match kind {
            _ if ids.is_empty() => {}
            Kind::Chunk => rows.extend(chunks(db, &ids).await?),
            Kind::Extraction => rows.extend(facts(db, &ids).await?),
            Kind::Entity => rows.extend(entities(db, &ids).await?),
            Kind::LlmRequest => {}
        }
    }
    Ok(rows)
}

/// Loads the chunks among `ids` that exist, in no particular order.
///
/// # Errors
/// If the statement fails.
pub async fn chunks(db: &Db, ids: &[Uuid]) -> Result<Vec<Hydrated>> {
    let rows = sqlx::query!(
        "SELECT c.id, c.project_id, c.version, c.headings, c.text, c.start_byte, c.end_byte,
                s.uri, s.title, s.metadata, s.updated_at, c.job_id
         FROM chunk c
         JOIN source s ON s.id = c.source_id
         WHERE c.id = ANY($1) AND s.provisional_until IS NULL",
        ids
    )
    .fetch_all(db.pool())
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Hydrated {
            kind: Kind::Chunk,
            id: row.id,
            project_id: ProjectId::from_uuid(row.project_id),
            version: row.version,
            headings: row.headings,
            text: row.text,
            quote: String::new(),
            start_byte: row.start_byte,
            end_byte: row.end_byte,
            source_uri: row.uri,
            source_title: row.title,
            metadata: object(row.metadata),
            source_updated_at: row.updated_at,
            job_id: row.job_id,
        })
        .collect())
}

async fn facts(db: &Db, ids: &[Uuid]) -> Result<Vec<Hydrated>> {
    let rows = sqlx::query!(
        r#"SELECT e.id, e.project_id, e.version, e.statement, e.quote, c.headings,
                  c.start_byte + e.quote_start AS "start_byte!", c.start_byte + e.quote_end AS "end_byte!",
                  s.uri, s.title, s.metadata, s.updated_at, e.job_id
           FROM extraction e JOIN chunk c ON c.id = e.chunk_id JOIN source s ON s.id = c.source_id
           WHERE e.id = ANY($1) AND s.provisional_until IS NULL"#,
        ids
    )
    .fetch_all(db.pool())
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Hydrated {
            kind: Kind::Extraction,
            id: row.id,
            project_id: ProjectId::from_uuid(row.project_id),
            version: row.version,
            headings: row.headings,
            text: row.statement,
            quote: row.quote,
            start_byte: row.start_byte,
            end_byte: row.end_byte,
            source_uri: row.uri,
            source_title: row.title,
            metadata: object(row.metadata),
            source_updated_at: row.updated_at,
            job_id: Some(row.job_id),
        })
        .collect())
}

async fn entities(db: &Db, ids: &[Uuid]) -> Result<Vec<Hydrated>> {
    let rows = sqlx::query!(
        "SELECT id, project_id, version, type AS kind, aliases, created_at FROM entity WHERE id = ANY($1)",
        ids
    )
    .fetch_all(db.pool())
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Hydrated {
            kind: Kind::Entity,
            id: row.id,
            project_id: ProjectId::from_uuid(row.project_id),
            version: row.version,
            headings: Vec::new(),
            text: format!("{} ({})", row.aliases.join(", "), row.kind),
            quote: String::new(),
            start_byte: 0,
            end_byte: 0,
            source_uri: String::new(),
            source_title: String::new(),
            metadata: Map::new(),
            source_updated_at: row.created_at,
            job_id: None,
        })
        .collect())
}

/// Nothing of ours writes anything but an object; should there be something else, it must not
/// take a search down.
fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// Finds sources of a project by their uris; those that don't exist are left out.
///
/// # Errors
/// If the statement fails.
pub async fn source_ids(db: &Db, project: ProjectId, uris: &[String]) -> Result<Vec<SourceId>> {
    // The index is in the collation "C"; under another one it would not be used.
    let ids = sqlx::query_scalar!(
        r#"SELECT id FROM source WHERE project_id = $1 AND uri COLLATE "C" = ANY($2) AND provisional_until IS NULL"#,
        project.as_uuid(),
        uris
    )
    .fetch_all(db.pool())
    .await?;
    Ok(ids.into_iter().map(SourceId::from_uuid).collect())
}
