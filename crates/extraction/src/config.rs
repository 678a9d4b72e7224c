use std::time::Duration;

use serde::{Deserialize, Serialize};
use waybill_llm::OpenAiConfig;

/// Models that may be listed: more than anybody serves.
const MODELS_MAX: usize = 64;

/// Who answers requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProviderName {
    /// Rules: offline, deterministic, and no language model.
    #[default]
    Rules,
    /// A server that speaks OpenAI's chat completions.
    Openai,
}

/// Configures the service and its workers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Whether the service works off the queue itself. Without, workers of your own do
    /// (docs/workers.md).
    pub worker_enabled: bool,
    /// Who answers requests.
    pub provider: ProviderName,
    /// The server of the provider `openai`.
    pub openai: OpenAiConfig,
    /// Models that a job may name, besides that of the provider; none listed: any.
    pub models: Vec<String>,
    /// The fewest calls under way that the limit falls to.
    pub concurrency_min: usize,
    /// The most calls under way that the limit grows to.
    pub concurrency_max: usize,
    /// Where the limit begins.
    pub concurrency_start: usize,
    /// Calls that may fail before a request is given up.
    pub attempts_max: i32,
    /// The first wait after a failed call.
    pub retry_base_ms: u64,
    /// The longest wait after a failed call.
    pub retry_max_ms: u64,
    /// Calls that fail in a row until the provider is left alone.
    pub breaker_failures: u32,
    /// How long it is left alone.
    pub breaker_open_ms: u64,
    /// Calls a minute; 0: as many as it takes.
    pub requests_per_minute: u64,
    /// Tokens a minute; 0: as many as it takes.
    pub tokens_per_minute: u64,
    /// How often a worker says that it still has its messages.
    pub heartbeat_ms: u64,
    /// How long a worker may be silent before others take its messages.
    pub reclaim_after_ms: u64,
    /// How often an idle worker looks into the queue.
    pub poll_ms: u64,
    /// How often it is looked for requests that Redis has lost.
    pub sweep_every_ms: u64,
    /// Only requests that have not changed for so long are looked for.
    pub sweep_age_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            worker_enabled: true,
            provider: ProviderName::default(),
            openai: OpenAiConfig::default(),
            models: Vec::new(),
            concurrency_min: 1,
            concurrency_max: 32,
            concurrency_start: 4,
            attempts_max: 5,
            retry_base_ms: 500,
            retry_max_ms: 30_000,
            breaker_failures: 5,
            breaker_open_ms: 60_000,
            requests_per_minute: 0,
            tokens_per_minute: 0,
            heartbeat_ms: 5_000,
            reclaim_after_ms: 30_000,
            // 50 looks a second are nothing to Redis, and 20 ms are nothing to an LLM.
            poll_ms: 20,
            sweep_every_ms: 5_000,
            sweep_age_ms: 10_000,
        }
    }
}

impl Config {
    /// Checks what the types don't say.
    ///
    /// # Errors
    /// Names the key, its value and the fix.
    pub fn validate(&self) -> Result<(), String> {
        let at_least = |key: &str, value: u64, least: u64| {
            if value < least { Err(format!("{key} is {value}: set it to {least} or more")) } else { Ok(()) }
        };
        if self.provider == ProviderName::Openai {
            self.openai.validate().map_err(|error| error.to_string())?;
        }
        if self.models.len() > MODELS_MAX {
            return Err(format!("models is {} names: list {MODELS_MAX} or less", self.models.len()));
        }
        if self.models.iter().any(|model| model.trim().is_empty()) {
            return Err("models is a list with an empty name: name models of the server's, or none".to_owned());
        }
        at_least("concurrency_min", self.concurrency_min as u64, 1)?;
        at_least("concurrency_start", self.concurrency_start as u64, self.concurrency_min as u64)?;
        at_least("concurrency_max", self.concurrency_max as u64, self.concurrency_start as u64)?;
        if self.concurrency_max > 1_024 {
            return Err(format!("concurrency_max is {}: set it to 1024 or less", self.concurrency_max));
        }
        if self.attempts_max < 1 {
            return Err(format!("attempts_max is {}: set it to 1 or more", self.attempts_max));
        }
        at_least("retry_base_ms", self.retry_base_ms, 1)?;
        at_least("retry_max_ms", self.retry_max_ms, self.retry_base_ms)?;
        at_least("breaker_failures", self.breaker_failures.into(), 1)?;
        at_least("breaker_open_ms", self.breaker_open_ms, 1)?;
        at_least("heartbeat_ms", self.heartbeat_ms, 10)?;
        // A heartbeat may be late, or fail once.
        at_least("reclaim_after_ms", self.reclaim_after_ms, self.heartbeat_ms * 3)?;
        at_least("poll_ms", self.poll_ms, 1)?;
        at_least("sweep_every_ms", self.sweep_every_ms, 10)
    }

    /// Says whether a job may name `model`; an error says which it may.
    pub(crate) fn check_model(&self, model: &str) -> Result<(), String> {
        let is_allowed = self.models.is_empty()
            || self.models.iter().any(|allowed| allowed == model)
            || self.provider == ProviderName::Openai && self.openai.model == model;
        if is_allowed {
            return Ok(());
        }
        Err(format!("model {model:?} is not allowed here: name one of {}, or none", self.models.join(", ")))
    }

    pub(crate) const fn heartbeat(&self) -> Duration {
        Duration::from_millis(self.heartbeat_ms)
    }

    pub(crate) const fn reclaim_after(&self) -> Duration {
        Duration::from_millis(self.reclaim_after_ms)
    }

    pub(crate) const fn poll(&self) -> Duration {
        Duration::from_millis(self.poll_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_a_wrong_value_names_its_key() {
        assert_eq!(Config::default().validate(), Ok(()));
        let wrong = Config { reclaim_after_ms: 1_000, ..Config::default() };
        assert!(wrong.validate().unwrap_err().starts_with("reclaim_after_ms is 1000"));
        let wrong = Config { models: vec![" ".to_owned()], ..Config::default() };
        assert!(wrong.validate().unwrap_err().starts_with("models is"));
        let openai = waybill_llm::OpenAiConfig { base_url: "no url".to_owned(), ..Default::default() };
        let wrong = Config { provider: ProviderName::Openai, openai, ..Config::default() };
        assert!(wrong.validate().unwrap_err().starts_with("openai.base_url"));
    }

    #[test]
    fn a_job_may_name_what_is_listed_and_the_provider_s_own() {
        let openai = waybill_llm::OpenAiConfig { model: "own".to_owned(), ..Default::default() };
        let any = Config { provider: ProviderName::Openai, openai, ..Config::default() };
        assert_eq!(any.check_model("whatever"), Ok(()));
        let some = Config { models: vec!["large".to_owned()], ..any };
        assert_eq!((some.check_model("large"), some.check_model("own")), (Ok(()), Ok(())));
        assert!(some.check_model("other").unwrap_err().contains("\"other\" is not allowed here: name one of large"));
    }
}
