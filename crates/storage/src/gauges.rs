//! What metrics say of the database. Each reading costs little however much the tables hold: it
//! looks at some thousand rows at the most, through an index, and Postgres ends it after
//! [`STATEMENT_MS`]. Nobody who scrapes waits for it.

use sqlx::{PgConnection, Postgres, Transaction};
use waybill_domain::SinkName;

use crate::{Db, Result, backlog};

/// How long a statement may take: some milliseconds is usual.
pub const STATEMENT_MS: u32 = 2_000;

/// Rows of the log looked at. With more, how many there are is estimated; the oldest is among
/// the first in any case.
const LOG_ROWS_MAX: i64 = 10_000;

/// Rows of a table counted before the count stops: what is shown then means "or more".
const COUNT_MAX: i64 = 100_000;

/// Jobs looked at, the newest first.
const JOBS_MAX: i64 = 500;

/// Requests of a job and state that are counted.
const REQUESTS_MAX: i64 = 10_000;

/// How a sink is behind.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SinkGauges {
    /// Rows of the log whose key the sink has yet to confirm as it is now.
    pub lag_rows: u64,
    /// Age of the oldest change whose key was not refused before, 0 if there is none.
    pub lag_s: f64,
    /// Age of the oldest change that is not confirmed and not given up, 0 if there is none.
    pub oldest_unconfirmed_s: f64,
    /// Keys that wait for another try.
    pub retry_keys: u64,
    /// Letters that stand.
    pub dead_letters: u64,
    /// Letters that were ever written.
    pub dead_letters_total: u64,
}

/// Reads how `sink` is behind.
///
/// # Errors
/// If Postgres is away or takes too long.
pub async fn sink(db: &Db, sink: SinkName) -> Result<SinkGauges> {
    let mut tx = begin(db).await?;
    let lag = sink_lag(&mut tx, sink).await?;
    let failed = sqlx::query!(
        r#"SELECT (SELECT count(*) FROM (SELECT FROM outbox_retry WHERE sink = $1 LIMIT $2) AS r) AS "retries!",
                  (SELECT extract(epoch FROM now() - min(first_failed_at))::float8
                   FROM (SELECT first_failed_at FROM outbox_retry WHERE sink = $1 LIMIT $2) AS r) AS oldest_s,
                  (SELECT count(*) FROM (SELECT FROM dead_letter WHERE sink = $1 LIMIT $2) AS d) AS "letters!",
                  coalesce((SELECT value FROM total WHERE name = 'dead_letters' AND label = $1), 0) AS "letters_total!""#,
        sink.as_str(),
        COUNT_MAX
    )
    .fetch_one(&mut *tx)
    .await?;
    tx.commit().await?;
    let lag_rows = match sink {
        SinkName::Qdrant if lag.looked >= LOG_ROWS_MAX => backlog::estimate(db, sink).await?.max(lag.rows),
        _ => lag.rows,
    };
    Ok(SinkGauges {
        lag_rows,
        lag_s: lag.oldest_untried_s.unwrap_or_default().max(0.0),
        oldest_unconfirmed_s: lag.oldest_s.unwrap_or_default().max(failed.oldest_s.unwrap_or_default()).max(0.0),
        retry_keys: failed.retries.unsigned_abs(),
        dead_letters: failed.letters.unsigned_abs(),
        dead_letters_total: failed.letters_total.unsigned_abs(),
    })
}

struct Lag {
    looked: i64,
    rows: u64,
    oldest_s: Option<f64>,
    oldest_untried_s: Option<f64>,
}

