//! The vector index as a whole: which making of it claims speak of, and a collection that is being
//! built beside it for another model.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{Db, Result};

/// What a delivery has to know. Read before the rows that it delivers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexState {
    /// Claims of a lower one are void.
    pub generation: i32,
    /// The build under way, if there is one.
    pub build: Option<Build>,
    /// The collection that a finished build has replaced, until it was deleted.
    pub leftover: Option<String>,
}

/// A collection that is being built for another model: everything is delivered to both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// The model.
    pub model: String,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// Keys below it have been written to the outbox since.
    pub position: Uuid,
    /// How many these are.
    pub keys: i64,
    /// When the alias was moved to it, if it was.
    pub moved_at: Option<DateTime<Utc>>,
    /// Where the alias pointed before, from just before it was moved.
    pub from: Option<String>,
}

/// Reads it.
///
/// # Errors
/// If the statement fails.
pub async fn read(db: &Db) -> Result<IndexState> {
    let row = sqlx::query!(
        "SELECT generation, build_model, build_started_at, build_position, build_keys, build_moved_at, build_from
         FROM vector_index WHERE single"
    )
    .fetch_one(db.pool())
    .await?;
    let Some((model, started_at)) = row.build_model.zip(row.build_started_at) else {
        return Ok(IndexState { generation: row.generation, build: None, leftover: row.build_from });
    };
    let build = Build {
        model,
        started_at,
        position: row.build_position,
        keys: row.build_keys,
        moved_at: row.build_moved_at,
        from: row.build_from,
    };
    Ok(IndexState { generation: row.generation, build: Some(build), leftover: None })
}

/// Returns the generation, alone.
///
/// # Errors
/// If the statement fails.
pub async fn generation(db: &Db) -> Result<i32> {
    Ok(sqlx::query_scalar!("SELECT generation FROM vector_index WHERE single").fetch_one(db.pool()).await?)
}

/// A generation that was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewal {
    /// The one before.
    pub previous: i32,
    /// Nobody else's, ever.
    pub generation: i32,
}

/// Begins a new generation, before an empty collection is made: what was claimed until now is void.
///
/// Each relay that tries to make the collection begins one of its own, and those that were not
/// the one that made it [`keep`] what was before theirs. With one for all of them, a slower one
/// would take it back from under the collection.
///
/// # Errors
/// If the statement fails.
pub async fn renew(db: &Db) -> Result<Renewal> {
    let row = sqlx::query!(
        r#"UPDATE vector_index v SET generation = nextval('vector_index_generation')::integer
           FROM (SELECT generation FROM vector_index WHERE single FOR UPDATE) AS old
           RETURNING old.generation AS "previous!", v.generation AS "generation!""#
    )
    .fetch_one(db.pool())
    .await?;
    Ok(Renewal { previous: row.previous, generation: row.generation })
}

/// Takes a generation back that [`renew`] began for nothing: another relay had made the collection.
/// Unless there is a later one.
///
/// # Errors
/// If the statement fails.
pub async fn keep(db: &Db, renewal: Renewal) -> Result<()> {
    sqlx::query!("UPDATE vector_index SET generation = $1 WHERE generation = $2", renewal.previous, renewal.generation)
        .execute(db.pool())
        .await?;
    Ok(())
}

