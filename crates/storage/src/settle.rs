//! Recording what a sink confirmed.

use std::{collections::HashSet, time::Duration};

use sqlx::PgConnection;
use uuid::Uuid;
use waybill_domain::{CrashPoint, ErrorClass, Kind, Lane, ProjectId, RelayId, SinkName};

use crate::{
    Db, Result,
    lease::{LaneLease, split},
    outbox::{lane, millis, within},
};

/// What a sink confirmed of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confirmed {
    /// What the key names.
    pub kind: Kind,
    /// The key.
    pub key: Uuid,
    /// The version that the sink shows now; `None` if it shows nothing of the key.
    pub version: Option<i64>,
    /// Under which name the sink holds it, where it gives names: the message's id.
    pub reference: Option<String>,
    /// The generation of the index that the delivery wrote to, see [`crate::index`]; 0 for others.
    pub generation: i32,
}

/// A key that the sink refused while it took others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// What the key names.
    pub kind: Kind,
    /// The key.
    pub key: Uuid,
    /// The tenant.
    pub project_id: ProjectId,
    /// A row of the log that asked for the key, if one did: its trace is noted.
    pub seq: Option<i64>,
    /// Deliveries that failed, this one included.
    pub attempts: u32,
    /// When it is tried again; `None` gives it up: a dead letter says why.
    pub retry_in: Option<Duration>,
    /// For people; holds no document text and no secret.
    pub error: String,
    /// What the error means for a retry.
    pub class: ErrorClass,
}

/// A lane's cursor, to be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CursorMove {
    /// The lane, as it is held.
    pub lease: LaneLease,
    /// Everything at or below it is settled, and nothing more can appear there.
    pub closed_seq: i64,
}

/// What is settled together, in one transaction.
#[derive(Debug, Clone, Default)]
pub struct Settlement {
    /// The lanes of the keys in `confirmed`, as they were held when delivery began.
    pub leases: Vec<LaneLease>,
    /// What was confirmed.
    pub confirmed: Vec<Confirmed>,
    /// What was refused. Its rows of the log are done with: from here on, it is found in
    /// `outbox_retry` or among the dead letters.
    pub refused: Vec<Refused>,
    /// Cursors that have moved since they were last written.
    pub cursors: Vec<CursorMove>,
}

