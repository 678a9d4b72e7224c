//! Reading the outbox as a log. Rows are never updated; what is known of their progress
//! lives in the cursors and in the reader's memory.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;
use waybill_domain::{Kind, Lane, ProjectId, SinkName};

use crate::{Db, Result, StorageError};

/// One row of the log: what `sink` shows of `key` may be out of date.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxRow {
    /// Position in the log. Handed out before the commit, so rows may appear out of order.
    pub seq: i64,
    /// The lane of the key.
    pub lane: Lane,
    /// What the key names.
    pub kind: Kind,
    /// The id of the row that changed.
    pub key: Uuid,
    /// The tenant.
    pub project_id: ProjectId,
    /// When the transaction that changed it began.
    pub created_at: DateTime<Utc>,
    /// The trace context and request id of that transaction, as JSON. Rows of one transaction
    /// share it.
    pub headers: Option<Arc<str>>,
}

/// Which transactions had ended at some moment: Postgres' `pg_snapshot`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// One past the last xid that had ended. Running transactions can be above it.
    pub xmax: u64,
    /// Running top-level transactions below `xmax`, ascending.
    pub running: Vec<u64>,
}

impl Snapshot {
    /// Says whether the transaction had ended, one way or the other.
    #[must_use]
    pub fn has_ended(&self, xid: u64) -> bool {
        xid < self.xmax && self.running.binary_search(&xid).is_err()
    }

    fn parse(text: &str) -> Result<Self> {
        let corrupt = || StorageError::Corrupt(format!("unreadable snapshot {text:?}"));
        let mut parts = text.splitn(3, ':').skip(1);
        let xmax = parts.next().and_then(|xmax| xmax.parse().ok()).ok_or_else(corrupt)?;
        let running = parts.next().ok_or_else(corrupt)?;
        let mut running = running
            .split(',')
            .filter(|xid| !xid.is_empty())
            .map(|xid| xid.parse().map_err(|_| corrupt()))
            .collect::<Result<Vec<u64>>>()?;
        running.sort_unstable();
        Ok(Self { xmax, running })
    }
}

/// Where the log ends, and who was writing just then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tail {
    /// The last position handed out, committed or not; 0 before the first. (A sequence that was
    /// never asked shows the value it will hand out first.)
    pub last_seq: i64,
    /// Taken after `last_seq` was read.
    pub snapshot: Snapshot,
    /// Since when the sink is paused, if it is.
    pub paused_at: Option<DateTime<Utc>>,
    /// Whether somebody loads very much.
    pub is_bulk: bool,
}

/// A [`Tail`] that bounds its writers: every row at or below `tail.last_seq` is of a
/// transaction with an xid below `xid`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// The end of the log at that moment.
    pub tail: Tail,
    /// An xid of the reader's own, taken after `tail.last_seq` was read.
    pub xid: u64,
}

/// Reads the log over one connection of its own.
///
/// The connection is never replaced: a server that crashed may hand out positions again
/// that it had handed out just before, so whatever a reader remembers ends with its
/// connection.
#[derive(Debug)]
pub struct OutboxReader {
    connection: PgConnection,
    timeout: Duration,
}

impl OutboxReader {
    /// Opens the connection. Each call on it fails after `timeout`.
    ///
    /// # Errors
    /// If Postgres is away.
    pub async fn open(db: &Db, timeout: Duration) -> Result<Self> {
        let options = db.connect_options();
        let mut connection = within(timeout, async { Ok(PgConnection::connect_with(&options).await?) }).await?;
        // A fence takes an xid; nothing is lost if its commit record is.
        within(timeout, async { Ok(sqlx::query("SET synchronous_commit = off").execute(&mut connection).await?) })
            .await?;
        Ok(Self { connection, timeout })
    }