/// Says whether the vector store has confirmed anything, under whichever generation.
///
/// # Errors
/// If the statement fails.
pub async fn has_claims(db: &Db) -> Result<bool> {
    Ok(sqlx::query_scalar!(r#"SELECT EXISTS (SELECT FROM index_state WHERE sink = 'qdrant') AS "any!""#)
        .fetch_one(db.pool())
        .await?)
}

/// Begins a build for `model`, or goes on with it. Returns the build that is under way now: of
/// another model, if that was first.
///
/// # Errors
/// If a statement fails.
pub async fn begin_build(db: &Db, model: &str) -> Result<Option<Build>> {
    sqlx::query!(
        "UPDATE vector_index SET build_model = $1, build_started_at = now(), build_position = $2, build_keys = 0,
                build_moved_at = NULL, build_from = NULL
         WHERE build_model IS NULL AND build_from IS NULL",
        model,
        Uuid::nil()
    )
    .execute(db.pool())
    .await?;
    Ok(read(db).await?.build)
}

/// Notes how far the build's walk is. False if the build has ended meanwhile.
///
/// # Errors
/// If the statement fails.
pub async fn advance_build(db: &Db, build: &Build, position: Uuid, keys: i64) -> Result<bool> {
    let done = sqlx::query!(
        "UPDATE vector_index SET build_position = $3, build_keys = $4 WHERE build_model = $1 AND build_started_at = $2",
        build.model,
        build.started_at,
        position,
        keys
    )
    .execute(db.pool())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Notes where the alias points before it is moved.
///
/// # Errors
/// If the statement fails.
pub async fn leave_collection(db: &Db, build: &Build, from: &str) -> Result<()> {
    sqlx::query!(
        "UPDATE vector_index SET build_from = $3
         WHERE build_model = $1 AND build_started_at = $2 AND build_from IS NULL",
        build.model,
        build.started_at,
        from
    )
    .execute(db.pool())
    .await?;
    Ok(())
}

/// Notes that the alias was moved to the build's collection.
///
/// # Errors
/// If the statement fails.
pub async fn moved(db: &Db, build: &Build) -> Result<()> {
    sqlx::query!(
        "UPDATE vector_index SET build_moved_at = coalesce(build_moved_at, now())
         WHERE build_model = $1 AND build_started_at = $2",
        build.model,
        build.started_at
    )
    .execute(db.pool())
    .await?;
    Ok(())
}

/// Ends the build of `model`, finished or not: from now on, everything is delivered to the live
/// collection alone. What the live one was before is kept in mind, to be deleted. False if there was
/// none, or, `unless_moving`, if its alias is being moved.
///
/// # Errors
/// If the statement fails.
pub async fn end_build(db: &Db, model: &str, unless_moving: bool) -> Result<bool> {
    let done = sqlx::query!(
        "UPDATE vector_index SET build_model = NULL, build_started_at = NULL, build_moved_at = NULL
         WHERE build_model = $1 AND ($2 IS FALSE OR build_from IS NULL)",
        model,
        unless_moving
    )
    .execute(db.pool())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Notes that the collection which a build has replaced was deleted.
///
/// # Errors
/// If the statement fails.
pub async fn forget_leftover(db: &Db, collection: &str) -> Result<()> {
    sqlx::query!("UPDATE vector_index SET build_from = NULL WHERE build_model IS NULL AND build_from = $1", collection)
        .execute(db.pool())
        .await?;
    Ok(())
}

/// Remembers what a bulk load changes, in KiB: what is remembered already stays. Returns what is to
/// be put back.
///
/// # Errors
/// If the statement fails.
pub async fn remember_threshold(db: &Db, kib: i64) -> Result<i64> {
    Ok(sqlx::query_scalar!(
        r#"UPDATE vector_index SET indexing_threshold = coalesce(indexing_threshold, $1)
           RETURNING indexing_threshold AS "kib!""#,
        kib
    )
    .fetch_one(db.pool())
    .await?)
}

/// Returns what is to be put back after a bulk load, in KiB, if anything.
///
/// # Errors
/// If the statement fails.
pub async fn remembered_threshold(db: &Db) -> Result<Option<i64>> {
    Ok(sqlx::query_scalar!("SELECT indexing_threshold FROM vector_index WHERE single").fetch_one(db.pool()).await?)
}

/// Forgets it: it was put back. Unless a load has begun meanwhile: that may have found the raised
/// one.
///
/// # Errors
/// If the statement fails.
pub async fn forget_threshold(db: &Db) -> Result<()> {
    sqlx::query!(
        "UPDATE vector_index SET indexing_threshold = NULL
         WHERE NOT EXISTS (SELECT FROM bulk_load WHERE until > now())"
    )
    .execute(db.pool())
    .await?;
    Ok(())
}
