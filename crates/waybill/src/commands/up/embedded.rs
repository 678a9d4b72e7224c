//! Stores of our own: Postgres and Redis as child processes, the vector engine in this one.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::Context;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use waybill_local_stores::{DataDir, PostgresOptions, PrivatePostgres, PrivateRedis, RedisOptions};
use waybill_qdrant_local::{Handle, Server};
use waybill_runtime::config::SecretUrl;

use super::steps::{Done, step};
use super::{ports, steps};
use crate::app_config::AppConfig;

/// The data directory, held for this process alone.
#[derive(Debug)]
pub(super) struct Home(DataDir);

impl Home {
    /// Takes the directory. Refused, with the other's process id, if it is in use.
    pub(super) fn take(path: &Path) -> anyhow::Result<Self> {
        Ok(Self(DataDir::lock(path)?))
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }
}

/// The stores that this process runs.
#[derive(Debug, Default)]
pub(super) struct Stores {
    postgres: Option<PrivatePostgres>,
    redis: Option<PrivateRedis>,
    qdrant: Option<Qdrant>,
}

#[derive(Debug)]
struct Qdrant {
    url: String,
    stop: CancellationToken,
    handle: Handle,
}

impl Stores {
    /// Starts a store for each that the configuration does not name, and notes in it where
    /// they answer.
    pub(super) async fn start(home: &Home, config: &mut AppConfig) -> anyhow::Result<Self> {
        let postgres = unless_named("postgres", &config.database.url, start_postgres(&home.0));
        let redis = unless_named("redis", &config.redis.url, start_redis(&home.0));
        let folder = home.path().join("qdrant");
        let qdrant = unless_named("qdrant", &config.qdrant.url, start_qdrant(&folder));
        let (postgres, redis, qdrant) = tokio::try_join!(postgres, redis, qdrant)?;
        if let Some(postgres) = &postgres {
            config.database.url = SecretUrl::new(postgres.url());
        }
        if let Some(redis) = &redis {
            config.redis.url = SecretUrl::new(redis.url());
        }
        if let Some(qdrant) = &qdrant {
            config.qdrant.url = SecretUrl::new(qdrant.url.clone());
        }
        Ok(Self { postgres, redis, qdrant })
    }

    /// Stops them, each after those that may still use it. Goes on after a failure.
    pub(super) async fn stop(self) {
        if let Some(qdrant) = self.qdrant {
            qdrant.stop.cancel();
            qdrant.handle.stopped().await;
        }
        if let Some(redis) = self.redis
            && let Err(error) = redis.stop().await
        {
            warn!(%error, "redis not stopped in good order");
        }
        if let Some(postgres) = self.postgres
            && let Err(error) = postgres.stop().await
        {
            warn!(%error, "postgres not stopped in good order");
        }
    }
}

/// Starts a store of our own unless the configuration names one, which is said: a
/// forgotten `DATABASE_URL` should not go unnoticed.
async fn unless_named<T>(
    name: &str,
    url: &SecretUrl,
    start: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<Option<T>> {
    if url.is_empty() {
        return start.await.map(Some);
    }
    steps::note(name, &format!("{url}, as configured"));
    Ok(None)
}

async fn start_postgres(data_dir: &DataDir) -> anyhow::Result<PrivatePostgres> {
    let slow = "starting; the first start makes a cluster, which takes some seconds";
    step("postgres", slow, async {
        let postgres = PrivatePostgres::start(data_dir, PostgresOptions::default())
            .await
            .context("start a private Postgres (or set DATABASE_URL to use another)")?;
        let note = format!("{}, port {}", postgres.binaries().major(), postgres.port());
        Ok(Done::new(postgres, note))
    })
    .await
}

async fn start_redis(data_dir: &DataDir) -> anyhow::Result<PrivateRedis> {
    step("redis", "starting", async {
        let redis = PrivateRedis::start(data_dir, RedisOptions::default())
            .await
            .context("start a private Redis (or set REDIS_URL to use another)")?;
        let note = format!("port {}", redis.port());
        Ok(Done::new(redis, note))
    })
    .await
}

async fn start_qdrant(dir: &Path) -> anyhow::Result<Qdrant> {
    step("qdrant", "loading the collections", async {
        let listener = ports::free(Ipv4Addr::LOCALHOST.into()).await?;
        let url = ports::url(&listener)?;
        let stop = CancellationToken::new();
        let handle = Server::start(dir, listener, stop.clone())
            .await
            .context("start the vector engine (or set QDRANT_URL to use a server)")?;
        let note = format!("in this process, port {}", handle.addr().port());
        Ok(Done::new(Qdrant { url, stop, handle }, note))
    })
    .await
}