async fn sink_lag(connection: &mut PgConnection, sink: SinkName) -> Result<Lag> {
    // A key that was refused or given up waits elsewhere.
    let row = sqlx::query!(
        r#"WITH unread AS MATERIALIZED (
               SELECT o.kind, o.key, o.created_at
               FROM outbox o JOIN outbox_cursor c ON c.sink = $1 AND c.lane = o.lane AND o.seq > c.closed_seq
               WHERE o.sink = $1 AND o.seq > (SELECT min(closed_seq) FROM outbox_cursor WHERE sink = $1)
               ORDER BY o.seq LIMIT $2)
           SELECT count(*) AS "looked!", count(*) FILTER (WHERE d.dirty) AS "rows!",
                  extract(epoch FROM now() - min(u.created_at) FILTER (WHERE d.dirty AND NOT g.given_up))::float8 AS oldest_s,
                  extract(epoch FROM now() - min(u.created_at) FILTER (WHERE d.dirty AND NOT g.given_up AND NOT g.refused))::float8 AS untried_s
           FROM unread u CROSS JOIN LATERAL unconfirmed($1, u.kind, u.key, u.created_at) AS d
           CROSS JOIN LATERAL (SELECT
               d.dirty AND (SELECT true FROM outbox_retry q WHERE q.sink = $1 AND q.kind = u.kind AND q.key = u.key LIMIT 1) IS TRUE AS refused,
               d.dirty AND (SELECT true FROM dead_letter q WHERE q.sink = $1 AND q.kind = u.kind AND q.key = u.key LIMIT 1) IS TRUE AS given_up) AS g"#,
        sink.as_str(),
        LOG_ROWS_MAX
    )
    .fetch_one(connection)
    .await?;
    Ok(Lag {
        looked: row.looked,
        rows: row.rows.unsigned_abs(),
        oldest_s: row.oldest_s,
        oldest_untried_s: row.untried_s,
    })
}

/// Requests of one state.
#[derive(Debug, Clone, PartialEq)]
pub struct StateGauge {
    /// The state.
    pub state: String,
    /// How many there are.
    pub count: u64,
    /// How long the oldest has been in it, in seconds; 0 if there is none.
    pub oldest_s: f64,
}

/// Reads how many requests are pending, queued and running, of the newest jobs.
///
/// # Errors
/// If Postgres is away or takes too long.
pub async fn requests(db: &Db) -> Result<Vec<StateGauge>> {
    let mut tx = begin(db).await?;
    let rows = sqlx::query!(
        r#"SELECT s.state AS "state!", coalesce(sum(r.count), 0)::bigint AS "count!",
                  coalesce(extract(epoch FROM now() - min(r.oldest)), 0)::float8 AS "oldest_s!"
           FROM unnest('{pending,queued,running}'::text[]) AS s (state)
           LEFT JOIN (SELECT id FROM job ORDER BY created_at DESC LIMIT $1) AS j ON true
           LEFT JOIN LATERAL (
               SELECT count(*) AS count, min(updated_at) AS oldest FROM (
                   SELECT updated_at FROM llm_request WHERE job_id = j.id AND llm_request.state = s.state LIMIT $2) AS l
           ) AS r ON true
           GROUP BY s.state"#,
        JOBS_MAX,
        REQUESTS_MAX
    )
    .fetch_all(&mut *tx)
    .await?;
    let dead = sqlx::query!(
        r#"SELECT count(*) AS "count!", coalesce(extract(epoch FROM now() - min(first_failed_at)), 0)::float8 AS "oldest_s!"
           FROM (SELECT first_failed_at FROM dead_letter WHERE sink = 'llm' LIMIT $1) AS d"#,
        COUNT_MAX
    )
    .fetch_one(&mut *tx)
    .await?;
    tx.commit().await?;
    let mut gauges: Vec<StateGauge> = rows
        .into_iter()
        .map(|row| StateGauge { state: row.state, count: row.count.unsigned_abs(), oldest_s: row.oldest_s })
        .collect();
    gauges.push(StateGauge { state: "dead".to_owned(), count: dead.count.unsigned_abs(), oldest_s: dead.oldest_s });
    Ok(gauges)
}

/// A job, as far as metrics are concerned.
#[derive(Debug, Clone, PartialEq)]
pub struct JobGauge {
    /// Its id.
    pub id: uuid::Uuid,
    /// `open`, `done`, `failed` (something of it was given up) or `cancelled`.
    pub state: String,
    /// Since it was started, in seconds.
    pub age_s: f64,
}

