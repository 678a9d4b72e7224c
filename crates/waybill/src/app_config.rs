//! The whole configuration: one section for each store and service.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use waybill_llm_queue::QueueConfig;
use waybill_runtime::admin::AdminConfig;
use waybill_runtime::config::{ConfigError, Loader, Secret, SecretUrl, ShutdownConfig};
use waybill_runtime::telemetry::{Format, TelemetryConfig};
use waybill_storage::DbConfig;
use waybill_tls::{ClientTls, ClientTlsConfig, ServerTls, ServerTlsConfig, Serves};
use waybill_vectors::QdrantConfig;

use crate::access::AuthSection;
use crate::client::Role;

/// Names that other programs use too, below our own names for the same keys.
const ALIASES: [(&str, &str); 3] =
    [("DATABASE_URL", "database.url"), ("REDIS_URL", "redis.url"), ("QDRANT_URL", "qdrant.url")];

/// Variables of the command line, which share our prefix but are no keys.
const NOT_KEYS: [&str; 15] = [
    "WAYBILL_API_KEY",
    "WAYBILL_API_KEY_FILE",
    "WAYBILL_CA_FILE",
    "WAYBILL_CERT_FILE",
    "WAYBILL_KEY_FILE",
    "WAYBILL_CONFIG",
    "WAYBILL_DATA_DIR",
    "WAYBILL_ENDPOINT",
    "WAYBILL_MODEL_DIR",
    "WAYBILL_MODELS_DIR",
    "WAYBILL_POSTGRES_BIN_DIR",
    "WAYBILL_PROJECT",
    "WAYBILL_REDIS_BIN",
    "WAYBILL_RELAY_ENDPOINT",
    "WAYBILL_SERVER_NAME",
];

/// Everything that can be configured. The defaults are the lowest layer.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AppConfig {
    pub(crate) database: DatabaseSection,
    pub(crate) redis: RedisSection,
    pub(crate) qdrant: QdrantSection,
    pub(crate) listen: ListenSection,
    pub(crate) endpoints: EndpointsSection,
    pub(crate) ingestion: waybill_ingestion::Config,
    pub(crate) embedding: waybill_embedding::Config,
    pub(crate) extraction: waybill_extraction::Config,
    pub(crate) relay: waybill_relay::Config,
    pub(crate) auth: AuthSection,
    pub(crate) tls: ServerTlsConfig,
    pub(crate) shutdown: ShutdownConfig,
    pub(crate) log: LogSection,
    pub(crate) admin: AdminConfig,
    pub(crate) telemetry: TelemetryConfig,
}

/// Postgres, the source of truth.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DatabaseSection {
    /// `postgres://user@host/database`; `sslmode` in it decides about TLS. Empty: `waybill
    /// up` runs one of its own.
    pub(crate) url: SecretUrl,
    /// The most connections a process opens.
    pub(crate) max_connections: u32,
    /// How long a request waits for a connection before it is told that there is none.
    pub(crate) acquire_timeout_ms: u64,
}

impl Default for DatabaseSection {
    fn default() -> Self {
        Self {
            url: SecretUrl::default(),
            // Four services fit into the 100 that Postgres allows by default.
            max_connections: 20,
            // Longer than a failover's first retry, shorter than what callers wait.
            acquire_timeout_ms: 10_000,
        }
    }
}

/// Redis, the LLM work queue.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RedisSection {
    /// `redis://host:6379`. Empty: `waybill up` runs one of its own.
    pub(crate) url: SecretUrl,
    /// Begins every key: installations that share a server need one each.
    pub(crate) prefix: String,
    /// The most requests of a priority that wait in Redis; what is more waits in Postgres.
    pub(crate) stream_max: u64,
    /// How a `rediss://` server is checked, and what it is shown.
    pub(crate) tls: ClientTlsConfig,
}

impl Default for RedisSection {
    fn default() -> Self {
        // A request takes some hundred bytes: this many fit into a small server.
        let (url, tls) = (SecretUrl::default(), ClientTlsConfig::default());
        Self { url, prefix: "waybill".to_owned(), stream_max: 100_000, tls }
    }
}

/// Qdrant, the vector store.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct QdrantSection {
    /// Its gRPC address, `http://host:6334`. Empty: `waybill up` runs the engine itself.
    pub(crate) url: SecretUrl,
    /// Sent with every call, if the server wants one.
    pub(crate) api_key: Secret,
    /// How long a call may take that has no deadline of its own.
    pub(crate) timeout_ms: u64,
    /// How an `https://` server is checked, and what it is shown.
    pub(crate) tls: ClientTlsConfig,
}

