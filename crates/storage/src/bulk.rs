//! Bulk loads: that somebody loads very much, so that sinks make room for it. Time is Postgres' own.

use std::time::Duration;

use crate::{Db, Result, outbox::millis};

/// Says that the load `id` goes on for `ttl` from now, unless it says so again.
///
/// # Errors
/// If a statement fails.
pub async fn begin(db: &Db, id: &str, ttl: Duration) -> Result<()> {
    sqlx::query!(
        "WITH over AS (DELETE FROM bulk_load WHERE until <= now() AND id <> $1)
         INSERT INTO bulk_load (id, until) VALUES ($1, now() + $2 * interval '1 millisecond')
         ON CONFLICT (id) DO UPDATE SET until = excluded.until",
        id,
        millis(ttl)
    )
    .execute(db.pool())
    .await?;
    Ok(())
}

/// Says that the load `id` has ended. False if it was not known.
///
/// # Errors
/// If the statement fails.
pub async fn end(db: &Db, id: &str) -> Result<bool> {
    Ok(sqlx::query!("DELETE FROM bulk_load WHERE id = $1", id).execute(db.pool()).await?.rows_affected() > 0)
}

/// Says whether any load goes on.
///
/// # Errors
/// If the statement fails.
pub async fn is_on(db: &Db) -> Result<bool> {
    Ok(sqlx::query_scalar!(r#"SELECT EXISTS (SELECT FROM bulk_load WHERE until > now()) AS "on!""#)
        .fetch_one(db.pool())
        .await?)
}
