use std::num::NonZero;

use serde::{Deserialize, Serialize};
use waybill_models::{ModelError, ProviderConfig, ProviderKind};
use waybill_runtime::config::ConfigError;
use waybill_storage::cache::TOUCH_AFTER_DAYS;
use waybill_vectors::DEFAULT_ALIAS;

use crate::batcher::{BatchLimits, BatcherOptions, QueueLimits};
use crate::limits;

/// The models one process may serve. Each has workers, a queue and perhaps gigabytes.
const MAX_MODELS: usize = 16;

/// The largest message that may be configured: it is held in memory, once for each call.
const MAX_MESSAGE_BYTES: usize = 256 << 20;

/// The longest wait that may be configured: an hour.
const MAX_WAIT_MS: usize = 60 * 60 * 1_000;

/// Configures embedding and search.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The model that embeds unless a request names another, and that searches.
    pub model: ProviderConfig,
    /// More models to serve, for requests that name them and for searches in a collection
    /// that one of them made.
    pub more_models: Vec<ProviderConfig>,
    /// How texts are batched; for each model on its own.
    pub batching: BatchingConfig,
    /// The cache of embeddings in Postgres.
    pub cache: CacheConfig,
    /// The alias of the live collection.
    pub alias: String,
    /// The largest request, in bytes.
    pub max_message_bytes: usize,
    /// How long a search with freshness tokens waits for the vector store at most, in
    /// milliseconds. Its own deadline may be shorter.
    pub freshness_wait_max_ms: u64,
    /// Searches that wait so at once; one more is refused and may come again.
    pub max_waiting_searches: usize,
}

/// How texts are batched.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BatchingConfig {
    /// How many texts go into one call of a model.
    pub max_batch_texts: usize,
    /// How many tokens, by estimate.
    pub max_batch_tokens: usize,
    /// How many calls are under way at a time; 0 takes what suits the kind of provider.
    pub in_flight: usize,
    /// How many texts may wait, documents and queries each.
    pub max_waiting_texts: usize,
    /// How many bytes of text may wait, documents and queries each.
    pub max_waiting_bytes: usize,
}

/// The cache of embeddings.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheConfig {
    /// Whether there is one. Without it each redelivery costs model time.
    pub enabled: bool,
    /// Roughly the most it may take in Postgres; what was used longest ago goes first.
    pub max_bytes: u64,
    /// Vectors that were not used for so many days are deleted.
    pub max_age_days: u32,
    /// How often, in seconds, it is looked for what to delete.
    pub evict_every_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            model: ProviderConfig::default(),
            more_models: Vec::new(),
            batching: BatchingConfig::default(),
            cache: CacheConfig::default(),
            alias: DEFAULT_ALIAS.to_owned(),
            // 1,024 passages of 16 KB, or 256 of the longest.
            max_message_bytes: 16 << 20,
            // As long as callers commonly wait at all.
            freshness_wait_max_ms: 30_000,
            // Each looks at Postgres five times a second.
            max_waiting_searches: 256,
        }
    }
}

impl Default for BatchingConfig {
    fn default() -> Self {
        Self {
            // On a CPU the speed no longer grows beyond this, only the time that a query has
            // to wait behind a batch of documents.
            max_batch_texts: 32,
            max_batch_tokens: 16_384,
            in_flight: 0,
            // Minutes of work for a slow model: whoever comes then should know to come later.
            max_waiting_texts: 8_192,
            max_waiting_bytes: 64 << 20,
        }
    }
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            // About five million vectors of 384 dimensions.
            max_bytes: 10 << 30,
            max_age_days: 90,
            evict_every_s: 600,
        }
    }
}