/// Settles, and returns the lanes among `settlement.leases` that are still held by `owner`
/// in that epoch. What belongs to any other lane is not written.
///
/// # Errors
/// If Postgres is away or `timeout` passes: then nothing is known to be settled, and all of
/// it may be done again.
pub async fn settle(
    db: &Db,
    sink: SinkName,
    owner: RelayId,
    settlement: &Settlement,
    timeout: Duration,
) -> Result<HashSet<Lane>> {
    let (lanes, epochs) = split(&settlement.leases);
    within(timeout, async {
        let mut tx = db.pool().begin().await?;
        // A share lock rather than an update: a taker has to wait for this transaction just
        // the same, and under a long transaction elsewhere no dead versions pile up.
        let held: HashSet<Lane> = sqlx::query_scalar!(
            "SELECT c.lane FROM outbox_cursor c JOIN unnest($3::smallint[], $4::bigint[]) AS h (lane, epoch) USING (lane, epoch)
             WHERE c.sink = $1 AND c.owner = $2 ORDER BY c.lane FOR SHARE OF c",
            sink.as_str(),
            owner.as_uuid(),
            &lanes,
            &epochs
        )
        .fetch_all(&mut *tx)
        .await?
        .into_iter()
        .map(lane)
        .collect::<Result<_>>()?;

        let mut confirmed: Vec<&Confirmed> = settlement.confirmed.iter().filter(|c| held.contains(&Lane::of(c.key))).collect();
        // One order for all, so that two settlements can't wait for each other.
        confirmed.sort_unstable_by_key(|c| (c.kind, c.key));
        if sink == SinkName::Llm {
            // What the queue holds is written on the requests themselves.
            record_queued(&mut tx, &confirmed).await?;
        } else if !confirmed.is_empty() {
            let kinds: Vec<String> = confirmed.iter().map(|c| c.kind.as_str().to_owned()).collect();
            let keys: Vec<Uuid> = confirmed.iter().map(|c| c.key).collect();
            let versions: Vec<i64> = confirmed.iter().map(|c| c.version.unwrap_or(0)).collect();
            let deleted: Vec<bool> = confirmed.iter().map(|c| c.version.is_none()).collect();
            let generations: Vec<i32> = confirmed.iter().map(|c| c.generation).collect();
            sqlx::query!(
                "INSERT INTO index_state (sink, kind, key, version, deleted, generation)
                 SELECT $1, kind, key, version, deleted, generation
                 FROM unnest($2::text[], $3::uuid[], $4::bigint[], $5::boolean[], $6::integer[])
                     AS c (kind, key, version, deleted, generation)
                 ON CONFLICT (sink, kind, key) DO UPDATE
                 SET version = greatest(index_state.version, EXCLUDED.version), deleted = EXCLUDED.deleted,
                     generation = EXCLUDED.generation, confirmed_at = now()",
                sink.as_str(),
                &kinds,
                &keys,
                &versions,
                &deleted,
                &generations
            )
            .execute(&mut *tx)
            .await?;
        }
        clear_failures(&mut tx, sink, &confirmed).await?;
        let refused = settlement.refused.iter().filter(|r| held.contains(&Lane::of(r.key)));
        record_refused(&mut tx, sink, refused).await?;
        if !settlement.cursors.is_empty() {
            let (lanes, epochs) = split(&settlement.cursors.iter().map(|cursor| cursor.lease).collect::<Vec<_>>());
            let closed: Vec<i64> = settlement.cursors.iter().map(|cursor| cursor.closed_seq).collect();
            sqlx::query!(
                "UPDATE outbox_cursor c SET closed_seq = greatest(c.closed_seq, m.closed_seq)
                 FROM unnest($3::smallint[], $4::bigint[], $5::bigint[]) AS m (lane, epoch, closed_seq)
                 WHERE c.sink = $1 AND c.owner = $2 AND c.lane = m.lane AND c.epoch = m.epoch",
                sink.as_str(),
                owner.as_uuid(),
                &lanes,
                &epochs,
                &closed
            )
            .execute(&mut *tx)
            .await?;
        }
        // Moving cursors alone is no boundary: what they say is true before and after.
        let has_outcome = !confirmed.is_empty() || !settlement.refused.is_empty();
        if has_outcome {
            CrashPoint::SettleBeforeCommit.hit();
        }
        tx.commit().await?;
        if has_outcome {
            CrashPoint::SettleAfterCommit.hit();
        }
        Ok(held)
    })
    .await
}

/// Forgets the failures of keys that were delivered after all.
async fn clear_failures(connection: &mut PgConnection, sink: SinkName, confirmed: &[&Confirmed]) -> Result<()> {
    if confirmed.is_empty() {
        return Ok(());
    }
    // Nearly always there are none, and the keys need not be sent.
    let any = sqlx::query!(
        r#"SELECT EXISTS (SELECT FROM outbox_retry WHERE sink = $1) AS "retries!",
                  EXISTS (SELECT FROM dead_letter WHERE sink = $1) AS "letters!""#,
        sink.as_str()
    )
    .fetch_one(&mut *connection)
    .await?;
    let kinds: Vec<String> = confirmed.iter().map(|c| c.kind.as_str().to_owned()).collect();
    let keys: Vec<Uuid> = confirmed.iter().map(|c| c.key).collect();
    if any.retries {
        sqlx::query!(
            "DELETE FROM outbox_retry r USING unnest($2::text[], $3::uuid[]) AS c (kind, key)
             WHERE r.sink = $1 AND r.kind = c.kind AND r.key = c.key",
            sink.as_str(),
            &kinds,
            &keys
        )
        .execute(&mut *connection)
        .await?;
    }
    if any.letters {
        // A request that no model answered was delivered all the same: its letter stays.
        sqlx::query!(
            "DELETE FROM dead_letter d USING unnest($2::text[], $3::uuid[]) AS c (kind, key)
             WHERE d.sink = $1 AND d.kind = c.kind AND d.key = c.key
               AND NOT EXISTS (SELECT FROM llm_request r WHERE d.kind = 'llm_request' AND r.id = d.key AND r.state = 'dead')",
            sink.as_str(),
            &kinds,
            &keys
        )
        .execute(connection)
        .await?;
    }
    Ok(())
}

