//! The cache of embeddings: by model and hash of the text.
//!
//! A row that is lost costs model time and nothing else, so writers may drop what they
//! can't write, and eviction may be rough.

use std::collections::HashMap;

use waybill_domain::TextHash;

use crate::{Db, Result};

/// A row is marked as used at most this often. Marking rewrites the row, vector and all;
/// a rebuilt index reads the whole cache within a day, and would write it whole if each
/// day counted. Eviction by age counts in months.
pub const TOUCH_AFTER_DAYS: i32 = 7;

/// What a row takes besides its vector: header, hash, name of the model, two index entries.
const ROW_OVERHEAD_BYTES: i64 = 220;

/// How many rows are looked at to learn how large a vector is on average.
const SAMPLE_ROWS: i64 = 1_000;

/// A vector from the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedVector {
    /// Little-endian f32.
    pub dense: Vec<u8>,
    /// Whether [`touch`] would do anything for it.
    pub touch_due: bool,
}

/// Looks up vectors, as many answers as hashes and in their order. Writes nothing.
///
/// # Errors
/// If the statement fails.
pub async fn lookup(db: &Db, model: &str, hashes: &[TextHash]) -> Result<Vec<Option<CachedVector>>> {
    let keys = bytes_of(hashes.iter());
    // ANY on the key's second column, not a join with unnest: the planner knows neither how
    // long an array is nor that it is short, and only this form leaves it no choice but the index.
    let rows = sqlx::query!(
        r#"SELECT text_hash, dense, last_used_on <= current_date - $3::int AS "touch_due!"
           FROM embedding_cache
           WHERE model = $1 AND text_hash = ANY($2)"#,
        model,
        &keys as &[&[u8]],
        TOUCH_AFTER_DAYS,
    )
    .fetch_all(db.pool())
    .await?;

    let mut found = HashMap::with_capacity(rows.len());
    for row in rows {
        if let Some(hash) = TextHash::from_slice(&row.text_hash) {
            found.insert(hash, CachedVector { dense: row.dense, touch_due: row.touch_due });
        }
    }
    let mut answers: Vec<Option<CachedVector>> = Vec::with_capacity(hashes.len());
    let mut last_place: HashMap<TextHash, usize> = HashMap::with_capacity(found.len());
    for (place, hash) in hashes.iter().enumerate() {
        // Moved out at its first place; a text that repeats within a batch is copied from there.
        let answer = match found.remove(hash) {
            Some(vector) => {
                last_place.insert(*hash, place);
                Some(vector)
            }
            None => last_place.get(hash).and_then(|&place| answers[place].clone()),
        };
        answers.push(answer);
    }
    Ok(answers)
}

/// Stores vectors; those that are there already stay as they are. Returns how many are new.
///
/// # Errors
/// If the statement fails.
pub async fn store(db: &Db, model: &str, vectors: &[(TextHash, impl AsRef<[u8]> + Sync)]) -> Result<u64> {
    // In the order of the keys: two writers that meet in one order can't deadlock.
    let mut sorted: Vec<_> = vectors.iter().collect();
    sorted.sort_unstable_by_key(|(hash, _)| *hash);
    let keys = bytes_of(sorted.iter().map(|(hash, _)| hash));
    let dense: Vec<&[u8]> = sorted.iter().map(|(_, dense)| dense.as_ref()).collect();
    let done = sqlx::query!(
        "INSERT INTO embedding_cache (model, text_hash, dense)
         SELECT $1, t.text_hash, t.dense FROM unnest($2::bytea[], $3::bytea[]) AS t (text_hash, dense)
         ON CONFLICT DO NOTHING",
        model,
        &keys as &[&[u8]],
        &dense as &[&[u8]],
    )
    .execute(db.pool())
    .await?;
    Ok(done.rows_affected())
}

/// Marks rows as used today, if that is due. Returns how many were.
///
/// # Errors
/// If the statement fails.
pub async fn touch(db: &Db, model: &str, hashes: &[TextHash]) -> Result<u64> {
    let keys = bytes_of(hashes.iter());
    // A row that somebody else is touching needs no second touch.
    let done = sqlx::query!(
        "UPDATE embedding_cache SET last_used_on = current_date
         WHERE ctid = ANY (ARRAY(
             SELECT ctid FROM embedding_cache
             WHERE model = $1 AND text_hash = ANY($2) AND last_used_on <= current_date - $3::int
             FOR UPDATE SKIP LOCKED))",
        model,
        &keys as &[&[u8]],
        TOUCH_AFTER_DAYS,
    )
    .execute(db.pool())
    .await?;
    Ok(done.rows_affected())
}

/// Deletes up to `step` rows that nobody used for `days`. Returns how many; fewer than
/// `step` means that there are no more.
///
/// # Errors
/// If the statement fails.
pub async fn evict_unused(db: &Db, days: i32, step: i64) -> Result<u64> {
    let done = sqlx::query!(
        "DELETE FROM embedding_cache
         WHERE ctid = ANY (ARRAY(
             SELECT ctid FROM embedding_cache
             WHERE last_used_on < current_date - $1::int
             ORDER BY last_used_on
             LIMIT $2
             FOR UPDATE SKIP LOCKED))",
        days,
        step,
    )
    .execute(db.pool())
    .await?;
    Ok(done.rows_affected())
}

/// Deletes the `step` rows that were used longest ago. Returns how many there were.
///
/// # Errors
/// If the statement fails.
pub async fn evict_oldest(db: &Db, step: i64) -> Result<u64> {
    let done = sqlx::query!(
        "DELETE FROM embedding_cache
         WHERE ctid = ANY (ARRAY(
             SELECT ctid FROM embedding_cache
             ORDER BY last_used_on
             LIMIT $1
             FOR UPDATE SKIP LOCKED))",
        step,
    )
    .execute(db.pool())
    .await?;
    Ok(done.rows_affected())
}

/// Estimates how many rows are too many for `max_bytes`; 0 if none.
///
/// From the number of live rows that Postgres keeps statistics of, and the average of a few
/// vectors: neither costs a scan. The size of the files would not do, as it doesn't shrink
/// when rows are deleted, and eviction would go on until nothing is left. The number lags
/// behind by a second or so, hence ask once, delete that many, and ask again later.
///
/// # Errors
/// If the statement fails.
pub async fn excess_rows(db: &Db, max_bytes: i64) -> Result<i64> {
    let row = sqlx::query!(
        r#"SELECT
             coalesce(pg_stat_get_live_tuples('embedding_cache'::regclass), 0) AS "rows!",
             coalesce((SELECT avg(octet_length(dense)) FROM (SELECT dense FROM embedding_cache LIMIT $1) AS sample), 0)::bigint
                 AS "vector_bytes!""#,
        SAMPLE_ROWS,
    )
    .fetch_one(db.pool())
    .await?;
    let fitting = max_bytes / (row.vector_bytes + ROW_OVERHEAD_BYTES);
    Ok((row.rows - fitting).max(0))
}

fn bytes_of<'a>(hashes: impl Iterator<Item = &'a TextHash>) -> Vec<&'a [u8]> {
    hashes.map(|hash| hash.as_bytes().as_slice()).collect()
}
