use std::{fmt, path::PathBuf};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};
use waybill_tls::{ClientTlsConfig, InvalidTls};

use crate::{
    AnswerBounds, LlmError, Usage,
    limits::{MAX_ENTITIES_PER_FACT, MAX_FACTS},
};

/// The longest a server may take to answer: more than a cold start of a large model.
const MAX_TIMEOUT_MS: u64 = 600_000;

/// The most tokens an answer may have; far more than [`crate::limits`] would keep.
const MAX_TOKENS_LIMIT: u32 = 131_072;

/// What a fact takes of an answer: 60 to 100 tokens with a quote and two entities, half as much
/// again where a model indents its JSON, and the rest is for passages in scripts that take more.
const TOKENS_PER_FACT: usize = 160;

/// What an answer may take beside its facts: a few words before them.
const TOKENS_AROUND: usize = 512;

/// How many tokens a price is for.
const TOKENS_PER_PRICE: f64 = 1e6;

/// A server that speaks OpenAI's `/chat/completions`: OpenAI, vLLM, Ollama, llama.cpp.
#[derive(Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OpenAiConfig {
    /// Where the API is, without `/chat/completions`: `https://api.openai.com/v1`.
    pub base_url: String,
    /// The key, sent as a bearer token. Give it through the environment.
    #[serde(serialize_with = "redact")]
    pub api_key: Option<SecretString>,
    /// A file with the key, read once at the start; an alternative to `api_key`.
    pub api_key_file: Option<PathBuf>,
    /// The model, as the server calls it, where a task names none.
    pub model: String,
    /// How freely the model chooses its words; 0 repeats itself best.
    pub temperature: f32,
    /// How long one request may take, connecting included. A call makes a second one
    /// where an answer needs repair.
    pub timeout_ms: u64,
    /// Whether the server is asked to hold the model to a JSON schema. One that refuses
    /// is not asked again.
    pub json_schema: bool,
    /// The most facts that are asked for and kept of one passage, the most important first.
    pub facts_max: usize,
    /// The most entities that are asked for and kept of one fact.
    pub entities_per_fact_max: usize,
    /// How many tokens an answer may have. Left out: 512, and 160 for each of `facts_max`,
    /// which is more than they usually take. The facts before a cut are kept, so less saves
    /// tokens and costs facts; more is for models that think before they answer.
    pub max_tokens: Option<u32>,
    /// How an `https://` server is checked, and what it is shown.
    pub tls: ClientTlsConfig,
    /// What a million tokens of prompt cost, in any currency.
    pub prompt_token_price: f64,
    /// What a million tokens of answer cost, in the same currency.
    pub completion_token_price: f64,
}

impl Default for OpenAiConfig {
    fn default() -> Self {
        Self {
            base_url: "https://api.openai.com/v1".to_owned(),
            api_key: None,
            api_key_file: None,
            model: "gpt-4o-mini".to_owned(),
            temperature: 0.0,
            timeout_ms: 60_000,
            json_schema: true,
            // A passage of 200 tokens seldom says more than ten things.
            facts_max: 16,
            entities_per_fact_max: 8,
            max_tokens: None,
            tls: ClientTlsConfig::default(),
            prompt_token_price: 0.0,
            completion_token_price: 0.0,
        }
    }
}

impl fmt::Debug for OpenAiConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("OpenAiConfig")
            .field("base_url", &self.base_url)
            .field("api_key", &self.api_key.as_ref().map(|_key| "[redacted]"))
            .field("api_key_file", &self.api_key_file)
            .field("model", &self.model)
            .field("temperature", &self.temperature)
            .field("timeout_ms", &self.timeout_ms)
            .field("json_schema", &self.json_schema)
            .field("facts_max", &self.facts_max)
            .field("entities_per_fact_max", &self.entities_per_fact_max)
            .field("max_tokens", &self.max_tokens)
            .field("tls", &self.tls)
            .field("prompt_token_price", &self.prompt_token_price)
            .field("completion_token_price", &self.completion_token_price)
            .finish()
    }
}

