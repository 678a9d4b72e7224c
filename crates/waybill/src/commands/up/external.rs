//! What `waybill up` does in a build without stores of its own.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::steps;
use crate::app_config::AppConfig;
use crate::exit::Usage;

/// The data directory. Nothing in it needs to be held: the stores are elsewhere.
#[derive(Debug)]
pub(super) struct Home(PathBuf);

impl Home {
    pub(super) fn take(path: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self(path.to_owned()))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

/// No stores.
#[derive(Debug, Default)]
pub(super) struct Stores;

impl Stores {
    pub(super) async fn start(_home: &Home, config: &mut AppConfig) -> anyhow::Result<Self> {
        let stores = [
            ("DATABASE_URL", config.database.url.is_empty()),
            ("REDIS_URL", config.redis.url.is_empty()),
            ("QDRANT_URL", config.qdrant.url.is_empty()),
        ];
        let missing: Vec<_> = stores.into_iter().filter_map(|(name, missing)| missing.then_some(name)).collect();
        if missing.is_empty() {
            steps::note("postgres", &format!("{}, as configured", config.database.url));
            steps::note("redis", &format!("{}, as configured", config.redis.url));
            steps::note("qdrant", &format!("{}, as configured", config.qdrant.url));
            return Ok(Self);
        }
        let missing = missing.join(" and ");
        Err(Usage(format!("this build has no stores of its own (feature `embedded` is off): set {missing}")).into())
    }

    pub(super) async fn stop(self) {}
}
