use std::time::Duration;

use serde::{Deserialize, Serialize};
use waybill_outbox::EngineConfig;

/// Configures the relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The alias under which searches find the live collection.
    pub alias: String,
    /// The model that a collection is made for where there is none; empty takes the embedding
    /// service's default. One that is there keeps its own, until a reindexing changes it.
    pub model: String,
    /// How long one call to the embedding service may take. A batch shrinks when it takes
    /// long, so this bounds a service that hangs, not one that is slow.
    pub embed_timeout_ms: u64,
    /// How long nothing may be confirmed while there is work, the store is well and nobody has
    /// paused it, before the relay is said not to be ready.
    pub stalled_after_s: u64,
    /// Reading, leases and delivery.
    pub engine: EngineConfig,
    /// Comparing the stores with Postgres.
    pub verify: VerifyConfig,
    /// Comparing them in the background.
    pub scrub: ScrubConfig,
}

/// How fast the stores are compared, so that delivery is not disturbed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VerifyConfig {
    /// The most entries that are read from each store at a time.
    pub page_keys_max: u32,
    /// Points and rows looked at in a second, by each comparison.
    pub rows_per_second: u32,
}

impl Default for VerifyConfig {
    fn default() -> Self {
        // A page is read in some 10 ms; a million keys take two minutes.
        Self { page_keys_max: 1_000, rows_per_second: 20_000 }
    }
}

/// When the stores are compared by themselves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScrubConfig {
    /// From the start of one pass over everything to the next; 0 for none.
    pub period_s: u64,
    /// Whether a pass has what differs delivered again.
    pub repair: bool,
    /// Between two looks at some keys, which start a pass if one is wrong: a store that was lost
    /// or wiped is noticed so. 0 for none.
    pub check_s: u64,
}

impl Default for ScrubConfig {
    fn default() -> Self {
        Self { period_s: 86_400, repair: true, check_s: 60 }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            alias: waybill_vectors::DEFAULT_ALIAS.to_owned(),
            model: String::new(),
            embed_timeout_ms: 120_000,
            // A delivery takes seconds, and its retries some more.
            stalled_after_s: 60,
            engine: EngineConfig::default(),
            verify: VerifyConfig::default(),
            scrub: ScrubConfig::default(),
        }
    }
}

impl Config {
    /// Checks what the types don't say.
    ///
    /// # Errors
    /// Names the key, its value and the fix.
    pub fn validate(&self) -> Result<(), String> {
        if self.alias.is_empty() {
            return Err("alias is empty: name the alias of the live collection, such as \"waybill\"".to_owned());
        }
        if self.embed_timeout_ms < 100 {
            return Err(format!("embed_timeout_ms is {}: set it to 100 or more", self.embed_timeout_ms));
        }
        if self.stalled_after_s == 0 {
            return Err("stalled_after_s is 0: set it to 1 or more".to_owned());
        }
        // An entry can carry 16 KiB of metadata, and an answer of Qdrant's may have 64 MiB.
        if !(1..=2_000).contains(&self.verify.page_keys_max) {
            return Err(format!(
                "verify.page_keys_max is {}: set it to between 1 and 2,000",
                self.verify.page_keys_max
            ));
        }
        if self.verify.rows_per_second == 0 {
            return Err("verify.rows_per_second is 0: set it to 1 or more".to_owned());
        }
        self.engine.validate().map_err(|problem| format!("engine.{problem}"))
    }

    pub(crate) const fn embed_timeout(&self) -> Duration {
        Duration::from_millis(self.embed_timeout_ms)
    }
}
