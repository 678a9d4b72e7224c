//! Rows of `source`: comparing, locking, writing.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use sqlx::PgConnection;
use uuid::Uuid;

use super::{NewSource, SourceKey};
use crate::{Result, outbox::millis};

/// What is stored of a source, compared with what was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored {
    /// Whether a put would change nothing.
    pub(super) same: bool,
    pub(super) version: i64,
    pub(super) chunk_count: i64,
    /// Of a source that may yet be taken back: when that is decided, at the latest.
    pub(super) provisional: Option<Duration>,
}

/// Says which of the projects exist.
pub(super) async fn existing_projects(connection: &mut PgConnection, keys: &[&SourceKey]) -> Result<HashSet<Uuid>> {
    let ids: HashSet<Uuid> = keys.iter().map(|key| key.project_id.as_uuid()).collect();
    let ids: Vec<Uuid> = ids.into_iter().collect();
    let found = sqlx::query_scalar!("SELECT id FROM project WHERE id = ANY($1)", &ids).fetch_all(connection).await?;
    Ok(found.into_iter().collect())
}

/// Compares the stored sources with `keys`, by source id. Takes no lock.
///
/// Postgres compares the metadata: its numbers are exact, ours went through a float.
pub(super) async fn compare(connection: &mut PgConnection, keys: &[&SourceKey]) -> Result<HashMap<Uuid, Stored>> {
    // LIMIT keeps the planner from making a join of it, see `sources::read`.
    let rows = sqlx::query!(
        r#"SELECT s.id, s.version, s.chunk_count,
                  extract(epoch FROM s.provisional_until - clock_timestamp())::double precision AS provisional_s,
                  (s.content_hash = n.content_hash AND s.media_type = n.media_type AND s.chunker = n.chunker
                   AND s.metadata = n.metadata
                   AND CASE WHEN n.title IS NULL THEN s.title_derived
                            ELSE s.title = n.title AND NOT s.title_derived END) AS "same!"
           FROM unnest($1::uuid[], $2::bytea[], $3::text[], $4::text[], $5::jsonb[], $6::text[])
                    AS n (id, content_hash, media_type, chunker, metadata, title)
           CROSS JOIN LATERAL (SELECT * FROM source WHERE source.id = n.id LIMIT 1) AS s"#,
        &keys.iter().map(|key| key.source_id().as_uuid()).collect::<Vec<_>>(),
        &keys.iter().map(|key| key.content_hash.as_bytes().as_slice()).collect::<Vec<_>>() as &[&[u8]],
        &keys.iter().map(|key| key.media_type.as_str()).collect::<Vec<_>>() as &[&str],
        &keys.iter().map(|key| key.chunker.as_str()).collect::<Vec<_>>() as &[&str],
        &keys.iter().map(|key| key.metadata.clone()).collect::<Vec<_>>(),
        &keys.iter().map(|key| key.given_title.as_deref()).collect::<Vec<_>>() as &[Option<&str>],
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let provisional = row.provisional_s.map(|left| Duration::try_from_secs_f64(left).unwrap_or_default());
            (row.id, Stored { same: row.same, version: row.version, chunk_count: row.chunk_count, provisional })
        })
        .collect())
}

/// Locks the projects against deletion and the sources against everything, in the order of
/// their ids, so that two groups never wait for each other. Returns the sources that it
/// locked: one that is committed a moment later is there for the next statement, but not
/// locked.
///
/// The projects come first, as in a deletion of one.
pub(super) async fn lock(connection: &mut PgConnection, items: &[&NewSource]) -> Result<HashSet<Uuid>> {
    let projects: Vec<Uuid> = items.iter().map(|item| item.key.project_id.as_uuid()).collect();
    sqlx::query!("SELECT id FROM project WHERE id = ANY($1) ORDER BY id FOR KEY SHARE", &projects)
        .fetch_all(&mut *connection)
        .await?;
    let sources: Vec<Uuid> = items.iter().map(|item| item.key.source_id().as_uuid()).collect();
    // LIMIT keeps the planner from reading all of the table, see `sources::read`.
    let locked = sqlx::query_scalar!(
        "SELECT s.id FROM (SELECT id FROM unnest($1::uuid[]) AS k (id) ORDER BY id) AS n
         CROSS JOIN LATERAL (SELECT id FROM source WHERE source.id = n.id LIMIT 1 FOR UPDATE) AS s",
        &sources
    )
    .fetch_all(connection)
    .await?;
    Ok(locked.into_iter().collect())
}

