//! Having keys delivered again. Writes outbox rows; takes back what `index_state` claims of
//! them; and where the sink holds a version that Postgres has yet to hand out, moves the
//! sequence past it and touches the row, so that the schema's own triggers do the rest.
//!
//! All of it can be done twice, and while relays deliver.

use sqlx::PgConnection;
use uuid::Uuid;
use waybill_domain::{CrashPoint, Kind, ProjectId, SinkName};

use crate::{Db, Result, verify::Claim};

/// How often a repair is tried that Postgres took back for somebody else's sake.
const ATTEMPTS: u32 = 5;

/// How far past the highest version seen the sequence is moved. Versions are handed out while
/// it is looked at and moved; never as many as this.
const MARGIN: i64 = 1 << 30;

/// Only one at a time moves the sequence; the number is any that nobody else uses.
const SEQUENCE_LOCK: i64 = 0x7761_7962_696c_6c01;

/// A key to be delivered again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redelivery {
    /// What it names.
    pub kind: Kind,
    /// The key.
    pub key: Uuid,
    /// The tenant.
    pub project_id: ProjectId,
    /// What `index_state` said of it: taken back unless it says something else by now.
    pub claim: Option<Claim>,
    /// The version that the sink shows, if it is above the row's: the row gets a higher one.
    pub ahead: Option<i64>,
}

/// Has keys delivered again, in one transaction. Returns how many outbox rows were made for it.
///
/// # Errors
/// If a statement fails, or other transactions kept being preferred.
pub async fn redeliver(db: &Db, sink: SinkName, keys: &[Redelivery]) -> Result<u64> {
    let mut attempt = 1;
    loop {
        match try_redeliver(db, sink, keys).await {
            Err(error) if error.was_rolled_back() && attempt < ATTEMPTS => attempt += 1,
            result => return result,
        }
    }
}

async fn try_redeliver(db: &Db, sink: SinkName, keys: &[Redelivery]) -> Result<u64> {
    if keys.is_empty() {
        return Ok(0);
    }
    let mut tx = db.pool().begin().await?;
    // In the order of kinds and keys, as settlements do it.
    for kind in [Kind::Chunk, Kind::Extraction, Kind::Entity] {
        take_back(&mut tx, sink, keys.iter().filter_map(|key| key.claim).filter(|claim| claim.kind == kind)).await?;
        touch(&mut tx, kind, keys.iter().filter(|key| key.kind == kind)).await?;
    }
    let rows = insert(&mut tx, sink, keys).await?;
    CrashPoint::Repair.hit();
    tx.commit().await?;
    Ok(rows)
}

/// Removes what `index_state` claims, as far as it is still the same.
async fn take_back(
    connection: &mut PgConnection,
    sink: SinkName,
    claims: impl Iterator<Item = Claim> + Clone,
) -> Result<()> {
    let Some(first) = claims.clone().next() else { return Ok(()) };
    sqlx::query!(
        "DELETE FROM index_state WHERE ctid = ANY(ARRAY(
             SELECT i.ctid FROM index_state i
             JOIN unnest($3::uuid[], $4::bigint[], $5::boolean[]) AS c (key, version, deleted)
               ON i.key = c.key AND i.version = c.version AND i.deleted = c.deleted
             WHERE i.sink = $1 AND i.kind = $2 ORDER BY i.key FOR UPDATE OF i))",
        sink.as_str(),
        first.kind.as_str(),
        &claims.clone().map(|claim| claim.key).collect::<Vec<_>>(),
        &claims.clone().map(|claim| claim.version).collect::<Vec<_>>(),
        &claims.map(|claim| claim.deleted).collect::<Vec<_>>()
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Gives rows a version above what the sink shows, unless they have one by now. Their triggers
/// make outbox rows.
async fn touch<'a>(
    connection: &mut PgConnection,
    kind: Kind,
    keys: impl Iterator<Item = &'a Redelivery> + Clone,
) -> Result<()> {
    let ahead = keys.filter_map(|key| Some((key.key, key.ahead?)));
    let (ids, versions): (Vec<Uuid>, Vec<i64>) = ahead.unzip();
    if ids.is_empty() {
        return Ok(());
    }
    let statement = match kind {
        Kind::Chunk => sqlx::query!(
            "UPDATE chunk SET version = version WHERE id = ANY(ARRAY(
                 SELECT r.id FROM chunk r JOIN unnest($1::uuid[], $2::bigint[]) AS a (id, version) ON r.id = a.id AND r.version <= a.version
                 ORDER BY r.id FOR UPDATE OF r))",
            &ids,
            &versions
        ),
        Kind::Extraction => sqlx::query!(
            "UPDATE extraction SET version = version WHERE id = ANY(ARRAY(
                 SELECT r.id FROM extraction r JOIN unnest($1::uuid[], $2::bigint[]) AS a (id, version) ON r.id = a.id AND r.version <= a.version
                 ORDER BY r.id FOR UPDATE OF r))",
            &ids,
            &versions
        ),
        Kind::Entity => sqlx::query!(
            "UPDATE entity SET version = version WHERE id = ANY(ARRAY(
                 SELECT r.id FROM entity r JOIN unnest($1::uuid[], $2::bigint[]) AS a (id, version) ON r.id = a.id AND r.version <= a.version
                 ORDER BY r.id FOR UPDATE OF r))",
            &ids,
            &versions
        ),
        // Requests are no points.
        Kind::LlmRequest => return Ok(()),
    };
    statement.execute(connection).await?;
    Ok(())
}

async fn insert(connection: &mut PgConnection, sink: SinkName, keys: &[Redelivery]) -> Result<u64> {
    let kinds: Vec<String> = keys.iter().map(|key| key.kind.as_str().to_owned()).collect();
    let projects: Vec<Uuid> = keys.iter().map(|key| key.project_id.as_uuid()).collect();
    let done = sqlx::query!(
        "INSERT INTO outbox (sink, lane, kind, key, project_id)
         SELECT $1, outbox_lane(d.key), d.kind, d.key, d.project_id
         FROM unnest($2::text[], $3::uuid[], $4::uuid[]) AS d (kind, key, project_id)",
        sink.as_str(),
        &kinds,
        &keys.iter().map(|key| key.key).collect::<Vec<_>>(),
        &projects
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}

/// Makes sure that versions handed out from now on are above those of `seen`, which a sink shows:
/// Postgres may have been restored from a time before them. Never moves the sequence back. A
/// version that is more than `lead_max` ahead is passed over: no row ever had it.
///
/// # Errors
/// If a statement fails.
pub async fn pass_versions(db: &Db, seen: &[i64], lead_max: i64) -> Result<()> {
    let mut tx = db.pool().begin().await?;
    sqlx::query!("SELECT pg_advisory_xact_lock($1)", SEQUENCE_LOCK).execute(&mut *tx).await?;
    sqlx::query!(
        "SELECT setval('row_version', ahead.version + $3::bigint)
         FROM (SELECT max(s.version) AS version FROM unnest($1::bigint[]) AS s (version), row_version r
               WHERE s.version > r.last_value AND s.version - $2::bigint <= r.last_value) AS ahead
         WHERE ahead.version IS NOT NULL",
        seen,
        lead_max,
        MARGIN
    )
    .fetch_optional(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(())
}