impl Default for QdrantSection {
    fn default() -> Self {
        // Creating a collection on a busy server takes a second or two.
        let (url, tls) = (SecretUrl::default(), ClientTlsConfig::default());
        Self { url, api_key: Secret::default(), timeout_ms: 10_000, tls }
    }
}

/// Where `waybill serve` listens. `waybill up` has flags of its own.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ListenSection {
    pub(crate) ingestion: SocketAddr,
    pub(crate) embedding: SocketAddr,
    pub(crate) extraction: SocketAddr,
    pub(crate) relay: SocketAddr,
}

impl Default for ListenSection {
    fn default() -> Self {
        // Loopback: a service that is open to a network should be so on purpose.
        let at = |role: Role| SocketAddr::from((Ipv4Addr::LOCALHOST, role.default_port()));
        Self {
            ingestion: at(Role::Ingestion),
            embedding: at(Role::Search),
            extraction: at(Role::Extraction),
            relay: at(Role::Relay),
        }
    }
}

/// Where services find each other, for `waybill serve` (`waybill up` knows), and how they trust
/// each other.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct EndpointsSection {
    /// The embedding service, for the relay.
    pub(crate) embedding: String,
    /// How an `https://` service is checked, and what it is shown.
    pub(crate) tls: ClientTlsConfig,
}

impl Default for EndpointsSection {
    fn default() -> Self {
        let embedding = format!("http://127.0.0.1:{}", Role::Search.default_port());
        Self { embedding, tls: ClientTlsConfig::default() }
    }
}

/// Logs.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LogSection {
    /// How lines look. What is logged is set by the variable WAYBILL_LOG.
    pub(crate) format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogFormat {
    /// For people on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

impl From<LogFormat> for Format {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Auto => Self::Auto,
            LogFormat::Human => Self::Human,
            LogFormat::Json => Self::Json,
        }
    }
}

