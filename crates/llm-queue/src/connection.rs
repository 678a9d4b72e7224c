use std::{sync::OnceLock, time::Duration};

use deadpool_redis::{
    Runtime, Timeouts,
    redis::{Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult, ScriptInvocation},
};
use opentelemetry::metrics::Meter;
use tokio::time::{Instant, error::Elapsed, timeout_at};

use crate::{
    QueueConfig, QueueError, Result,
    manager::{Connection, Manager, Pool},
    meter::PoolMeter,
};

/// The connections of one queue.
pub(crate) struct Connections {
    ordinary: Pool,
    /// For claims that wait. They hold a connection for as long as there is no work.
    blocking: Pool,
    timeout: Duration,
    meter: OnceLock<PoolMeter>,
}

impl Connections {
    pub(crate) fn new(config: &QueueConfig) -> Result<Self> {
        let ordinary = pool(config)?;
        let blocking = pool(config)?;
        Ok(Self { ordinary, blocking, timeout: config.timeout, meter: OnceLock::new() })
    }

    /// Opens a session for a call that is answered at once.
    pub(crate) async fn session(&self) -> Result<Session> {
        self.open(&self.ordinary, self.timeout, self.timeout / 2).await
    }

    /// Opens a session for a call that may wait for as long as `block`.
    pub(crate) async fn blocking_session(&self, block: Duration) -> Result<Session> {
        self.open(&self.blocking, block + self.timeout, block + self.timeout / 2).await
    }

    pub(crate) fn measure(&self, meter: &Meter, pool: &'static str) {
        self.meter.get_or_init(|| PoolMeter::new(meter, pool, [self.ordinary.clone(), self.blocking.clone()]));
    }

    async fn open(&self, pool: &Pool, limit: Duration, wait: Duration) -> Result<Session> {
        let Some(meter) = self.meter.get() else {
            return Session::open(pool, limit, wait).await;
        };
        let asked = Instant::now();
        let opened = Session::open(pool, limit, wait).await;
        meter.waited(asked.elapsed(), matches!(opened, Err(QueueError::Busy(_))));
        opened
    }
}

/// A connection for one call, with the call's deadline.
///
/// If the call is given up before its answer is read, the connection is closed and not
/// returned to the pool: the server may still work on it, or wait for a message that nobody
/// would receive.
pub(crate) struct Session {
    pooled: Option<Connection>,
    deadline: Instant,
    limit: Duration,
    /// A request is out and its answer isn't in.
    unanswered: bool,
}

impl Session {
    async fn open(pool: &Pool, limit: Duration, wait: Duration) -> Result<Self> {
        let deadline = Instant::now() + limit;
        let timeouts = Timeouts { wait: Some(wait), ..pool.timeouts() };
        match timeout_at(deadline, pool.timeout_get(&timeouts)).await {
            Ok(Ok(pooled)) => Ok(Self { pooled: Some(pooled), deadline, limit, unanswered: false }),
            Ok(Err(error)) => Err(QueueError::from_pool(&error, pool.status().max_size, limit)),
            Err(_) => Err(QueueError::Timeout(limit)),
        }
    }

    /// Runs a script, and loads it first if the server has forgotten it.
    pub(crate) async fn script<T: FromRedisValue>(&mut self, script: &ScriptInvocation<'_>) -> Result<T> {
        let Some(connection) = self.pooled.as_mut() else {
            return Err(QueueError::Timeout(self.limit));
        };
        self.unanswered = true;
        let answer = timeout_at(self.deadline, script.invoke_async(&mut **connection)).await;
        self.settle(answer)
    }

    /// Runs a command.
    pub(crate) async fn command<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T> {
        let Some(connection) = self.pooled.as_mut() else {
            return Err(QueueError::Timeout(self.limit));
        };
        self.unanswered = true;
        let answer = timeout_at(self.deadline, command.query_async(&mut **connection)).await;
        self.settle(answer)
    }

    fn settle<T>(&mut self, answer: std::result::Result<RedisResult<T>, Elapsed>) -> Result<T> {
        if let Ok(answer) = &answer {
            self.unanswered = answer.as_ref().is_err_and(breaks_connection);
        }
        if self.unanswered {
            self.close();
        }
        match answer {
            Ok(answer) => answer.map_err(|error| QueueError::from_redis(&error)),
            Err(_) => Err(QueueError::Timeout(self.limit)),
        }
    }

    fn close(&mut self) {
        if let Some(pooled) = self.pooled.take() {
            drop(Connection::take(pooled));
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.unanswered {
            self.close();
        }
    }
}

/// Says whether an error leaves the connection in an unknown state: all but the server's own.
fn breaks_connection(error: &RedisError) -> bool {
    error.is_unrecoverable_error()
        || (error.code().is_none() && !matches!(error.kind(), ErrorKind::UnexpectedReturnType))
}

fn pool(config: &QueueConfig) -> Result<Pool> {
    Pool::builder(Manager::new(config)?)
        .max_size(config.pool_size)
        .wait_timeout(Some(config.timeout / 2))
        .create_timeout(Some(config.timeout / 2))
        // Short, so that after a dead connection there is time left for a new one.
        .recycle_timeout(Some(config.timeout / 4))
        .runtime(Runtime::Tokio1)
        .build()
        .map_err(|error| QueueError::Config(format!("set up the connections: {error}")))
}