/// Writes down what was refused: to be tried again, or given up.
async fn record_refused(
    connection: &mut PgConnection,
    sink: SinkName,
    refused: impl Iterator<Item = &Refused>,
) -> Result<()> {
    for key in refused {
        let attempts = i32::try_from(key.attempts).unwrap_or(i32::MAX);
        if let Some(wait) = key.retry_in {
            sqlx::query!(
                "INSERT INTO outbox_retry (sink, lane, kind, key, project_id, attempts, next_at, error, error_class, trace_id)
                 VALUES ($1, outbox_lane($3), $2, $3, $4, $5, now() + $6 * interval '1 millisecond', $7, $8,
                         (SELECT trace_id_of(o.headers) FROM outbox o WHERE o.sink = $1 AND o.seq = $9))
                 ON CONFLICT (sink, kind, key) DO UPDATE
                 SET attempts = greatest(outbox_retry.attempts + 1, excluded.attempts), next_at = excluded.next_at, error = excluded.error,
                     error_class = excluded.error_class, trace_id = coalesce(outbox_retry.trace_id, excluded.trace_id),
                     last_failed_at = now()",
                sink.as_str(),
                key.kind.as_str(),
                key.key,
                key.project_id.as_uuid(),
                attempts,
                millis(wait),
                key.error,
                key.class.as_str(),
                key.seq
            )
            .execute(&mut *connection)
            .await?;
        } else {
            sqlx::query!(
                "WITH tried AS (
                     DELETE FROM outbox_retry WHERE sink = $1 AND kind = $2 AND key = $3 RETURNING first_failed_at, trace_id)
                 INSERT INTO dead_letter (sink, kind, key, project_id, attempts, error, error_class, trace_id, first_failed_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7,
                         coalesce((SELECT trace_id FROM tried),
                                  (SELECT trace_id_of(o.headers) FROM outbox o WHERE o.sink = $1 AND o.seq = $8)),
                         coalesce((SELECT first_failed_at FROM tried), now()))
                 ON CONFLICT (sink, kind, key) DO UPDATE
                 SET attempts = excluded.attempts, error = excluded.error, error_class = excluded.error_class,
                     last_failed_at = now()",
                sink.as_str(),
                key.kind.as_str(),
                key.key,
                key.project_id.as_uuid(),
                attempts,
                key.error,
                key.class.as_str(),
                key.seq
            )
            .execute(&mut *connection)
            .await?;
        }
    }
    Ok(())
}

/// Records which requests are with Redis now. A worker may have been faster: what is no longer
/// pending is left as it is.
async fn record_queued(connection: &mut PgConnection, confirmed: &[&Confirmed]) -> Result<()> {
    let queued = || confirmed.iter().filter(|c| c.reference.is_some());
    sqlx::query!(
        "UPDATE llm_request r SET state = 'queued', stream_id = q.stream_id, updated_at = now()
         FROM unnest($1::uuid[], $2::text[]) AS q (id, stream_id)
         WHERE r.id = q.id AND r.state = 'pending'",
        &queued().map(|c| c.key).collect::<Vec<_>>(),
        &queued().filter_map(|c| c.reference.clone()).collect::<Vec<_>>()
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Returns what `sink` confirmed of those `keys` of which it confirmed anything, in no
/// particular order.
///
/// # Errors
/// If the statement fails.
pub async fn confirmed(db: &Db, sink: SinkName, kind: Kind, keys: &[Uuid]) -> Result<Vec<Confirmed>> {
    let rows = sqlx::query!(
        r#"SELECT k.key AS "key!", i.version, i.deleted, i.generation FROM unnest($3::uuid[]) AS k (key) CROSS JOIN LATERAL (
               SELECT s.version, s.deleted, s.generation FROM index_state s
               WHERE s.sink = $1 AND s.kind = $2 AND s.key = k.key LIMIT 1) AS i"#,
        sink.as_str(),
        kind.as_str(),
        keys
    )
    .fetch_all(db.pool())
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Confirmed {
            kind,
            key: row.key,
            version: (!row.deleted).then_some(row.version),
            reference: None,
            generation: row.generation,
        })
        .collect())
}