impl AppConfig {
    /// Reads all layers and checks the result. Nothing else is done before.
    pub(crate) fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let mut loader = Loader::from_environment().toml_file(file);
        for (variable, key) in ALIASES {
            loader = loader.alias(variable, key);
        }
        for variable in NOT_KEYS {
            loader = loader.ignore(variable);
        }
        let config: Self = loader.load()?;
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        check_scheme("database.url", &self.database.url, &["postgres", "postgresql"])?;
        check_scheme("redis.url", &self.redis.url, &["redis", "rediss"])?;
        check_scheme("qdrant.url", &self.qdrant.url, &["http", "https"])?;
        check_secure("redis.url", &self.redis.url, "rediss", &self.redis.tls)?;
        check_secure("qdrant.url", &self.qdrant.url, "https", &self.qdrant.tls)?;
        check_range("database.max_connections", self.database.max_connections.into(), 1..=1_000)?;
        // Less than a tenth of a second refuses work on any hiccup; an hour is a slip.
        let timeouts = 100..=3_600_000;
        check_range("database.acquire_timeout_ms", self.database.acquire_timeout_ms, timeouts.clone())?;
        check_range("qdrant.timeout_ms", self.qdrant.timeout_ms, timeouts)?;
        check_prefix("redis.prefix", &self.redis.prefix)?;
        check_range("redis.stream_max", self.redis.stream_max, 1..=10_000_000)?;
        self.ingestion.validate().map_err(|problem| section_error("ingestion", &problem))?;
        self.embedding.validate()?;
        self.extraction.validate().map_err(|problem| section_error("extraction", &problem))?;
        self.relay.validate().map_err(|problem| section_error("relay", &problem))?;
        self.auth.validate()?;
        self.tls.validate("tls")?;
        self.admin.tls.validate("admin.tls")?;
        self.redis.tls.validate("redis.tls")?;
        self.qdrant.tls.validate("qdrant.tls")?;
        self.endpoints.tls.validate("endpoints.tls")?;
        self.telemetry.validate("telemetry")?;
        self.shutdown.validate("shutdown")
    }

    /// Says how to reach Postgres. `application` is what `pg_stat_activity` shows.
    pub(crate) fn db(&self, application: &str) -> Result<DbConfig, ConfigError> {
        require("database.url", &self.database.url, "postgres://user@host/waybill")?;
        Ok(DbConfig {
            url: self.database.url.expose().to_owned(),
            max_connections: self.database.max_connections,
            acquire_timeout: Duration::from_millis(self.database.acquire_timeout_ms),
            application_name: application.to_owned(),
        })
    }

    /// Says how to reach Qdrant.
    pub(crate) fn qdrant(&self) -> Result<QdrantConfig, ConfigError> {
        require("qdrant.url", &self.qdrant.url, "http://host:6334")?;
        let key = (!self.qdrant.api_key.is_empty()).then(|| self.qdrant.api_key.expose().to_owned());
        let mut config = QdrantConfig::new(self.qdrant.url.expose()).with_api_key(key);
        config.timeout = Duration::from_millis(self.qdrant.timeout_ms);
        config.tls = self.qdrant.tls.of("qdrant.tls");
        Ok(config)
    }

    /// Says how to reach the queue in Redis.
    pub(crate) fn queue(&self) -> Result<QueueConfig, ConfigError> {
        require("redis.url", &self.redis.url, "redis://host:6379")?;
        let mut config = QueueConfig::new(self.redis.url.expose());
        config.prefix.clone_from(&self.redis.prefix);
        config.stream_max = self.redis.stream_max;
        config.tls = self.redis.tls.of("redis.tls");
        Ok(config)
    }

    /// Reads what gRPC listeners show; `None` if they speak no TLS.
    pub(crate) fn grpc_tls(&self) -> Result<Option<ServerTls>, ConfigError> {
        Ok(ServerTls::load("tls", &self.tls, Serves::Grpc)?)
    }

    /// Reads what the admin port shows; `None` if it speaks no TLS.
    pub(crate) fn admin_tls(&self) -> Result<Option<ServerTls>, ConfigError> {
        Ok(ServerTls::load("admin.tls", &self.admin.tls, Serves::Http)?)
    }

    /// Returns how our services trust each other.
    pub(crate) fn endpoints_tls(&self) -> ClientTls {
        self.endpoints.tls.of("endpoints.tls")
    }

    /// Reads all certificates, keys and authorities, to see that they can be used. Says of each
    /// section whether it has any.
    pub(crate) fn certificates(&self) -> [(&'static str, Result<bool, ConfigError>); 9] {
        let client = |config: &ClientTlsConfig, section| match config.is_set() {
            true => (section, config.of(section).check().map(|()| true).map_err(ConfigError::from)),
            false => (section, Ok(false)),
        };
        [
            ("tls", self.grpc_tls().map(|tls| tls.is_some())),
            ("admin.tls", self.admin_tls().map(|tls| tls.is_some())),
            client(&self.endpoints.tls, "endpoints.tls"),
            client(&self.redis.tls, "redis.tls"),
            client(&self.qdrant.tls, "qdrant.tls"),
            client(&self.telemetry.tls, "telemetry.tls"),
            client(&self.embedding.model.openai.tls, "embedding.model.openai.tls"),
            client(&self.embedding.model.tei.tls, "embedding.model.tei.tls"),
            client(&self.extraction.openai.tls, "extraction.openai.tls"),
        ]
    }
}

/// Lists the variables of the environment that the configuration takes.
pub(crate) fn variables_in_use() -> Vec<String> {
    let is_ours = |name: &String| {
        ALIASES.iter().any(|(alias, _)| alias == name)
            || name.starts_with("WAYBILL_") && name.contains("__") && !NOT_KEYS.contains(&name.as_str())
    };
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let mut names: Vec<_> = names.filter(is_ours).collect();
    names.sort();
    names
}

fn check_scheme(key: &str, url: &SecretUrl, schemes: &[&str]) -> Result<(), ConfigError> {
    let scheme = url.expose().split_once("://").map_or("", |(scheme, _)| scheme);
    if url.is_empty() || schemes.contains(&scheme) {
        return Ok(());
    }
    let fix = format!("begin it with {}://", schemes.join(":// or "));
    Err(ConfigError::invalid(key, url, "is a URL of another kind", &fix))
}

/// Refuses certificates for a connection that would not use them.
fn check_secure(key: &str, url: &SecretUrl, scheme: &str, tls: &ClientTlsConfig) -> Result<(), ConfigError> {
    if url.is_empty() || !tls.is_set() || url.expose().starts_with(&format!("{scheme}://")) {
        return Ok(());
    }
    let section = key.replace(".url", ".tls");
    let fix = format!("begin it with {scheme}://, or leave {section} out");
    Err(ConfigError::invalid(key, url, &format!("speaks no TLS, and {section} is set"), &fix))
}