impl Config {
    /// Checks what can be checked without a file or the network.
    ///
    /// # Errors
    /// The first value that can't be used: its key, what is wrong and the fix.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.model.validate().map_err(|error| model_error("embedding.model", &error))?;
        if self.more_models.len() >= MAX_MODELS {
            return Err(invalid(
                "more_models",
                self.more_models.len(),
                "are too many models",
                "serve them by more than one process",
            ));
        }
        for (number, model) in self.more_models.iter().enumerate() {
            model.validate().map_err(|error| model_error(&format!("embedding.more_models[{number}]"), &error))?;
        }
        if self.alias.trim().is_empty() {
            return Err(invalid("alias", &self.alias, "is empty", "write \"waybill\" or a name of your own"));
        }
        check("max_message_bytes", self.max_message_bytes, 1 << 20, MAX_MESSAGE_BYTES)?;
        let wait = usize::try_from(self.freshness_wait_max_ms).unwrap_or(usize::MAX);
        check("freshness_wait_max_ms", wait, 1, MAX_WAIT_MS)?;
        check("max_waiting_searches", self.max_waiting_searches, 1, 100_000)?;
        check("batching.max_batch_texts", self.batching.max_batch_texts, 1, 2_048)?;
        check("batching.max_batch_tokens", self.batching.max_batch_tokens, 512, 4_000_000)?;
        check("batching.in_flight", self.batching.in_flight, 0, 256)?;
        // Below one request's worth, requests would be refused at random.
        check("batching.max_waiting_texts", self.batching.max_waiting_texts, limits::MAX_TEXTS, 1_000_000)?;
        check("batching.max_waiting_bytes", self.batching.max_waiting_bytes, 1 << 20, 4 << 30)?;
        // What is in use counts as used only once a week.
        let least_age = TOUCH_AFTER_DAYS.unsigned_abs() as usize * 2;
        check("cache.max_age_days", self.cache.max_age_days as usize, least_age, 36_500)?;
        if self.cache.max_bytes < 1 << 20 || i64::try_from(self.cache.max_bytes).is_err() {
            return Err(invalid(
                "cache.max_bytes",
                self.cache.max_bytes,
                "is out of range",
                "write at least 1048576, or set cache.enabled to false",
            ));
        }
        check("cache.evict_every_s", usize::try_from(self.cache.evict_every_s).unwrap_or(usize::MAX), 1, 86_400)
    }
}

impl BatchingConfig {
    /// Settles what is left open, for one model.
    pub(crate) fn options(&self, kind: ProviderKind, max_tokens: usize) -> BatcherOptions {
        let in_flight = match (self.in_flight, kind) {
            // A local model spreads one call over its threads. A second call keeps them busy
            // while the first is taken apart; a third would only stand before queries.
            (0, ProviderKind::Local) => 2,
            // A server batches and queues by itself, and most of a call is the way there.
            (0, ProviderKind::OpenAi | ProviderKind::Tei) => {
                8.max(std::thread::available_parallelism().map_or(1, NonZero::get))
            }
            (calls, _) => calls,
        };
        BatcherOptions {
            queue: QueueLimits { texts: self.max_waiting_texts, bytes: self.max_waiting_bytes },
            batch: BatchLimits {
                texts: self.max_batch_texts,
                tokens: self.max_batch_tokens,
                tokens_per_text: max_tokens.max(1),
            },
            in_flight,
        }
    }
}

fn check(key: &str, value: usize, least: usize, most: usize) -> Result<(), ConfigError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(invalid(key, value, "is out of range", &format!("write a number from {least} to {most}")))
}

fn invalid(key: &str, value: impl std::fmt::Display, problem: &str, fix: &str) -> ConfigError {
    ConfigError::invalid(format!("embedding.{key}"), value, problem, fix)
}

/// Puts a provider's own complaint under the section it stands in.
fn model_error(section: &str, error: &ModelError) -> ConfigError {
    match error {
        ModelError::Config { key, problem, fix } => {
            ConfigError::invalid(format!("{section}.{key}"), "(its value)", problem, fix)
        }
        other => ConfigError::invalid(section, "(its values)", &other.to_string(), "see the message"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_configuration_is_valid() {
        Config::default().validate().unwrap();
    }

    #[test]
    fn what_is_wrong_is_named() {
        type Spoil = fn(&mut Config);
        let cases: [(&str, Spoil); 9] = [
            ("embedding.freshness_wait_max_ms", |config| config.freshness_wait_max_ms = 0),
            ("embedding.max_waiting_searches", |config| config.max_waiting_searches = 0),
            ("embedding.alias", |config| config.alias.clear()),
            ("embedding.max_message_bytes", |config| config.max_message_bytes = 10),
            ("embedding.batching.max_batch_texts", |config| config.batching.max_batch_texts = 0),
            ("embedding.batching.max_waiting_texts", |config| config.batching.max_waiting_texts = 1),
            ("embedding.cache.max_age_days", |config| config.cache.max_age_days = 7),
            ("embedding.cache.max_bytes", |config| config.cache.max_bytes = 1),
            ("embedding.model.local.path", |config| config.model.local.path.clear()),
        ];
        for (key, spoil) in cases {
            let mut config = Config::default();
            spoil(&mut config);
            let message = config.validate().unwrap_err().to_string();
            assert!(message.contains(key), "{key}: {message}");
        }
    }
}
