//! Reading sources back, and deleting them.

use chrono::{DateTime, Utc};
use uuid::Uuid;
use waybill_domain::{ContentHash, ProjectId, SourceId, SourceState};

use super::{Source, begin};
use crate::{Db, Result, StorageError};

/// Rows that one call of [`list`] looks at, at most, when it filters by a derived state.
/// Each costs a look at its chunks in `index_state` and `llm_request`: about 20 µs a chunk.
const MAX_SCANNED: i64 = 5_000;

/// Rows of one look when most of them may be filtered out.
const SCAN_BATCH: i64 = 500;

/// The longest uri there is, in bytes, and one more: see [`past_prefix`].
const PAST_URI_BYTES: usize = 2_052;

/// Which sources a listing is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceFilter {
    /// Only uris that begin so.
    pub uri_prefix: String,
    /// Only sources in this state.
    pub state: Option<SourceState>,
}

/// Some sources, in the order of their uris, bytewise.
#[derive(Debug, Clone, PartialEq)]
pub struct SourcePage {
    /// The sources. May be fewer than asked for, even none, before the last page.
    pub sources: Vec<Source>,
    /// Where the next page begins; `None` after the last.
    pub next_after: Option<String>,
}

/// A deletion of one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deleted {
    /// Chunks that went with it.
    pub chunks: u64,
    /// The last version it had.
    pub version: i64,
}

/// What became of a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// It is gone.
    Done(Deleted),
    /// There was none.
    Missing,
    /// It has this version, not the one that was to be deleted.
    Changed(i64),
}

/// A row as both queries here return it.
struct Row {
    id: Uuid,
    project_id: Uuid,
    uri: String,
    title: String,
    media_type: String,
    metadata: serde_json::Value,
    content_hash: Vec<u8>,
    text: Option<String>,
    state: String,
    indexed: bool,
    extracting: bool,
    job_id: Option<Uuid>,
    chunk_count: i64,
    version: i64,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl TryFrom<Row> for Source {
    type Error = StorageError;

    fn try_from(row: Row) -> Result<Self> {
        let corrupt = |what: &dyn std::fmt::Display| StorageError::Corrupt(format!("source {}: {what}", row.id));
        let state = SourceState::parse(&row.state).map_err(|error| corrupt(&error))?;
        Ok(Self {
            id: SourceId::from_uuid(row.id),
            project_id: ProjectId::from_uuid(row.project_id),
            media_type: row.media_type.parse().map_err(|error| corrupt(&error))?,
            state: match state {
                SourceState::Chunked if row.extracting => SourceState::Extracting,
                SourceState::Chunked if row.indexed => SourceState::Indexed,
                stored => stored,
            },
            content_hash: ContentHash::from_slice(&row.content_hash)
                .ok_or_else(|| corrupt(&"a hash of another length"))?,
            uri: row.uri,
            title: row.title,
            metadata: row.metadata,
            version: row.version,
            chunk_count: row.chunk_count,
            created_at: row.created_at,
            updated_at: row.updated_at,
            text: row.text,
            job_id: row.job_id,
        })
    }
}

// `index_state` is asked by subqueries: for a join the planner, as long as it has no fresh
// statistics, takes the sink and the kind for selective and reads all of their rows for each chunk.
// And all of it stands in subqueries with LIMIT: of an EXISTS the planner may make a hash of every
// chunk there is. The same goes for lookups by many keys: a connection that plans them while tables
// are empty would keep reading the tables whole, until Postgres analyses them.

/// Returns a source, with its readable text if `with_text`.
///
/// # Errors
/// If Postgres is away or the statement fails.
pub async fn get(db: &Db, id: SourceId, with_text: bool) -> Result<Option<Source>> {
    let row = sqlx::query_as!(
        Row,
        r#"SELECT s.id, s.project_id, s.uri, s.title, s.media_type, s.metadata, s.content_hash,
                  CASE WHEN $2 THEN s.text END AS text, s.state, s.chunk_count, s.version, s.created_at, s.updated_at, s.job_id,
                  (SELECT true FROM chunk c
                   WHERE c.source_id = s.id AND (
                       SELECT i.version >= c.version AND i.generation >= (SELECT x.generation FROM vector_index x) FROM index_state i
                       WHERE i.sink = 'qdrant' AND i.kind = 'chunk' AND i.key = c.id AND NOT i.deleted) IS NOT TRUE
                   LIMIT 1) IS NULL AS "indexed!",
                  (SELECT true FROM chunk c
                   WHERE c.source_id = s.id AND (
                       SELECT true FROM llm_request r
                       WHERE r.chunk_id = c.id AND r.state IN ('pending', 'queued', 'running') LIMIT 1)
                   LIMIT 1) IS TRUE AS "extracting!"
           FROM source s WHERE s.id = $1 AND s.provisional_until IS NULL"#,
        id.as_uuid(),
        with_text
    )
    .fetch_optional(db.pool())
    .await?;
    row.map(Source::try_from).transpose()
}

/// Lists at most `limit` sources of a project, from after the uri `after` on, without texts.
///
/// Whether a source is extracting or indexed is derived for the rows that are looked at and no
/// others. With a filter on `chunked`, `extracting` or `indexed` those are at most [`MAX_SCANNED`]: then the page
/// may be short, and `next_after` says where to go on.
///
/// # Errors
/// If Postgres is away or a statement fails.
pub async fn list(
    db: &Db,
    project: ProjectId,
    filter: &SourceFilter,
    after: Option<&str>,
    limit: i64,
) -> Result<SourcePage> {
    let mut page = SourcePage { sources: Vec::new(), next_after: None };
    let mut after = after.map(str::to_owned);
    let mut scanned = 0;
    loop {
        // One more than is left to fill, to know whether there is another page.
        let room = limit - i64::try_from(page.sources.len()).unwrap_or(limit) + 1;
        let size = if filter.state.is_some() { room.max(SCAN_BATCH) } else { room };
        let batch = scan(db, project, filter, after.as_deref().unwrap_or_default(), size).await?;
        let ended = batch.len() < usize::try_from(size).unwrap_or(usize::MAX);
        for source in batch {
            let full = i64::try_from(page.sources.len()).unwrap_or(limit) >= limit;
            if full {
                page.next_after = after;
                return Ok(page);
            }
            scanned += 1;
            after = Some(source.uri.clone());
            if filter.state.is_none_or(|state| state == source.state) {
                page.sources.push(source);
            }
        }
        if ended {
            return Ok(page);
        }
        if scanned >= MAX_SCANNED {
            page.next_after = after;
            return Ok(page);
        }
    }
}

/// Reads rows by the stored state, which is less than the state that is asked for.
async fn scan(db: &Db, project: ProjectId, filter: &SourceFilter, after: &str, limit: i64) -> Result<Vec<Source>> {
    let stored_state = filter.state.map(|state| match state {
        SourceState::Extracting | SourceState::Indexed => SourceState::Chunked.as_str(),
        state => state.as_str(),
    });
    // The inner query keeps the look at index_state to the rows of the page. The bounds are
    // never NULL: they are the range that the index is read in.
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT s.id, s.project_id, s.uri, s.title, s.media_type, s.metadata, s.content_hash, NULL::text AS text, s.state,
                  s.chunk_count, s.version, s.created_at, s.updated_at, s.job_id,
                  (SELECT true FROM chunk c
                   WHERE c.source_id = s.id AND (
                       SELECT i.version >= c.version AND i.generation >= (SELECT x.generation FROM vector_index x) FROM index_state i
                       WHERE i.sink = 'qdrant' AND i.kind = 'chunk' AND i.key = c.id AND NOT i.deleted) IS NOT TRUE
                   LIMIT 1) IS NULL AS "indexed!",
                  (SELECT true FROM chunk c
                   WHERE c.source_id = s.id AND (
                       SELECT true FROM llm_request r
                       WHERE r.chunk_id = c.id AND r.state IN ('pending', 'queued', 'running') LIMIT 1)
                   LIMIT 1) IS TRUE AS "extracting!"
           FROM (SELECT * FROM source
                 WHERE project_id = $1 AND provisional_until IS NULL
                   AND uri COLLATE "C" > $2 AND uri COLLATE "C" >= $3 AND uri COLLATE "C" < $4
                   AND ($5::text IS NULL OR state = $5)
                 ORDER BY uri COLLATE "C" LIMIT $6) AS s
           ORDER BY s.uri COLLATE "C""#,
        project.as_uuid(),
        after,
        filter.uri_prefix,
        past_prefix(&filter.uri_prefix),
        stored_state,
        limit
    )
    .fetch_all(db.pool())
    .await?;
    rows.into_iter().map(Source::try_from).collect()
}

