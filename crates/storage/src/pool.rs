//! The pool of connections, and how long callers wait for one.

use std::sync::{Arc, OnceLock};

use futures::TryStreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter};
use sqlx::postgres::{PgQueryResult, PgRow, PgTypeInfo, Postgres};
use sqlx::{Either, Execute, Executor, PgPool, SqlStr, Transaction, pool::PoolConnection};
use tokio::time::Instant;
use waybill_domain::bounds::WAIT_SECONDS;

/// A pool that measures the wait for its connections, if somebody wants to know. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    pool: PgPool,
    meter: Arc<OnceLock<PoolMeter>>,
}

#[derive(Debug)]
struct PoolMeter {
    wait: Histogram<f64>,
    timeouts: Counter<u64>,
}

impl Pool {
    pub(crate) fn new(pool: PgPool) -> Self {
        Self { pool, meter: Arc::default() }
    }

    /// Has waits and connections measured from now on.
    pub(crate) fn measure(&self, meter: &Meter) {
        let timeouts = meter
            .u64_counter("waybill_postgres_pool_timeouts_total")
            .with_description("Callers that got no connection to Postgres in time")
            .build();
        timeouts.add(0, &[]);
        let wait = meter
            .f64_histogram("waybill_postgres_pool_wait_seconds")
            .with_description("How long callers waited for a connection to Postgres")
            .with_boundaries(WAIT_SECONDS.to_vec())
            .build();
        if self.meter.set(PoolMeter { wait, timeouts }).is_err() {
            return;
        }
        let pool = self.pool.clone();
        meter
            .u64_observable_gauge("waybill_postgres_pool_connections")
            .with_description("Open connections to Postgres: idle, or in use")
            .with_callback(move |gauge| {
                let (open, idle) = (u64::from(pool.size()), pool.num_idle() as u64);
                gauge.observe(idle, &[KeyValue::new("state", "idle")]);
                gauge.observe(open.saturating_sub(idle), &[KeyValue::new("state", "used")]);
            })
            .build();
        let most = u64::from(self.pool.options().get_max_connections());
        meter
            .u64_observable_gauge("waybill_postgres_pool_max_connections")
            .with_description("The most connections to Postgres that the process opens")
            .with_callback(move |gauge| gauge.observe(most, &[]))
            .build();
    }

    pub(crate) async fn acquire(&self) -> Result<PoolConnection<Postgres>, sqlx::Error> {
        let Some(meter) = self.meter.get() else {
            return self.pool.acquire().await;
        };
        let asked = Instant::now();
        let acquired = self.pool.acquire().await;
        meter.wait.record(asked.elapsed().as_secs_f64(), &[]);
        if matches!(acquired, Err(sqlx::Error::PoolTimedOut)) {
            meter.timeouts.add(1, &[]);
        }
        acquired
    }

    pub(crate) async fn begin(&self) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        self.begin_with("BEGIN").await
    }

    pub(crate) async fn begin_with(
        &self,
        statement: &'static str,
    ) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        let connection = self.acquire().await?;
        Transaction::begin(connection, Some(SqlStr::from_static(statement))).await
    }

    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }

    /// Returns the pool itself, for those who keep a connection.
    pub(crate) fn inner(&self) -> &PgPool {
        &self.pool
    }
}

impl<'p> Executor<'p> for &'_ Pool {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let pool = self.clone();
        Box::pin(async_stream::try_stream! {
            let mut connection = pool.acquire().await?;
            let mut steps = connection.fetch_many(query);
            while let Some(step) = steps.try_next().await? {
                yield step;
            }
        })
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let pool = self.clone();
        Box::pin(async move { pool.acquire().await?.fetch_optional(query).await })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<sqlx::postgres::PgStatement, sqlx::Error>>
    where
        'p: 'e,
    {
        let pool = self.clone();
        Box::pin(async move { pool.acquire().await?.prepare_with(sql, parameters).await })
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<sqlx::Describe<Postgres>, sqlx::Error>>
    where
        'p: 'e,
    {
        let pool = self.clone();
        Box::pin(async move { pool.acquire().await?.describe(sql).await })
    }
}