/// Makes an error of a section's own complaint, "key is value: fix".
fn section_error(section: &str, complaint: &str) -> ConfigError {
    let (problem, fix) = complaint.split_once(": ").unwrap_or((complaint, "mend it"));
    let (key, problem) = problem.split_once(' ').unwrap_or(("", problem));
    // Some sections name themselves, some don't.
    let key = key.strip_prefix(section).map_or(key, |key| key.trim_start_matches('.'));
    ConfigError {
        key: Some(format!("{section}.{key}")),
        value: None,
        origin: None,
        problem: problem.to_owned(),
        fix: fix.to_owned(),
    }
}

fn check_range(key: &str, value: u64, range: std::ops::RangeInclusive<u64>) -> Result<(), ConfigError> {
    if range.contains(&value) {
        return Ok(());
    }
    let fix = format!("write {} to {}", range.start(), range.end());
    Err(ConfigError::invalid(key, value, "is out of range", &fix))
}

/// Allows what stands in a key of Redis without meaning anything there: braces would choose
/// a cluster's slot.
fn check_prefix(key: &str, prefix: &str) -> Result<(), ConfigError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    if (1..=64).contains(&prefix.len()) && prefix.bytes().all(is_plain) {
        return Ok(());
    }
    let fix = "write 1 to 64 of a-z, A-Z, 0-9, \"-\", \"_\", \".\" and \":\"";
    Err(ConfigError::invalid(key, format!("{prefix:?}"), "can't begin a key", fix))
}

fn require(key: &str, url: &SecretUrl, example: &str) -> Result<(), ConfigError> {
    if !url.is_empty() {
        return Ok(());
    }
    let variable = ALIASES.iter().find(|(_, aliased)| *aliased == key).map_or("it", |(name, _)| name);
    let fix = format!("set {variable}, or `{key}` in the file, such as {example}");
    Err(ConfigError::invalid(key, "\"\"", "is not set", &fix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        AppConfig::default().validate().unwrap();
    }

    #[test]
    fn a_store_that_is_needed_and_not_named_says_how_to_name_it() {
        let error = AppConfig::default().db("x").unwrap_err().to_string();
        assert!(error.contains("DATABASE_URL") && error.contains("postgres://"), "{error}");
        let error = AppConfig::default().queue().unwrap_err().to_string();
        assert!(error.contains("redis.url") && error.contains("REDIS_URL"), "{error}");
    }

    #[test]
    fn the_queue_is_what_the_redis_section_says() {
        let mut config = AppConfig::default();
        config.redis.url = SecretUrl::new("redis://127.0.0.1:1");
        config.redis.prefix = "other".to_owned();
        config.redis.stream_max = 7;
        config.validate().unwrap();
        let queue = config.queue().unwrap();
        assert_eq!((queue.prefix.as_str(), queue.stream_max), ("other", 7));
    }

    #[test]
    fn certificates_are_for_connections_that_use_them() {
        let mut config = AppConfig::default();
        config.redis.tls.ca_file = "/ca.pem".into();
        config.qdrant.tls.ca_file = "/ca.pem".into();
        config.telemetry.tls.ca_file = "/ca.pem".into();
        config.validate().unwrap();
        (config.redis.url, config.qdrant.url) = (SecretUrl::new("rediss://r"), SecretUrl::new("https://q"));
        config.telemetry.otlp_endpoint = "https://c".to_owned();
        config.validate().unwrap();
        let mut plain = [config.clone(), config.clone(), config];
        plain[0].redis.url = SecretUrl::new("redis://r");
        plain[1].qdrant.url = SecretUrl::new("http://q");
        plain[2].telemetry.otlp_endpoint = "http://c".to_owned();
        for (config, said) in plain.iter().zip(["rediss://", "qdrant.tls", "telemetry.tls"]) {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn a_prefix_means_nothing_to_redis() {
        for bad in ["", "a b", "{a}", "a*"] {
            let mut config = AppConfig::default();
            config.redis.prefix = bad.to_owned();
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains("redis.prefix"), "{error}");
        }
        let mut config = AppConfig::default();
        config.redis.stream_max = 0;
        assert!(config.validate().unwrap_err().to_string().contains("redis.stream_max"));
    }

    #[test]
    fn a_section_s_complaint_names_its_key_once() {
        for key in ["group_items", "ingestion.group_items"] {
            let error = section_error("ingestion", &format!("{key} is 0: set it to 1 at least"));
            let expected = "configuration: `ingestion.group_items`: is 0; set it to 1 at least";
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn a_url_of_another_kind_is_refused_without_its_password() {
        let mut config = AppConfig::default();
        config.database.url = SecretUrl::new("mysql://me:hunter2@db/x");
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains("database.url") && error.contains("postgres://"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}
