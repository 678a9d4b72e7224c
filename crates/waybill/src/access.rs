//! Who may call: the configuration of it, keys out of Postgres, and the listeners that ask for them.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use rand::TryRng;
use rand::rngs::SysRng;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use waybill_runtime::auth::{
    Action, ApiKey, AuditLog, Caller, Guard, KeyLimits, KeyOptions, KeyRecord, KeySource, KeyState,
};
use waybill_runtime::config::{ConfigError, Secret};
use waybill_runtime::grpc::{ClientOptions, Listener};
use waybill_storage::{Db, audit, keys};
use waybill_tls::ServerTls;

use crate::app_config::AppConfig;
use crate::exit::Usage;

/// Shorter ones can be guessed; those that we make have 69 characters.
const MIN_SECRET_CHARS: usize = 32;

/// API keys.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AuthSection {
    /// Whether callers need one.
    pub(crate) mode: AuthMode,
    /// How long a key that was revoked may still be good: so long answers about keys are kept.
    pub(crate) cache_ms: u64,
    /// A secret that the services share: the relay shows it to the embedding service.
    pub(crate) service_key: Secret,
    /// A secret that lets its holder do what an operator may, until there are keys in Postgres.
    pub(crate) bootstrap_key: Secret,
    /// For how many days the audit log is kept.
    pub(crate) audit_days: u32,
    /// For keys without limits of their own.
    pub(crate) limits: LimitsSection,
}

/// Whether callers need a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AuthMode {
    /// Not on a loopback listener, on any other.
    #[default]
    Auto,
    /// Always.
    Keys,
    /// Never: whoever reaches the listener may do everything.
    Open,
}

/// What a key may use up in each process; 0 is no limit.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LimitsSection {
    /// Calls that begin in a second, on average; six seconds' worth at once.
    pub(crate) requests_per_second: u32,
    /// Calls at a time, streams among them.
    pub(crate) concurrent_calls: u32,
    /// Bytes of one message to the server.
    pub(crate) max_message_bytes: u64,
}

impl Default for AuthSection {
    fn default() -> Self {
        Self {
            mode: AuthMode::Auto,
            // Fewer questions than calls by far, and sooner than somebody can take a key to use.
            cache_ms: 5_000,
            service_key: Secret::default(),
            bootstrap_key: Secret::default(),
            audit_days: 400,
            limits: LimitsSection::default(),
        }
    }
}

impl AuthSection {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        if !(100..=60_000).contains(&self.cache_ms) {
            let fix = "write 100 to 60000";
            return Err(ConfigError::invalid("auth.cache_ms", self.cache_ms, "is out of range", fix));
        }
        if !(1..=36_500).contains(&self.audit_days) {
            let fix = "write 1 to 36500";
            return Err(ConfigError::invalid("auth.audit_days", self.audit_days, "is out of range", fix));
        }
        for (key, secret) in [("auth.service_key", &self.service_key), ("auth.bootstrap_key", &self.bootstrap_key)] {
            let sound =
                secret.expose().len() >= MIN_SECRET_CHARS && secret.expose().bytes().all(|b| b.is_ascii_graphic());
            if !secret.is_empty() && !sound {
                let problem = "is too short, or has characters that can't be sent";
                let fix =
                    format!("write {MIN_SECRET_CHARS} or more random characters, such as `openssl rand -hex 32` makes");
                return Err(ConfigError::invalid(key, "", problem, &fix));
            }
        }
        if !self.service_key.is_empty() && self.service_key.expose() == self.bootstrap_key.expose() {
            let fix = "make another: services need not do what operators may";
            return Err(ConfigError::invalid("auth.bootstrap_key", "", "is the service_key, too", fix));
        }
        Ok(())
    }

    fn options(&self) -> KeyOptions {
        let limits = &self.limits;
        KeyOptions {
            cache: Duration::from_millis(self.cache_ms),
            limits: KeyLimits {
                requests_per_second: NonZeroU32::new(limits.requests_per_second),
                concurrent_calls: Some(limits.concurrent_calls).filter(|limit| *limit > 0),
                max_message_bytes: Some(limits.max_message_bytes).filter(|limit| *limit > 0),
            },
            service_key: self.service_key.clone(),
            bootstrap_key: self.bootstrap_key.clone(),
        }
    }
}

/// How our services call each other.
pub(crate) fn between_services(config: &AppConfig) -> ClientOptions {
    ClientOptions { tls: config.endpoints_tls(), api_key: config.auth.service_key.clone() }
}

/// What stands in front of every listener of a process.
#[derive(Debug, Clone)]
pub(crate) struct Front {
    tls: Option<ServerTls>,
    guard: Guard,
}

