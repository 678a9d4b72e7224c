//! Chunks are replaced by difference: what stays the same is not touched, so its version,
//! its point and its vector stay too.

use std::collections::HashMap;

use sqlx::PgConnection;
use uuid::Uuid;
use waybill_domain::{ChunkId, TextHash};

use super::{NewChunk, NewSource};
use crate::{Result, StorageError};

/// How many chunks of a source came and went.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Difference {
    pub(super) added: i64,
    pub(super) removed: i64,
}

/// A chunk as it is stored, without what its id already says.
struct Standing {
    source_id: Uuid,
    place: Place,
}

/// All of a chunk that may change while its id stays. The text can't: the id is derived
/// from the hash of headings and text.
#[derive(PartialEq)]
struct Place {
    ordinal: i32,
    headings: Vec<String>,
    start_byte: i64,
    end_byte: i64,
    token_count: i32,
}

/// A chunk as it is to be.
struct Wanted<'a> {
    id: Uuid,
    project_id: Uuid,
    source_id: Uuid,
    place: Place,
    text: &'a str,
    text_hash: &'a TextHash,
    /// Of a chunk that stands already, the first one stays.
    job_id: Option<Uuid>,
}

/// What has to be done to the chunks of some sources. Removing comes before the sources
/// are written, so that a change of metadata doesn't touch chunks that are about to go.
pub(super) struct Plan<'a> {
    removed: Vec<Uuid>,
    added: Vec<Wanted<'a>>,
    moved: Vec<Wanted<'a>>,
    differences: HashMap<Uuid, Difference>,
}

impl<'a> Plan<'a> {
    /// Compares what is stored of the sources, which must be locked, with what is wanted.
    pub(super) async fn make(connection: &mut PgConnection, items: &[&'a NewSource]) -> Result<Self> {
        let sources: Vec<Uuid> = items.iter().map(|item| item.key.source_id().as_uuid()).collect();
        let mut standing = standing(connection, &sources).await?;
        let mut plan = Self { removed: Vec::new(), added: Vec::new(), moved: Vec::new(), differences: HashMap::new() };
        for item in items {
            for wanted in wanted(item)? {
                match standing.remove(&wanted.id) {
                    None => {
                        plan.differences.entry(wanted.source_id).or_default().added += 1;
                        plan.added.push(wanted);
                    }
                    Some(old) if old.place == wanted.place => {}
                    Some(_) => plan.moved.push(wanted),
                }
            }
        }
        for (id, old) in standing {
            plan.differences.entry(old.source_id).or_default().removed += 1;
            plan.removed.push(id);
        }
        Ok(plan)
    }

    /// Deletes what is gone.
    pub(super) async fn remove(&self, connection: &mut PgConnection) -> Result<()> {
        if !self.removed.is_empty() {
            sqlx::query!("DELETE FROM chunk WHERE id = ANY($1)", &self.removed).execute(connection).await?;
        }
        Ok(())
    }

    /// Inserts what is new and moves what lies elsewhere. Returns the differences by source.
    pub(super) async fn write(self, connection: &mut PgConnection) -> Result<HashMap<Uuid, Difference>> {
        insert(connection, &self.added).await?;
        relocate(connection, &self.moved).await?;
        Ok(self.differences)
    }
}

async fn standing(connection: &mut PgConnection, sources: &[Uuid]) -> Result<HashMap<Uuid, Standing>> {
    // OFFSET keeps the planner from making a join of it, see `sources::read`.
    let rows = sqlx::query!(
        "SELECT c.id, c.source_id, c.ordinal, c.headings, c.start_byte, c.end_byte, c.token_count
         FROM unnest($1::uuid[]) AS n (id)
         CROSS JOIN LATERAL (SELECT * FROM chunk WHERE chunk.source_id = n.id OFFSET 0) AS c",
        sources
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let place = Place {
                ordinal: row.ordinal,
                headings: row.headings,
                start_byte: row.start_byte,
                end_byte: row.end_byte,
                token_count: row.token_count,
            };
            (row.id, Standing { source_id: row.source_id, place })
        })
        .collect())
}

fn wanted(item: &NewSource) -> Result<Vec<Wanted<'_>>> {
    let source_id = item.key.source_id();
    let mut occurrences: HashMap<TextHash, u32> = HashMap::new();
    item.chunks
        .iter()
        .enumerate()
        .map(|(ordinal, chunk)| {
            let occurrence = occurrences.entry(chunk.text_hash).or_default();
            let id = ChunkId::derive(source_id, &chunk.text_hash, *occurrence);
            *occurrence += 1;
            Ok(Wanted {
                id: id.as_uuid(),
                project_id: item.key.project_id.as_uuid(),
                source_id: source_id.as_uuid(),
                place: Place::of(ordinal, chunk).ok_or_else(|| outside(chunk))?,
                text: item.text.get(chunk.range.clone()).ok_or_else(|| outside(chunk))?,
                text_hash: &chunk.text_hash,
                job_id: item.key.job_id,
            })
        })
        .collect()
}

