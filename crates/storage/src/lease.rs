//! Who delivers which lanes. Time is Postgres' own, so the clocks of relays don't matter.

use std::time::Duration;

use chrono::{DateTime, Utc};
use waybill_domain::{Lane, RelayId, SinkName};

use crate::{
    Db, Result,
    outbox::{lane, millis, within},
};

/// A lane that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneLease {
    /// The lane.
    pub lane: Lane,
    /// Grows with every change of owner.
    pub epoch: i64,
}

/// A lane that was just taken, with where its last owner left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TakenLane {
    /// The lease.
    pub lease: LaneLease,
    /// Everything at or below it is settled.
    pub closed_seq: i64,
}

/// What a heartbeat found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// Relays that are alive, this one included.
    pub members: u32,
    /// How many of them come before this one, by id.
    pub rank: u32,
    /// The leases that still stand and were renewed.
    pub held: Vec<LaneLease>,
    /// Lanes that can be taken: nobody holds them, the lease has run out, or they are this
    /// relay's own from before it lost track of them.
    pub free: u32,
    /// When the first lease of another relay ends unless it is renewed.
    pub next_expiry: Option<Duration>,
}

/// Says that `owner` is alive and renews its leases, both for `term`. `still_for` is the pause, by
/// when it began, that the owner has seen and since which it has nothing under way.
///
/// A lease that somebody else has taken meanwhile is not among those that come back.
///
/// # Errors
/// If Postgres is away or `timeout` passes.
pub async fn heartbeat(
    db: &Db,
    sink: SinkName,
    owner: RelayId,
    held: &[LaneLease],
    still_for: Option<DateTime<Utc>>,
    term: Duration,
    timeout: Duration,
) -> Result<Heartbeat> {
    let (lanes, epochs) = split(held);
    let term_ms = millis(term);
    within(timeout, async {
        let mut tx = db.pool().begin().await?;
        sqlx::query!(
            "INSERT INTO relay_member (sink, owner, lease_until, still_for)
             VALUES ($1, $2, now() + $3 * interval '1 millisecond', $4)
             ON CONFLICT (sink, owner) DO UPDATE SET lease_until = EXCLUDED.lease_until, still_for = EXCLUDED.still_for",
            sink.as_str(),
            owner.as_uuid(),
            term_ms,
            still_for
        )
        .execute(&mut *tx)
        .await?;
        let renewed = sqlx::query!(
            r#"UPDATE outbox_cursor c SET lease_until = now() + $5 * interval '1 millisecond'
               FROM unnest($3::smallint[], $4::bigint[]) AS h (lane, epoch)
               WHERE c.sink = $1 AND c.owner = $2 AND c.lane = h.lane AND c.epoch = h.epoch
               RETURNING c.lane, c.epoch"#,
            sink.as_str(),
            owner.as_uuid(),
            &lanes,
            &epochs,
            term_ms
        )
        .fetch_all(&mut *tx)
        .await?;
        let counts = sqlx::query!(
            r#"SELECT (SELECT count(*) FROM relay_member WHERE sink = $1 AND lease_until > now()) AS "members!",
                      (SELECT count(*) FROM relay_member WHERE sink = $1 AND lease_until > now() AND owner < $2) AS "rank!",
                      (SELECT count(*) FROM outbox_cursor WHERE sink = $1 AND (owner IS NULL OR lease_until <= now() OR (owner = $2 AND lane <> ALL($3)))) AS "free!",
                      (SELECT extract(epoch FROM min(lease_until) - now())::float8
                       FROM outbox_cursor WHERE sink = $1 AND owner <> $2 AND lease_until > now()) AS expiry_s"#,
            sink.as_str(),
            owner.as_uuid(),
            &lanes
        )
        .fetch_one(&mut *tx)
        .await?;
        tx.commit().await?;
        let held = renewed
            .into_iter()
            .map(|row| Ok(LaneLease { lane: lane(row.lane)?, epoch: row.epoch }))
            .collect::<Result<Vec<_>>>()?;
        let next_expiry = counts.expiry_s.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        Ok(Heartbeat { members: small(counts.members), rank: small(counts.rank), held, free: small(counts.free), next_expiry })
    })
    .await
}

/// Takes up to `most` lanes that nobody holds, whose lease has run out, or that are this
/// relay's own and not among `held`.
///
/// # Errors
/// If Postgres is away or `timeout` passes.
pub async fn take(
    db: &Db,
    sink: SinkName,
    owner: RelayId,
    held: &[LaneLease],
    most: u32,
    term: Duration,
    timeout: Duration,
) -> Result<Vec<TakenLane>> {
    let (held, _) = split(held);
    within(timeout, async {
        let rows = sqlx::query!(
            "UPDATE outbox_cursor c
             SET owner = $2, epoch = c.epoch + 1, lease_until = now() + $4 * interval '1 millisecond'
             FROM (SELECT lane FROM outbox_cursor
                   WHERE sink = $1 AND (owner IS NULL OR lease_until <= now() OR (owner = $2 AND lane <> ALL($5)))
                   ORDER BY lane LIMIT $3 FOR UPDATE SKIP LOCKED) AS free
             WHERE c.sink = $1 AND c.lane = free.lane
             RETURNING c.lane, c.epoch, c.closed_seq",
            sink.as_str(),
            owner.as_uuid(),
            i64::from(most),
            millis(term),
            &held
        )
        .fetch_all(db.pool())
        .await?;
        rows.into_iter()
            .map(|row| {
                Ok(TakenLane {
                    lease: LaneLease { lane: lane(row.lane)?, epoch: row.epoch },
                    closed_seq: row.closed_seq,
                })
            })
            .collect()
    })
    .await
}

/// Gives lanes back, so that another relay can take them at once.
///
/// # Errors
/// If Postgres is away or `timeout` passes.
pub async fn release(db: &Db, sink: SinkName, owner: RelayId, leases: &[LaneLease], timeout: Duration) -> Result<()> {
    let (lanes, epochs) = split(leases);
    within(timeout, async {
        sqlx::query!(
            "UPDATE outbox_cursor c SET owner = NULL, lease_until = '-infinity'
             FROM unnest($3::smallint[], $4::bigint[]) AS h (lane, epoch)
             WHERE c.sink = $1 AND c.owner = $2 AND c.lane = h.lane AND c.epoch = h.epoch",
            sink.as_str(),
            owner.as_uuid(),
            &lanes,
            &epochs
        )
        .execute(db.pool())
        .await?;
        Ok(())
    })
    .await
}

/// Ends the membership of `owner`, and sweeps members that have been dead for a day.
///
/// # Errors
/// If Postgres is away or `timeout` passes.
pub async fn leave(db: &Db, sink: SinkName, owner: RelayId, timeout: Duration) -> Result<()> {
    within(timeout, async {
        sqlx::query!(
            "DELETE FROM relay_member WHERE sink = $1 AND (owner = $2 OR lease_until < now() - interval '1 day')",
            sink.as_str(),
            owner.as_uuid()
        )
        .execute(db.pool())
        .await?;
        Ok(())
    })
    .await
}

pub(crate) fn split(leases: &[LaneLease]) -> (Vec<i16>, Vec<i64>) {
    leases.iter().map(|lease| (i16::from(lease.lane.get()), lease.epoch)).unzip()
}

fn small(count: i64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
