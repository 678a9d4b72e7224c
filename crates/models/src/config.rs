use std::{path::PathBuf, sync::Arc};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};
use waybill_tls::{ClientTlsConfig, InvalidTls};

use crate::{EmbeddingProvider, ModelError, local::LocalProvider, openai::OpenAiProvider, tei::TeiProvider};

/// The longest text a configured model may claim to read, in tokens. Above it, one text
/// could hold a worker for minutes.
const MAX_TOKENS_LIMIT: usize = 32_768;

/// The most threads a local model may run on. A larger number is a slip of the pen.
const MAX_THREADS: usize = 256;

/// The most texts in one batch or one request; OpenAI takes no more than this.
const MAX_BATCH: usize = 2_048;

/// The most requests to a server at a time, and the most batches in a local queue.
const MAX_IN_FLIGHT: usize = 1_024;

/// The longest a server may take to answer: more than a cold start of a large model.
const MAX_TIMEOUT_MS: u64 = 600_000;

/// Which model makes the vectors. Only the section that `kind` names is read.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProviderConfig {
    /// The kind of provider.
    pub kind: ProviderKind,
    /// A model in this process.
    pub local: LocalConfig,
    /// A server that speaks OpenAI's `/v1/embeddings`.
    pub openai: OpenAiConfig,
    /// A Text Embeddings Inference server.
    pub tei: TeiConfig,
}

/// The kinds of provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProviderKind {
    /// A model from a folder, run in this process.
    #[default]
    Local,
    /// Any OpenAI-compatible server: OpenAI, vLLM, Ollama, LocalAI.
    OpenAi,
    /// Text Embeddings Inference.
    Tei,
}

/// A model from a folder, run in this process.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LocalConfig {
    /// The folder: weights, `tokenizer.json` and, for BERT, `config.json`.
    pub path: PathBuf,
    /// What its files are; found out from the folder if absent.
    pub format: Option<ModelFormat>,
    /// The model's name; the folder's name and a fingerprint of its files if absent.
    pub name: Option<String>,
    /// How many threads embed; 0 takes one for each core.
    pub threads: usize,
    /// How many texts one thread takes at a time.
    pub batch: usize,
    /// How many batches wait for a thread before callers have to.
    pub queue: usize,
    /// How many tokens of a text are read; what the folder says if absent.
    pub max_tokens: Option<usize>,
    /// Put in front of each document; some models want `passage: `.
    pub document_prefix: String,
    /// Put in front of each query; some models want `query: `.
    pub query_prefix: String,
    /// The ONNX Runtime library, for ONNX models. If absent: the environment variable
    /// `ORT_DYLIB_PATH`, the model's folder, `onnxruntime` beside that folder, the
    /// system's library path.
    pub onnxruntime: Option<PathBuf>,
}

impl Default for LocalConfig {
    fn default() -> Self {
        Self {
            path: PathBuf::from("models/minilm"),
            format: None,
            name: None,
            threads: 0,
            // Enough rows for the matrix products to run at full speed; more only adds waiting.
            batch: 32,
            // A second's work for a thread or two: callers behind it should know that they wait.
            queue: 64,
            max_tokens: None,
            document_prefix: String::new(),
            query_prefix: String::new(),
            onnxruntime: None,
        }
    }
}

/// The formats of local models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelFormat {
    /// A BERT in safetensors: `config.json`, `model.safetensors`, `tokenizer.json`.
    Bert,
    /// An ONNX graph of the same, often int8: `model.onnx`, `tokenizer.json`.
    Onnx,
    /// A table with a vector for each token: one safetensors file, `tokenizer.json`.
    Static,
}

/// A server that speaks OpenAI's `/v1/embeddings`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OpenAiConfig {
    /// Where the API is, without `/embeddings`: `https://api.openai.com/v1`.
    pub base_url: String,
    /// The model, as the server calls it.
    pub model: String,
    /// The key, sent as a bearer token. Give it through the environment.
    #[serde(serialize_with = "redact")]
    pub api_key: Option<SecretString>,
    /// A file with the key, read once at the start; an alternative to `api_key`.
    pub api_key_file: Option<PathBuf>,
    /// How many numbers a vector has; asked of the server at the start if absent.
    pub dimensions: Option<usize>,
    /// Whether the server is asked to shorten its vectors to `dimensions`.
    pub send_dimensions: bool,
    /// How many tokens of a text the model reads. The server does not tell.
    pub max_tokens: usize,
    /// How many texts one request carries.
    pub batch: usize,
    /// How many requests are under way at a time.
    pub concurrency: usize,
    /// How long one request may take, connecting included.
    pub timeout_ms: u64,
    /// How an `https://` server is checked, and what it is shown.
    pub tls: ClientTlsConfig,
    /// Put in front of each document; some models want `passage: `.
    pub document_prefix: String,
    /// Put in front of each query; some models want `query: `.
    pub query_prefix: String,
}