    /// Returns where the log of `sink` ends. Costs no xid.
    ///
    /// # Errors
    /// If the connection or the statement fails.
    pub async fn tail(&mut self, sink: SinkName) -> Result<Tail> {
        let connection = &mut self.connection;
        within(self.timeout, async {
            let row = sqlx::query!(
                r#"SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS "last_seq!",
                          pg_current_snapshot()::text AS "snapshot!",
                          (SELECT paused_at FROM sink_pause WHERE sink = $1 AND (until IS NULL OR until > now())) AS paused_at,
                          EXISTS (SELECT FROM bulk_load WHERE until > now()) AS "is_bulk!"
                   FROM outbox_seq"#,
                sink.as_str()
            )
            .fetch_one(connection)
            .await?;
            Ok(Tail { last_seq: row.last_seq, snapshot: Snapshot::parse(&row.snapshot)?, paused_at: row.paused_at, is_bulk: row.is_bulk })
        })
        .await
    }

    /// Takes a fence. The two statements must stay two: the xid has to be taken after the
    /// position was read.
    ///
    /// # Errors
    /// If the connection or a statement fails.
    pub async fn fence(&mut self, sink: SinkName) -> Result<Fence> {
        let connection = &mut self.connection;
        within(self.timeout, async {
            let last_seq = sqlx::query_scalar!(
                r#"SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS "last_seq!" FROM outbox_seq"#
            )
            .fetch_one(&mut *connection)
            .await?;
            let row = sqlx::query!(
                r#"SELECT pg_current_xact_id()::text AS "xid!", pg_current_snapshot()::text AS "snapshot!",
                          (SELECT paused_at FROM sink_pause WHERE sink = $1 AND (until IS NULL OR until > now())) AS paused_at,
                          EXISTS (SELECT FROM bulk_load WHERE until > now()) AS "is_bulk!""#,
                sink.as_str()
            )
            .fetch_one(connection)
            .await?;
            let xid = row.xid.parse().map_err(|_| StorageError::Corrupt(format!("unreadable xid {:?}", row.xid)))?;
            let snapshot = Snapshot::parse(&row.snapshot)?;
            Ok(Fence { tail: Tail { last_seq, snapshot, paused_at: row.paused_at, is_bulk: row.is_bulk }, xid })
        })
        .await
    }

    /// Reads the rows of `lanes` in (`after`, `upto`], ascending, at most `limit`.
    ///
    /// # Errors
    /// If the connection or the statement fails, or a row holds an unknown name.
    pub async fn read(
        &mut self,
        sink: SinkName,
        after: i64,
        upto: i64,
        lanes: &[Lane],
        limit: i64,
    ) -> Result<Vec<OutboxRow>> {
        let lanes: Vec<i16> = lanes.iter().map(|lane| lane.get().into()).collect();
        let connection = &mut self.connection;
        within(self.timeout, async {
            let rows = sqlx::query!(
                "SELECT seq, lane, kind, key, project_id, created_at, headers FROM outbox
                 WHERE sink = $1 AND seq > $2 AND seq <= $3 AND lane = ANY($4)
                 ORDER BY seq LIMIT $5",
                sink.as_str(),
                after,
                upto,
                &lanes,
                limit
            )
            .fetch_all(connection)
            .await?;
            let mut last: Option<Arc<str>> = None;
            rows.into_iter()
                .map(|row| {
                    if last.as_deref() != row.headers.as_deref() {
                        last = row.headers.map(Arc::from);
                    }
                    Ok(OutboxRow {
                        seq: row.seq,
                        lane: lane(row.lane)?,
                        kind: row
                            .kind
                            .parse()
                            .map_err(|error| StorageError::Corrupt(format!("outbox {}: {error}", row.seq)))?,
                        key: row.key,
                        project_id: ProjectId::from_uuid(row.project_id),
                        created_at: row.created_at,
                        headers: last.clone(),
                    })
                })
                .collect()
        })
        .await
    }

