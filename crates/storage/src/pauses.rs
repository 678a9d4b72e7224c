//! Sinks that an operator, or a bulk load, has stopped for all relays. Time is Postgres' own.

use std::time::Duration;

use chrono::{DateTime, Utc};
use waybill_domain::SinkName;

use crate::{Db, Result, outbox::millis};

/// That a sink is paused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    /// The sink.
    pub sink: SinkName,
    /// Who paused it.
    pub paused_by: String,
    /// Why.
    pub reason: String,
    /// When.
    pub paused_at: DateTime<Utc>,
    /// When it ends by itself; `None` if somebody has to resume it.
    pub until: Option<DateTime<Utc>>,
}

/// Pauses a sink for all relays: until somebody resumes it, or for `ttl`. One that is paused keeps
/// who, when and why of the first; if that was `paused_by`, too, and for a time, it goes on for
/// `ttl` from now. Returns how it is paused now, and whether this call did it.
///
/// # Errors
/// If a statement fails.
pub async fn pause(
    db: &Db,
    sink: SinkName,
    paused_by: &str,
    reason: &str,
    ttl: Option<Duration>,
) -> Result<(Pause, bool)> {
    let mut tx = db.pool().begin().await?;
    sqlx::query!("DELETE FROM sink_pause WHERE sink = $1 AND until <= now()", sink.as_str()).execute(&mut *tx).await?;
    let row = sqlx::query!(
        r#"INSERT INTO sink_pause (sink, paused_by, reason, until)
           VALUES ($1, $2, $3, now() + $4::float8 * interval '1 millisecond')
           ON CONFLICT (sink) DO UPDATE SET until = CASE
               WHEN sink_pause.paused_by = excluded.paused_by AND sink_pause.until IS NOT NULL AND excluded.until IS NOT NULL
               THEN excluded.until ELSE sink_pause.until END
           RETURNING paused_by, reason, paused_at, until, xmax = 0 AS "is_new!""#,
        sink.as_str(),
        paused_by,
        reason,
        ttl.map(millis)
    )
    .fetch_one(&mut *tx)
    .await?;
    tx.commit().await?;
    let (paused_at, until) = (row.paused_at, row.until);
    Ok((Pause { sink, paused_by: row.paused_by, reason: row.reason, paused_at, until }, row.is_new))
}

/// Resumes a sink; if `paused_by` is given, only if that one paused it. Returns how it had been
/// paused, if it was.
///
/// # Errors
/// If the statement fails.
pub async fn resume(db: &Db, sink: SinkName, paused_by: Option<&str>) -> Result<Option<Pause>> {
    let row = sqlx::query!(
        r#"DELETE FROM sink_pause WHERE sink = $1 AND ($2::text IS NULL OR paused_by = $2)
           RETURNING paused_by, reason, paused_at, until, (until <= now()) IS TRUE AS "is_over!""#,
        sink.as_str(),
        paused_by
    )
    .fetch_optional(db.pool())
    .await?;
    Ok(row.filter(|row| !row.is_over).map(|row| Pause {
        sink,
        paused_by: row.paused_by,
        reason: row.reason,
        paused_at: row.paused_at,
        until: row.until,
    }))
}

/// Says whether and how a sink is paused.
///
/// # Errors
/// If the statement fails.
pub async fn paused(db: &Db, sink: SinkName) -> Result<Option<Pause>> {
    let row = sqlx::query!(
        "SELECT paused_by, reason, paused_at, until FROM sink_pause
         WHERE sink = $1 AND (until IS NULL OR until > now())",
        sink.as_str()
    )
    .fetch_optional(db.pool())
    .await?;
    Ok(row.map(|row| Pause {
        sink,
        paused_by: row.paused_by,
        reason: row.reason,
        paused_at: row.paused_at,
        until: row.until,
    }))
}

/// Says whether every relay that is alive has seen that the sink is paused, and has nothing under
/// way since. False if it is not paused.
///
/// # Errors
/// If the statement fails.
pub async fn is_still(db: &Db, sink: SinkName) -> Result<bool> {
    let still = sqlx::query_scalar!(
        r#"SELECT NOT EXISTS (
               SELECT FROM relay_member m
               WHERE m.sink = $1 AND m.lease_until > now() AND m.still_for IS DISTINCT FROM p.paused_at) AS "still!"
           FROM sink_pause p WHERE p.sink = $1 AND (p.until IS NULL OR p.until > now())"#,
        sink.as_str()
    )
    .fetch_optional(db.pool())
    .await?;
    Ok(still.unwrap_or(false))
}