impl Default for OpenAiConfig {
    fn default() -> Self {
        Self {
            base_url: "https://api.openai.com/v1".to_owned(),
            model: "text-embedding-3-small".to_owned(),
            api_key: None,
            api_key_file: None,
            dimensions: None,
            send_dimensions: false,
            max_tokens: 8_191,
            batch: 64,
            concurrency: 4,
            timeout_ms: 30_000,
            tls: ClientTlsConfig::default(),
            document_prefix: String::new(),
            query_prefix: String::new(),
        }
    }
}

/// A Text Embeddings Inference server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TeiConfig {
    /// Where the server is: `http://tei:8080`.
    pub base_url: String,
    /// The key, sent as a bearer token, if the server wants one.
    #[serde(serialize_with = "redact")]
    pub api_key: Option<SecretString>,
    /// A file with the key, read once at the start; an alternative to `api_key`.
    pub api_key_file: Option<PathBuf>,
    /// How many numbers a vector has; asked of the server at the start if absent.
    pub dimensions: Option<usize>,
    /// How many texts one request carries; never more than the server says it takes.
    pub batch: usize,
    /// How many requests are under way at a time.
    pub concurrency: usize,
    /// How long one request may take, connecting included.
    pub timeout_ms: u64,
    /// How an `https://` server is checked, and what it is shown.
    pub tls: ClientTlsConfig,
    /// Put in front of each document; some models want `passage: `.
    pub document_prefix: String,
    /// Put in front of each query; some models want `query: `.
    pub query_prefix: String,
}

impl Default for TeiConfig {
    fn default() -> Self {
        Self {
            base_url: "http://127.0.0.1:8080".to_owned(),
            api_key: None,
            api_key_file: None,
            dimensions: None,
            // The server's own default limit.
            batch: 32,
            concurrency: 4,
            timeout_ms: 30_000,
            tls: ClientTlsConfig::default(),
            document_prefix: String::new(),
            query_prefix: String::new(),
        }
    }
}

impl ProviderConfig {
    /// Checks the section that is in use, without touching a file or the network.
    ///
    /// # Errors
    /// [`ModelError::Config`], naming the key, what is wrong with it and the fix.
    pub fn validate(&self) -> Result<(), ModelError> {
        match self.kind {
            ProviderKind::Local => self.local.validate(),
            ProviderKind::OpenAi => self.openai.validate(),
            ProviderKind::Tei => self.tei.validate(),
        }
    }
}

/// Makes the configured provider ready: loads the local model, or asks the server what
/// the configuration leaves open.
///
/// # Errors
/// [`ModelError::Config`] and [`ModelError::Load`] need somebody to change something;
/// other errors come from the server, and [`ModelError::class`] tells whether to try again.
pub async fn build(config: &ProviderConfig) -> Result<Arc<dyn EmbeddingProvider>, ModelError> {
    config.validate()?;
    let provider: Arc<dyn EmbeddingProvider> = match config.kind {
        ProviderKind::Local => Arc::new(LocalProvider::load(&config.local).await?),
        ProviderKind::OpenAi => Arc::new(OpenAiProvider::connect(&config.openai).await?),
        ProviderKind::Tei => Arc::new(TeiProvider::connect(&config.tei).await?),
    };
    let info = provider.info();
    tracing::info!(
        model = info.name,
        provider = info.provider,
        dimensions = info.dimensions,
        max_tokens = info.max_tokens,
        "embedding model ready"
    );
    Ok(provider)
}

impl LocalConfig {
    fn validate(&self) -> Result<(), ModelError> {
        if self.path.as_os_str().is_empty() {
            return Err(config_error("local.path", "is empty", "name the model's folder"));
        }
        if self.name.as_deref().is_some_and(|name| name.trim().is_empty()) {
            return Err(config_error("local.name", "is empty", "give a name or leave it out"));
        }
        check_range("local.threads", self.threads, 0, MAX_THREADS)?;
        check_range("local.batch", self.batch, 1, MAX_BATCH)?;
        check_range("local.queue", self.queue, 1, MAX_IN_FLIGHT)?;
        // Below 8 a BERT would read little but its own marks.
        self.max_tokens.map_or(Ok(()), |tokens| check_range("local.max_tokens", tokens, 8, MAX_TOKENS_LIMIT))
    }
}

