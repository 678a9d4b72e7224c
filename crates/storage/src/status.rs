//! What a sink has still to confirm, for people.

use chrono::{DateTime, Utc};
use uuid::Uuid;
use waybill_domain::{Lane, SinkName};

use crate::{Db, Result, outbox::lane};

/// Rows looked at before a status stops counting: some 100 ms of work.
pub const LAG_ROWS_MAX: i64 = 100_000;

/// One lane's cursor and lag.
#[derive(Debug, Clone)]
pub struct LaneStatus {
    /// The lane.
    pub lane: Lane,
    /// Who holds it; `None` if nobody does, or the lease has run out.
    pub owner: Option<Uuid>,
    /// Grows with every change of owner.
    pub epoch: i64,
    /// Everything at or below it is settled.
    pub closed_seq: i64,
    /// Until when the lease stands.
    pub lease_until: Option<DateTime<Utc>>,
    /// Rows above `closed_seq` whose key the sink has yet to confirm as it is now.
    pub lag_rows: i64,
}

/// A sink's lag.
#[derive(Debug, Clone)]
pub struct SinkLag {
    /// Every lane, ascending.
    pub lanes: Vec<LaneStatus>,
    /// Whether the count stopped at [`LAG_ROWS_MAX`] rows.
    pub capped: bool,
    /// When the transaction of the oldest unconfirmed change began.
    pub oldest_unconfirmed_at: Option<DateTime<Utc>>,
    /// Postgres' time.
    pub now: DateTime<Utc>,
}

/// Measures what `sink` has still to confirm.
///
/// A row counts while its key differs from what the sink confirmed, so rows that are
/// settled behind somebody's long transaction don't.
///
/// # Errors
/// If a statement fails.
pub async fn sink_lag(db: &Db, sink: SinkName) -> Result<SinkLag> {
    let mut tx = db.pool().begin().await?;
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY").execute(&mut *tx).await?;
    let now = sqlx::query_scalar!(r#"SELECT now() AS "now!""#).fetch_one(&mut *tx).await?;
    let cursors = sqlx::query!(
        r#"SELECT lane, CASE WHEN lease_until > now() THEN owner END AS owner, epoch, closed_seq,
                  CASE WHEN lease_until > now() THEN lease_until END AS lease_until
           FROM outbox_cursor WHERE sink = $1 ORDER BY lane"#,
        sink.as_str()
    )
    .fetch_all(&mut *tx)
    .await?;
    let lags = sqlx::query!(
        r#"WITH unread AS MATERIALIZED (
               SELECT o.lane, o.kind, o.key, o.created_at
               FROM outbox o JOIN outbox_cursor c ON c.sink = $1 AND c.lane = o.lane AND o.seq > c.closed_seq
               WHERE o.sink = $1 AND o.seq > (SELECT min(closed_seq) FROM outbox_cursor WHERE sink = $1)
               ORDER BY o.seq LIMIT $2)
           SELECT u.lane AS "lane!", count(*) AS "looked!",
                  count(*) FILTER (WHERE d.dirty) AS "lag!",
                  min(u.created_at) FILTER (WHERE d.dirty) AS oldest
           FROM unread u CROSS JOIN LATERAL unconfirmed($1, u.kind, u.key, u.created_at) AS d
           GROUP BY u.lane"#,
        sink.as_str(),
        LAG_ROWS_MAX
    )
    .fetch_all(&mut *tx)
    .await?;
    tx.commit().await?;

    let looked: i64 = lags.iter().map(|lag| lag.looked).sum();
    let lanes = cursors
        .into_iter()
        .map(|cursor| {
            Ok(LaneStatus {
                lane: lane(cursor.lane)?,
                owner: cursor.owner,
                epoch: cursor.epoch,
                closed_seq: cursor.closed_seq,
                lease_until: cursor.lease_until,
                lag_rows: lags.iter().find(|lag| lag.lane == cursor.lane).map_or(0, |lag| lag.lag),
            })
        })
        .collect::<Result<_>>()?;
    Ok(SinkLag {
        lanes,
        capped: looked >= LAG_ROWS_MAX,
        oldest_unconfirmed_at: lags.iter().filter_map(|lag| lag.oldest).min(),
        now,
    })
}