fn outside(chunk: &NewChunk) -> StorageError {
    StorageError::Corrupt(format!("a chunk at bytes {:?}, which are no part of its text", chunk.range))
}

impl Place {
    fn of(ordinal: usize, chunk: &NewChunk) -> Option<Self> {
        Some(Self {
            ordinal: ordinal.try_into().ok()?,
            headings: chunk.headings.clone(),
            start_byte: chunk.range.start.try_into().ok()?,
            end_byte: chunk.range.end.try_into().ok()?,
            token_count: chunk.token_count.try_into().ok()?,
        })
    }
}

async fn insert(connection: &mut PgConnection, chunks: &[Wanted<'_>]) -> Result<()> {
    if chunks.is_empty() {
        return Ok(());
    }
    let places = Places::of(chunks);
    sqlx::query!(
        "INSERT INTO chunk (id, ordinal, headings, start_byte, end_byte, token_count, project_id, source_id, text,
                            text_hash, job_id)
         SELECT id, ordinal, ARRAY(SELECT jsonb_array_elements_text(headings)), start_byte, end_byte, token_count,
                project_id, source_id, text, text_hash, job_id
         FROM unnest($1::uuid[], $2::integer[], $3::jsonb[], $4::bigint[], $5::bigint[], $6::integer[],
                     $7::uuid[], $8::uuid[], $9::text[], $10::bytea[], $11::uuid[])
                  AS n (id, ordinal, headings, start_byte, end_byte, token_count, project_id, source_id, text, text_hash,
                        job_id)",
        &places.ids,
        &places.ordinals,
        &places.headings,
        &places.starts,
        &places.ends,
        &places.token_counts,
        &chunks.iter().map(|chunk| chunk.project_id).collect::<Vec<_>>(),
        &chunks.iter().map(|chunk| chunk.source_id).collect::<Vec<_>>(),
        &chunks.iter().map(|chunk| chunk.text).collect::<Vec<_>>() as &[&str],
        &chunks.iter().map(|chunk| chunk.text_hash.as_bytes().as_slice()).collect::<Vec<_>>() as &[&[u8]],
        &chunks.iter().map(|chunk| chunk.job_id).collect::<Vec<_>>() as &[Option<Uuid>],
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn relocate(connection: &mut PgConnection, chunks: &[Wanted<'_>]) -> Result<()> {
    if chunks.is_empty() {
        return Ok(());
    }
    let places = Places::of(chunks);
    sqlx::query!(
        "UPDATE chunk c
         SET ordinal = n.ordinal, headings = ARRAY(SELECT jsonb_array_elements_text(n.headings)),
             start_byte = n.start_byte, end_byte = n.end_byte, token_count = n.token_count, text = n.text
         FROM unnest($1::uuid[], $2::integer[], $3::jsonb[], $4::bigint[], $5::bigint[], $6::integer[], $7::text[])
                  AS n (id, ordinal, headings, start_byte, end_byte, token_count, text)
         WHERE c.id = n.id",
        &places.ids,
        &places.ordinals,
        &places.headings,
        &places.starts,
        &places.ends,
        &places.token_counts,
        // Headings and text are hashed as one string: their border may lie elsewhere.
        &chunks.iter().map(|chunk| chunk.text).collect::<Vec<_>>() as &[&str],
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Places column by column, as `unnest` takes them.
struct Places {
    ids: Vec<Uuid>,
    ordinals: Vec<i32>,
    /// JSON arrays: an array of arrays of unequal length is nothing that Postgres has.
    headings: Vec<serde_json::Value>,
    starts: Vec<i64>,
    ends: Vec<i64>,
    token_counts: Vec<i32>,
}

impl Places {
    fn of(chunks: &[Wanted<'_>]) -> Self {
        Self {
            ids: chunks.iter().map(|chunk| chunk.id).collect(),
            ordinals: chunks.iter().map(|chunk| chunk.place.ordinal).collect(),
            headings: chunks.iter().map(|chunk| chunk.place.headings.as_slice().into()).collect(),
            starts: chunks.iter().map(|chunk| chunk.place.start_byte).collect(),
            ends: chunks.iter().map(|chunk| chunk.place.end_byte).collect(),
            token_counts: chunks.iter().map(|chunk| chunk.place.token_count).collect(),
        }
    }
}