impl OpenAiConfig {
    fn validate(&self) -> Result<(), ModelError> {
        check_url("openai.base_url", &self.base_url)?;
        check_tls("openai.base_url", &self.base_url, OPENAI_TLS, &self.tls)?;
        if self.model.trim().is_empty() {
            return Err(config_error("openai.model", "is empty", "name a model of the server's"));
        }
        if self.send_dimensions && self.dimensions.is_none() {
            return Err(config_error(
                "openai.send_dimensions",
                "is true without dimensions",
                "set openai.dimensions too",
            ));
        }
        check_range("openai.max_tokens", self.max_tokens, 8, MAX_TOKENS_LIMIT)?;
        check_range("openai.batch", self.batch, 1, MAX_BATCH)?;
        check_range("openai.concurrency", self.concurrency, 1, MAX_IN_FLIGHT)?;
        check_timeout("openai.timeout_ms", self.timeout_ms)
    }

    pub(crate) fn read_key(&self) -> Result<Option<SecretString>, ModelError> {
        read_key("openai.api_key_file", self.api_key.as_ref(), self.api_key_file.as_ref())
    }
}

impl TeiConfig {
    fn validate(&self) -> Result<(), ModelError> {
        check_url("tei.base_url", &self.base_url)?;
        check_tls("tei.base_url", &self.base_url, TEI_TLS, &self.tls)?;
        check_range("tei.batch", self.batch, 1, MAX_BATCH)?;
        check_range("tei.concurrency", self.concurrency, 1, MAX_IN_FLIGHT)?;
        check_timeout("tei.timeout_ms", self.timeout_ms)
    }

    pub(crate) fn read_key(&self) -> Result<Option<SecretString>, ModelError> {
        read_key("tei.api_key_file", self.api_key.as_ref(), self.api_key_file.as_ref())
    }
}

/// Where the settings of TLS stand.
pub(crate) const OPENAI_TLS: &str = "openai.tls";
pub(crate) const TEI_TLS: &str = "tei.tls";

pub(crate) fn tls_error(section: &'static str, error: &InvalidTls) -> ModelError {
    config_error(section, error.to_string(), "see docs/access.md")
}

fn check_tls(url_key: &'static str, url: &str, section: &'static str, tls: &ClientTlsConfig) -> Result<(), ModelError> {
    tls.validate(section).map_err(|error| tls_error(section, &error))?;
    if tls.is_set() && !url.starts_with("https://") {
        let problem = format!("speaks no TLS, and {section} is set");
        return Err(config_error(url_key, problem, "begin it with https://, or leave the certificates out"));
    }
    Ok(())
}

pub(crate) fn config_error(key: &'static str, problem: impl Into<String>, fix: &'static str) -> ModelError {
    ModelError::Config { key, problem: problem.into(), fix }
}

fn check_range(key: &'static str, value: usize, min: usize, max: usize) -> Result<(), ModelError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(config_error(key, format!("is {value}, not {min} to {max}"), "choose a number in between"))
}

fn check_timeout(key: &'static str, value_ms: u64) -> Result<(), ModelError> {
    if (1..=MAX_TIMEOUT_MS).contains(&value_ms) {
        return Ok(());
    }
    let problem = format!("is {value_ms}, not 1 to {MAX_TIMEOUT_MS}");
    Err(config_error(key, problem, "choose a number of milliseconds in between"))
}

fn check_url(key: &'static str, value: &str) -> Result<(), ModelError> {
    let url = reqwest::Url::parse(value)
        .map_err(|error| config_error(key, format!("is no URL: {error}"), "write http://host:port"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(config_error(key, "has another scheme", "use http:// or https://"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        // Would show up wherever the URL is printed.
        return Err(config_error(key, "holds credentials", "use api_key or api_key_file"));
    }
    Ok(())
}

fn read_key(
    file_key: &'static str,
    key: Option<&SecretString>,
    file: Option<&PathBuf>,
) -> Result<Option<SecretString>, ModelError> {
    let text = match (key, file) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => {
            return Err(config_error(file_key, "stands beside api_key", "keep one of the two"));
        }
        (Some(key), None) => key.expose_secret().to_owned(),
        (None, Some(path)) => std::fs::read_to_string(path).map_err(|error| {
            let problem = format!("cannot read {}: {error}", path.display());
            config_error(file_key, problem, "name a readable file that holds the key alone")
        })?,
    };
    let text = text.trim();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        // The text itself stays out of the message: it may be most of a key.
        return Err(config_error(
            file_key,
            "or api_key gives no usable key",
            "a key is one line of printable ASCII without spaces",
        ));
    }
    Ok(Some(SecretString::from(text)))
}

#[expect(clippy::ref_option, reason = "the signature that serde's serialize_with calls")]
fn redact<S: Serializer>(key: &Option<SecretString>, serializer: S) -> Result<S::Ok, S::Error> {
    match key {
        Some(_) => serializer.serialize_some("[redacted]"),
        None => serializer.serialize_none(),
    }
}