    /// Counts the rows of `lanes` in (`after`, `upto`].
    ///
    /// # Errors
    /// If the connection or the statement fails.
    pub async fn count(&mut self, sink: SinkName, after: i64, upto: i64, lanes: &[Lane]) -> Result<u64> {
        let lanes: Vec<i16> = lanes.iter().map(|lane| lane.get().into()).collect();
        let connection = &mut self.connection;
        within(self.timeout, async {
            let count = sqlx::query_scalar!(
                r#"SELECT count(*) AS "count!" FROM outbox WHERE sink = $1 AND seq > $2 AND seq <= $3 AND lane = ANY($4)"#,
                sink.as_str(),
                after,
                upto,
                &lanes
            )
            .fetch_one(connection)
            .await?;
            Ok(count.unsigned_abs())
        })
        .await
    }
}

pub(crate) fn lane(lane: i16) -> Result<Lane> {
    u8::try_from(lane).ok().and_then(Lane::new).ok_or_else(|| StorageError::Corrupt(format!("no such lane: {lane}")))
}

#[expect(clippy::cast_precision_loss, reason = "a span of 2^53 ms does not occur")]
pub(crate) fn millis(duration: Duration) -> f64 {
    duration.as_millis() as f64
}

/// Bounds a wait for Postgres: a half-open connection answers nothing for minutes.
pub(crate) async fn within<T>(timeout: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(timeout, work).await {
        Ok(result) => result,
        Err(_) => Err(StorageError::Timeout(timeout)),
    }
}

/// Deletes settled rows older than `retention`: at most `step` of those at or below every
/// lane's `closed_seq` and above `after`.
///
/// Returns the position up to which nothing is left (the next call's `after`), and how many
/// rows were deleted.
///
/// # Errors
/// If the statement fails.
pub async fn trim(db: &Db, sink: SinkName, after: i64, retention: Duration, step: i64) -> Result<(i64, u64)> {
    let row = sqlx::query!(
        r#"WITH old AS MATERIALIZED (
               SELECT seq FROM outbox
               WHERE sink = $1 AND seq > $2
                 AND seq <= (SELECT min(closed_seq) FROM outbox_cursor WHERE sink = $1)
                 AND created_at < now() - $3 * interval '1 millisecond'
               ORDER BY seq LIMIT $4),
           gone AS (
               DELETE FROM outbox WHERE sink = $1 AND seq IN (SELECT seq FROM old) RETURNING seq)
           SELECT coalesce(max(seq), $2) AS "upto!", count(*) AS "count!" FROM gone"#,
        sink.as_str(),
        after,
        millis(retention),
        step
    )
    .fetch_one(db.pool())
    .await?;
    Ok((row.upto, row.count.unsigned_abs()))
}

/// Deletes at most `step` tombstones that are older than `retention`.
///
/// # Errors
/// If the statement fails.
pub async fn trim_tombstones(db: &Db, retention: Duration, step: i64) -> Result<u64> {
    let done = sqlx::query!(
        "DELETE FROM index_state WHERE deleted AND ctid = ANY(ARRAY(
             SELECT ctid FROM index_state
             WHERE deleted AND confirmed_at < now() - $1 * interval '1 millisecond' LIMIT $2))",
        millis(retention),
        step
    )
    .execute(db.pool())
    .await?;
    Ok(done.rows_affected())
}

/// Returns the last position handed out, committed or not.
///
/// # Errors
/// If the statement fails.
pub async fn last_seq(db: &Db) -> Result<i64> {
    Ok(sqlx::query_scalar!(r#"SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS "last_seq!" FROM outbox_seq"#)
        .fetch_one(db.pool())
        .await?)
}

/// Returns up to where all lanes of `sink` are settled, with nothing more to appear there.
///
/// # Errors
/// If the statement fails.
pub async fn closed_seq(db: &Db, sink: SinkName) -> Result<i64> {
    Ok(sqlx::query_scalar!(r#"SELECT min(closed_seq) AS "closed!" FROM outbox_cursor WHERE sink = $1"#, sink.as_str())
        .fetch_one(db.pool())
        .await?)
}