/// Returns the least string that is greater than all uris that begin with `prefix`.
fn past_prefix(prefix: &str) -> String {
    let mut chars: Vec<char> = prefix.chars().collect();
    while let Some(last) = chars.pop() {
        // UTF-8 sorts as its code points do. The range steps over the surrogates.
        if let Some(next) = (last..=char::MAX).nth(1) {
            chars.push(next);
            return chars.into_iter().collect();
        }
    }
    // Greater than any uri: it consists of the greatest character and is longer than one can be.
    char::MAX.to_string().repeat(PAST_URI_BYTES / char::MAX.len_utf8())
}

/// Deletes a source, a provisional one too; if `if_version` is given, only in that version.
/// `headers` go into the outbox rows.
///
/// # Errors
/// If Postgres is away or a statement fails; then nothing is deleted.
pub async fn delete(db: &Db, id: SourceId, if_version: Option<i64>, headers: Option<&str>) -> Result<Deletion> {
    let mut tx = begin(db, headers).await?;
    // The lock keeps new chunks out, so that those deleted are all there are.
    let found = sqlx::query_scalar!("SELECT version FROM source WHERE id = $1 FOR UPDATE", id.as_uuid())
        .fetch_optional(&mut *tx)
        .await?;
    let Some(version) = found else {
        return Ok(Deletion::Missing);
    };
    if if_version.is_some_and(|wanted| wanted != version) {
        return Ok(Deletion::Changed(version));
    }
    let chunks =
        sqlx::query!("DELETE FROM chunk WHERE source_id = $1", id.as_uuid()).execute(&mut *tx).await?.rows_affected();
    sqlx::query!("DELETE FROM source WHERE id = $1", id.as_uuid()).execute(&mut *tx).await?;
    tx.commit().await?;
    Ok(Deletion::Done(Deleted { chunks, version }))
}

#[cfg(test)]
mod tests {
    use super::past_prefix;

    #[test]
    fn the_bound_of_a_prefix_lies_past_all_that_begin_with_it() {
        assert_eq!(past_prefix("docs/"), "docs0");
        assert_eq!(past_prefix("a\u{10FFFF}"), "b");
        assert_eq!(past_prefix("\u{D7FF}"), "\u{E000}");
        for prefix in ["", "\u{10FFFF}"] {
            let longest = prefix.to_owned() + &"\u{10FFFF}".repeat(512);
            assert!(past_prefix(prefix).as_str() > &longest[..2048], "prefix {prefix:?}");
        }
    }
}