/// Inserts sources and returns the versions of those that were not there: one that is
/// missing has just been put by another transaction.
pub(super) async fn insert(connection: &mut PgConnection, items: &[&NewSource]) -> Result<HashMap<Uuid, i64>> {
    if items.is_empty() {
        return Ok(HashMap::new());
    }
    let columns = Columns::of(items);
    let rows = sqlx::query!(
        "INSERT INTO source (id, project_id, uri, title, title_derived, media_type, metadata, content_hash, text,
                             chunk_count, chunker, job_id, provisional_until, state)
         SELECT n.id, n.project_id, n.uri, n.title, n.title_derived, n.media_type, n.metadata, n.content_hash, n.text,
                n.chunk_count, n.chunker, n.job_id, clock_timestamp() + n.provisional_ms * interval '1 millisecond', 'chunked'
         FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::boolean[], $6::text[], $7::jsonb[],
                     $8::bytea[], $9::text[], $10::bigint[], $11::text[], $12::uuid[], $13::double precision[])
                  AS n (id, project_id, uri, title, title_derived, media_type, metadata, content_hash, text,
                        chunk_count, chunker, job_id, provisional_ms)
         ON CONFLICT DO NOTHING RETURNING id, version",
        &columns.ids,
        &items.iter().map(|item| item.key.project_id.as_uuid()).collect::<Vec<_>>(),
        &items.iter().map(|item| item.key.uri.as_str()).collect::<Vec<_>>() as &[&str],
        &columns.titles as &[&str],
        &columns.titles_derived,
        &columns.media_types as &[&str],
        &columns.metadata,
        &columns.content_hashes as &[&[u8]],
        &columns.texts as &[&str],
        &columns.chunk_counts,
        &columns.chunkers as &[&str],
        &columns.job_ids as &[Option<Uuid>],
        &items.iter().map(|item| item.key.provisional.map(millis)).collect::<Vec<_>>() as &[Option<f64>],
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.version)).collect())
}

/// Overwrites sources that are locked, and returns their versions.
pub(super) async fn update(connection: &mut PgConnection, items: &[&NewSource]) -> Result<HashMap<Uuid, i64>> {
    if items.is_empty() {
        return Ok(HashMap::new());
    }
    let columns = Columns::of(items);
    let rows = sqlx::query!(
        "UPDATE source s
         SET title = n.title, title_derived = n.title_derived, media_type = n.media_type, metadata = n.metadata,
             content_hash = n.content_hash, chunk_count = n.chunk_count, chunker = n.chunker, state = 'chunked',
             -- An equal text stays where it is: a change of metadata need not write megabytes.
             text = CASE WHEN s.text = n.text THEN s.text ELSE n.text END,
             job_id = n.job_id, updated_at = now()
         FROM unnest($1::uuid[], $2::text[], $3::boolean[], $4::text[], $5::jsonb[], $6::bytea[], $7::text[],
                     $8::bigint[], $9::text[], $10::uuid[])
                  AS n (id, title, title_derived, media_type, metadata, content_hash, text, chunk_count, chunker, job_id)
         WHERE s.id = n.id
         RETURNING s.id, s.version",
        &columns.ids,
        &columns.titles as &[&str],
        &columns.titles_derived,
        &columns.media_types as &[&str],
        &columns.metadata,
        &columns.content_hashes as &[&[u8]],
        &columns.texts as &[&str],
        &columns.chunk_counts,
        &columns.chunkers as &[&str],
        &columns.job_ids as &[Option<Uuid>],
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.version)).collect())
}

/// Sources column by column, as `unnest` takes them.
struct Columns<'a> {
    ids: Vec<Uuid>,
    titles: Vec<&'a str>,
    titles_derived: Vec<bool>,
    media_types: Vec<&'a str>,
    metadata: Vec<serde_json::Value>,
    content_hashes: Vec<&'a [u8]>,
    texts: Vec<&'a str>,
    chunk_counts: Vec<i64>,
    chunkers: Vec<&'a str>,
    job_ids: Vec<Option<Uuid>>,
}

impl<'a> Columns<'a> {
    fn of(items: &[&'a NewSource]) -> Self {
        Self {
            ids: items.iter().map(|item| item.key.source_id().as_uuid()).collect(),
            titles: items.iter().map(|item| item.title.as_str()).collect(),
            titles_derived: items.iter().map(|item| item.key.given_title.is_none()).collect(),
            media_types: items.iter().map(|item| item.key.media_type.as_str()).collect(),
            metadata: items.iter().map(|item| item.key.metadata.clone()).collect(),
            content_hashes: items.iter().map(|item| item.key.content_hash.as_bytes().as_slice()).collect(),
            texts: items.iter().map(|item| item.text.as_str()).collect(),
            chunk_counts: items.iter().map(|item| item.chunk_count()).collect(),
            chunkers: items.iter().map(|item| item.key.chunker.as_str()).collect(),
            job_ids: items.iter().map(|item| item.key.job_id).collect(),
        }
    }
}
