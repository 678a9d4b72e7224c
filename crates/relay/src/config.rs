use std::time::Duration;

use serde::{Deserialize, Serialize};
use waybill_outbox::EngineConfig;

/// Configures the relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The alias under which searches find the live collection.
    pub alias: String,
    /// The model to embed with; empty takes the embedding service's default.
    pub model: String,
    /// How long one call to the embedding service may take. A batch shrinks when it takes
    /// long, so this bounds a service that hangs, not one that is slow.
    pub embed_timeout_ms: u64,
    /// Reading, leases and delivery.
    pub engine: EngineConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            alias: waybill_vectors::DEFAULT_ALIAS.to_owned(),
            model: String::new(),
            embed_timeout_ms: 120_000,
            engine: EngineConfig::default(),
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
        self.engine.validate().map_err(|problem| format!("engine.{problem}"))
    }

    pub(crate) const fn embed_timeout(&self) -> Duration {
        Duration::from_millis(self.embed_timeout_ms)
    }
}