/// Reads how the newest jobs are.
///
/// # Errors
/// If Postgres is away or takes too long.
pub async fn jobs(db: &Db) -> Result<Vec<JobGauge>> {
    let mut tx = begin(db).await?;
    let jobs = sqlx::query_as!(
        JobGauge,
        r#"SELECT j.id, extract(epoch FROM now() - j.created_at)::float8 AS "age_s!",
                  CASE WHEN j.cancelled_at IS NOT NULL THEN 'cancelled'
                       WHEN EXISTS (SELECT FROM llm_request r WHERE r.job_id = j.id AND r.state IN ('pending', 'queued', 'running')) THEN 'open'
                       WHEN EXISTS (SELECT FROM llm_request r WHERE r.job_id = j.id AND r.state = 'dead') THEN 'failed'
                       ELSE 'done' END AS "state!"
           FROM (SELECT id, created_at, cancelled_at FROM job ORDER BY created_at DESC LIMIT $1) AS j"#,
        JOBS_MAX
    )
    .fetch_all(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(jobs)
}

/// How the server itself is.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerGauges {
    /// Age of the oldest transaction that holds back vacuum, 0 if there is none.
    pub oldest_transaction_s: f64,
    /// Replication slots that hold back vacuum, with their position: an age they do not have.
    pub slots: Vec<(String, String)>,
    /// Dead rows by table, as vacuum counts them.
    pub dead_tuples: Vec<(String, u64)>,
    /// Seconds of the Unix epoch, now.
    pub now_unix_s: f64,
    /// When the last complete comparison of the stores ended, in seconds of the Unix epoch.
    pub last_pass_unix_s: Option<f64>,
    /// What comparisons in the background have found, by kind, ever.
    pub findings: Vec<(String, u64)>,
}

/// The tables whose dead rows are told.
pub const WATCHED_TABLES: [&str; 9] = [
    "chunk",
    "embedding_cache",
    "entity",
    "extraction",
    "index_state",
    "llm_request",
    "outbox",
    "outbox_cursor",
    "source",
];

/// Reads how the server is.
///
/// # Errors
/// If Postgres is away or takes too long.
pub async fn server(db: &Db) -> Result<ServerGauges> {
    let mut tx = begin(db).await?;
    let row = sqlx::query!(
        r#"SELECT greatest(
                      (SELECT extract(epoch FROM now() - min(xact_start)) FROM pg_stat_activity
                       WHERE (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL) AND pid <> pg_backend_pid()),
                      (SELECT extract(epoch FROM now() - min(prepared)) FROM pg_prepared_xacts), 0)::float8 AS "oldest_s!",
                  (SELECT extract(epoch FROM last_ended_at)::float8 FROM relay_scrub WHERE single) AS last_pass_s,
                  extract(epoch FROM clock_timestamp())::float8 AS "now_s!""#
    )
    .fetch_one(&mut *tx)
    .await?;
    let slots = sqlx::query!(
        r#"SELECT slot_name::text AS "name!", coalesce(xmin, catalog_xmin)::text AS "xmin!" FROM pg_replication_slots
           WHERE coalesce(xmin, catalog_xmin) IS NOT NULL"#
    )
    .fetch_all(&mut *tx)
    .await?;
    let tables = sqlx::query!(
        r#"SELECT relname::text AS "name!", n_dead_tup AS "dead!" FROM pg_stat_user_tables
           WHERE schemaname = current_schema() AND relname = ANY($1)"#,
        &WATCHED_TABLES.map(str::to_owned)
    )
    .fetch_all(&mut *tx)
    .await?;
    let findings =
        sqlx::query!("SELECT label, value FROM total WHERE name = 'verify_findings'").fetch_all(&mut *tx).await?;
    tx.commit().await?;
    Ok(ServerGauges {
        oldest_transaction_s: row.oldest_s,
        slots: slots.into_iter().map(|slot| (slot.name, slot.xmin)).collect(),
        dead_tuples: tables.into_iter().map(|table| (table.name, table.dead.unsigned_abs())).collect(),
        now_unix_s: row.now_s,
        last_pass_unix_s: row.last_pass_s,
        findings: findings.into_iter().map(|row| (row.label, row.value.unsigned_abs())).collect(),
    })
}

/// Begins a reading. Row by row through indexes is what the statements are written for, and what
/// stops at their limits: by its estimates Postgres would rather read all of a table in which one
/// state or sink stands in nearly every row.
async fn begin(db: &Db) -> Result<Transaction<'static, Postgres>> {
    let mut tx = db.pool().begin_with("BEGIN READ ONLY").await?;
    sqlx::query(
        "SELECT set_config('statement_timeout', $1, true), set_config('enable_seqscan', 'off', true),
                set_config('enable_bitmapscan', 'off', true), set_config('enable_sort', 'off', true),
                set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true)",
    )
    .bind(STATEMENT_MS.to_string())
    .execute(&mut *tx)
    .await?;
    Ok(tx)
}
