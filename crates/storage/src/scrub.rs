//! The pass in the background: who is on it, and how far it is. Time is Postgres' own.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;
use waybill_domain::RelayId;

use crate::{Db, Result, outbox::millis};

/// A pass that this relay is on.
#[derive(Debug, Clone, PartialEq)]
pub struct ScrubPass {
    /// When it began, perhaps with another relay.
    pub started_at: DateTime<Utc>,
    /// Keys below it were compared.
    pub position: Uuid,
    /// What was counted up to there, a JSON object.
    pub tally: Value,
}

/// What is known of passes.
#[derive(Debug, Clone, PartialEq)]
pub struct ScrubStatus {
    /// When the pass under way began, if there is one.
    pub started_at: Option<DateTime<Utc>>,
    /// Keys below it were compared in the pass under way.
    pub position: Uuid,
    /// When the last complete pass began and ended, and what it counted.
    pub last: Option<(DateTime<Utc>, DateTime<Utc>, Value)>,
}

/// Takes the pass, if nobody is on it: the one that was left, or a new one if `period` has passed
/// since the last (`None`: never by itself) or one was asked for. The lease stands for `term`.
///
/// # Errors
/// If the statement fails.
pub async fn take(db: &Db, owner: RelayId, period: Option<Duration>, term: Duration) -> Result<Option<ScrubPass>> {
    let row = sqlx::query!(
        r#"UPDATE relay_scrub SET
               owner = $1, lease_until = now() + $3 * interval '1 millisecond',
               started_at = coalesce(started_at, now()),
               position = CASE WHEN started_at IS NULL THEN '00000000-0000-0000-0000-000000000000' ELSE position END,
               tally = CASE WHEN started_at IS NULL THEN '{}' ELSE tally END
           WHERE (owner IS NULL OR owner = $1 OR lease_until < now())
             AND (started_at IS NOT NULL
                  OR ($2::float8 IS NOT NULL AND (last_started_at IS NULL OR last_started_at + $2 * interval '1 millisecond' < now()))
                  OR wanted_at >= coalesce(last_started_at, '-infinity'))
           RETURNING started_at AS "started_at!", position, tally"#,
        owner.as_uuid(),
        period.map(millis),
        millis(term)
    )
    .fetch_optional(db.pool())
    .await?;
    Ok(row.map(|row| ScrubPass { started_at: row.started_at, position: row.position, tally: row.tally }))
}

/// Records how far the pass is and renews the lease. False if another has it by now.
///
/// # Errors
/// If the statement fails.
pub async fn advance(db: &Db, owner: RelayId, pass: &ScrubPass, term: Duration) -> Result<bool> {
    let done = sqlx::query!(
        "UPDATE relay_scrub SET position = $3, tally = $4, lease_until = now() + $5 * interval '1 millisecond'
         WHERE owner = $1 AND started_at = $2",
        owner.as_uuid(),
        pass.started_at,
        pass.position,
        pass.tally,
        millis(term)
    )
    .execute(db.pool())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Records that the pass got to its end. False if another has it by now.
///
/// # Errors
/// If the statement fails.
pub async fn finish(db: &Db, owner: RelayId, pass: &ScrubPass) -> Result<bool> {
    let done = sqlx::query!(
        "WITH ended AS (
             UPDATE relay_scrub SET owner = NULL, lease_until = '-infinity', started_at = NULL,
                    last_started_at = started_at, last_ended_at = now(), last_tally = $3
             WHERE owner = $1 AND started_at = $2
             RETURNING last_tally),
         counted AS (
             INSERT INTO total (name, label, value)
             SELECT 'verify_findings', f.kind, f.count::bigint
             FROM ended CROSS JOIN jsonb_each_text(coalesce(last_tally -> 'findings', '{}')) AS f (kind, count)
             ON CONFLICT (name, label) DO UPDATE SET value = total.value + excluded.value)
         SELECT FROM ended",
        owner.as_uuid(),
        pass.started_at,
        pass.tally
    )
    .execute(db.pool())
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Leaves the pass to another relay, where it is.
///
/// # Errors
/// If the statement fails.
pub async fn leave(db: &Db, owner: RelayId) -> Result<()> {
    sqlx::query!("UPDATE relay_scrub SET owner = NULL, lease_until = '-infinity' WHERE owner = $1", owner.as_uuid())
        .execute(db.pool())
        .await?;
    Ok(())
}

/// Asks for a pass that begins from now on.
///
/// # Errors
/// If the statement fails.
pub async fn want(db: &Db) -> Result<()> {
    sqlx::query!("UPDATE relay_scrub SET wanted_at = now()").execute(db.pool()).await?;
    Ok(())
}

/// Tells what is known of passes.
///
/// # Errors
/// If the statement fails.
pub async fn status(db: &Db) -> Result<ScrubStatus> {
    let row = sqlx::query!(
        "SELECT started_at, position, last_started_at, last_ended_at, last_tally FROM relay_scrub WHERE single"
    )
    .fetch_one(db.pool())
    .await?;
    let last = match (row.last_started_at, row.last_ended_at, row.last_tally) {
        (Some(started), Some(ended), Some(tally)) => Some((started, ended, tally)),
        _ => None,
    };
    Ok(ScrubStatus { started_at: row.started_at, position: row.position, last })
}