impl Front {
    /// Reads certificates, and decides whether callers need a key at these addresses. Refuses
    /// addresses that others reach if there is no key to be had: it would be of no use to anybody,
    /// or of use to everybody.
    pub(crate) async fn open(config: &AppConfig, db: &Db, addresses: &[SocketAddr]) -> anyhow::Result<Self> {
        let auth = &config.auth;
        let tls = config.grpc_tls()?;
        let reachable = addresses.iter().find(|address| !address.ip().is_loopback());
        let asks = match (auth.mode, reachable) {
            (AuthMode::Keys, _) => true,
            (AuthMode::Open, Some(address)) => {
                tracing::warn!(%address, "open to the network, and nobody is asked who they are");
                false
            }
            (AuthMode::Open, None) | (AuthMode::Auto, None) => false,
            (AuthMode::Auto, Some(address)) => {
                if auth.bootstrap_key.is_empty() && !keys::any(db).await.context("look for API keys")? {
                    return Err(Usage(no_keys(*address)).into());
                }
                true
            }
        };
        let guard = if asks { Guard::keys(Arc::new(Stored(db.clone())), &auth.options()) } else { Guard::open() };
        let log = Noted { db: db.clone(), keep_days: i32::try_from(auth.audit_days).unwrap_or(i32::MAX) };
        Ok(Self { tls, guard: guard.with_audit(Arc::new(log)) })
    }

    /// Says whether callers need a key.
    pub(crate) const fn asks_for_keys(&self) -> bool {
        self.guard.asks_for_keys()
    }

    /// Says whether callers speak TLS.
    pub(crate) const fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    pub(crate) fn listener(&self, tcp: TcpListener) -> Listener {
        Listener::new(tcp, self.tls.clone(), self.guard.clone())
    }
}

/// Makes a secret for one run of this process.
pub(crate) fn random_secret() -> anyhow::Result<Secret> {
    let mut random = [0; ApiKey::RANDOM_BYTES];
    SysRng.try_fill_bytes(&mut random).context("read random bytes")?;
    Ok(Secret::new(ApiKey::from_random(&random).expose()))
}

fn no_keys(address: SocketAddr) -> String {
    format!(
        "{address} is open to the network, and there is no API key yet: make one with `waybill keys create`, \
         listen on 127.0.0.1, or let everybody in with --insecure-no-keys (auth.mode = \"open\")"
    )
}

/// Keys out of Postgres.
struct Stored(Db);

#[async_trait]
impl KeySource for Stored {
    async fn find(&self, hash: &[u8; 32]) -> anyhow::Result<Option<KeyRecord>> {
        let found = keys::find(&self.0, hash).await?;
        Ok(found.map(|key| {
            let state = match (key.revoked_at, key.is_expired) {
                (Some(_), _) => KeyState::Revoked,
                (None, true) => KeyState::Expired,
                (None, false) => KeyState::Active,
            };
            let limits = KeyLimits {
                requests_per_second: key.limits.requests_per_second.and_then(NonZeroU32::new),
                concurrent_calls: key.limits.concurrent_calls,
                max_message_bytes: key.limits.max_message_bytes,
            };
            KeyRecord { caller: Caller::new(&key.name, Some(&key.prefix), key.role, key.projects), state, limits }
        }))
    }
}

/// The audit log in Postgres.
struct Noted {
    db: Db,
    keep_days: i32,
}

/// Old rows that go with each new one: the log shrinks faster than it grows.
const PURGED_AT_ONCE: i64 = 100;

#[async_trait]
impl AuditLog for Noted {
    async fn begin(&self, action: &Action) -> anyhow::Result<i64> {
        let begun = audit::Begun {
            actor: action.caller.name(),
            key_prefix: action.caller.prefix(),
            action: &action.method,
            request: &action.request,
            request_id: &action.request_id,
        };
        Ok(audit::begin(&self.db, &begun).await?)
    }

    async fn end(&self, id: i64, outcome: &str, result: &str) -> anyhow::Result<()> {
        audit::end(&self.db, id, outcome, result).await?;
        audit::purge(&self.db, self.keep_days, PURGED_AT_ONCE).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_long_and_not_another_s() {
        AuthSection::default().validate().unwrap();
        let long = "0123456789abcdef0123456789abcdef";
        let sound = AuthSection { service_key: Secret::new(long), ..AuthSection::default() };
        sound.validate().unwrap();
        for (service, bootstrap) in [("short", ""), ("", "short"), (long, long), (&format!("{long} "), "")] {
            let section = AuthSection {
                service_key: Secret::new(service),
                bootstrap_key: Secret::new(bootstrap),
                ..AuthSection::default()
            };
            let error = section.validate().unwrap_err().to_string();
            assert!(error.contains("auth.") && !error.contains("short\"") && !error.contains(long), "{error}");
        }
    }
}