impl OpenAiConfig {
    /// Checks the values, without touching a file or the network.
    ///
    /// # Errors
    /// [`LlmError::Config`], naming the key, what is wrong with it and the fix.
    pub fn validate(&self) -> Result<(), LlmError> {
        check_url("openai.base_url", &self.base_url)?;
        self.tls.validate(TLS).map_err(|error| tls_error(&error))?;
        if self.tls.is_set() && !self.base_url.starts_with("https://") {
            let fix = "begin it with https://, or leave openai.tls out";
            return Err(config_error("openai.base_url", "speaks no TLS, and openai.tls is set", fix));
        }
        if self.model.trim().is_empty() {
            return Err(config_error("openai.model", "is empty", "name a model of the server's"));
        }
        if !(0.0..=2.0).contains(&self.temperature) {
            let problem = format!("is {}, not 0 to 2", self.temperature);
            return Err(config_error("openai.temperature", problem, "choose a number in between"));
        }
        if !(1..=MAX_TIMEOUT_MS).contains(&self.timeout_ms) {
            let problem = format!("is {}, not 1 to {MAX_TIMEOUT_MS}", self.timeout_ms);
            return Err(config_error("openai.timeout_ms", problem, "choose a number of milliseconds in between"));
        }
        check_count("openai.facts_max", self.facts_max, MAX_FACTS)?;
        check_count("openai.entities_per_fact_max", self.entities_per_fact_max, MAX_ENTITIES_PER_FACT)?;
        check_count("openai.max_tokens", self.max_tokens() as usize, MAX_TOKENS_LIMIT as usize)?;
        check_price("openai.prompt_token_price", self.prompt_token_price)?;
        check_price("openai.completion_token_price", self.completion_token_price)
    }

    /// Returns what a call cost by the configured prices.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a call's tokens are far below 2^53")]
    pub fn cost(&self, usage: Usage) -> f64 {
        let prompt = usage.prompt_tokens as f64 * self.prompt_token_price;
        let completion = usage.completion_tokens as f64 * self.completion_token_price;
        (prompt + completion) / TOKENS_PER_PRICE
    }

    /// Returns how much an answer is asked to hold at most.
    #[must_use]
    pub const fn bounds(&self) -> AnswerBounds {
        AnswerBounds { facts: self.facts_max, entities_per_fact: self.entities_per_fact_max }
    }

    /// Returns how many tokens an answer may have.
    pub(crate) fn max_tokens(&self) -> u32 {
        let usual = self.facts_max.saturating_mul(TOKENS_PER_FACT).saturating_add(TOKENS_AROUND);
        self.max_tokens.unwrap_or_else(|| u32::try_from(usual).unwrap_or(MAX_TOKENS_LIMIT))
    }

    pub(crate) fn read_key(&self) -> Result<Option<SecretString>, LlmError> {
        const FILE_KEY: &str = "openai.api_key_file";
        let text = match (&self.api_key, &self.api_key_file) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => {
                return Err(config_error(FILE_KEY, "stands beside api_key", "keep one of the two"));
            }
            (Some(key), None) => key.expose_secret().to_owned(),
            (None, Some(path)) => std::fs::read_to_string(path).map_err(|error| {
                let problem = format!("cannot read {}: {error}", path.display());
                config_error(FILE_KEY, problem, "name a readable file that holds the key alone")
            })?,
        };
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            // The text itself stays out of the message: it may be most of a key.
            return Err(config_error(
                FILE_KEY,
                "or api_key gives no usable key",
                "a key is one line of printable ASCII without spaces",
            ));
        }
        Ok(Some(SecretString::from(text)))
    }
}

/// Where the settings of TLS stand.
pub(crate) const TLS: &str = "openai.tls";

pub(crate) fn tls_error(error: &InvalidTls) -> LlmError {
    config_error(TLS, error.to_string(), "see docs/access.md")
}

pub(crate) fn config_error(key: &'static str, problem: impl Into<String>, fix: &'static str) -> LlmError {
    LlmError::Config { key, problem: problem.into(), fix }
}

fn check_count(key: &'static str, count: usize, most: usize) -> Result<(), LlmError> {
    if (1..=most).contains(&count) {
        return Ok(());
    }
    Err(config_error(key, format!("is {count}, not 1 to {most}"), "choose a number in between"))
}

fn check_price(key: &'static str, price: f64) -> Result<(), LlmError> {
    if price.is_finite() && price >= 0.0 {
        return Ok(());
    }
    Err(config_error(key, format!("is {price}"), "write what a million tokens cost, 0 if nothing"))
}

fn check_url(key: &'static str, value: &str) -> Result<(), LlmError> {
    let url = reqwest::Url::parse(value)
        .map_err(|error| config_error(key, format!("is no URL: {error}"), "write http://host:port/v1"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(config_error(key, "has another scheme", "use http:// or https://"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        // Would show up wherever the URL is printed.
        return Err(config_error(key, "holds credentials", "use api_key or api_key_file"));
    }
    Ok(())
}

#[expect(clippy::ref_option, reason = "the signature that serde's serialize_with calls")]
fn redact<S: Serializer>(key: &Option<SecretString>, serializer: S) -> Result<S::Ok, S::Error> {
    match key {
        Some(_) => serializer.serialize_some("[redacted]"),
        None => serializer.serialize_none(),
    }
}
