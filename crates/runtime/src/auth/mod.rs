//! Who may call what: API keys with roles, for projects, within limits; and the audit of what
//! operators do. Checked in one place for every method of every service: `grpc::serve` asks the
//! [`Guard`] before a handler sees anything.
//!
//! What a method asks of its caller stands in the protos, as the option
//! `waybill.common.v1.access`. Keys are somebody else's to store: see [`KeySource`].

mod audit;
mod body;
mod cache;
mod caller;
mod key;
mod lease;
mod limits;
mod policy;
mod scan;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::{HeaderMap, header};
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Meter};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tonic::{Code, Status};
use waybill_domain::Role;

pub use self::audit::{Action, AuditLog};
use self::cache::{Cache, Known};
pub use self::caller::Caller;
pub use self::key::{ApiKey, NoKey};
pub use self::limits::KeyLimits;
use self::limits::Usage;
use crate::config::Secret;
use crate::status;

pub(crate) use self::audit::{Auditor, Record};
pub(crate) use self::body::GuardedBody;
pub(crate) use self::lease::KeyLease;
pub(crate) use self::limits::Running;
pub(crate) use self::policy::{Access, Policy, Scope};

/// Questions to the store at a time: guesses must not take its connections.
const LOOKUPS_AT_A_TIME: usize = 8;

/// How long a caller is told to wait when keys can't be looked up.
const LOOKUP_RETRY: Duration = Duration::from_secs(1);

/// Why a call is not let in when keys can't be looked up.
const UNAVAILABLE: &str = "unavailable";

/// The service that our own services may call with the key they share.
const FOR_SERVICES: &str = "/waybill.embedding.v1.EmbeddingService/";

/// Paths that need no key: those who ask whether a server is alive have none.
const OPEN: &str = "/grpc.health.v1.Health/";

/// Paths that any key is good for: they say what the protos say, which are public.
const DESCRIBING: &str = "/grpc.reflection.";

/// What a store knows of a key.
#[derive(Debug, Clone)]
pub struct KeyRecord {
    /// Whom the key lets in, and to what.
    pub caller: Caller,
    /// Whether it is still good.
    pub state: KeyState,
    /// Limits of its own.
    pub limits: KeyLimits,
}

/// Whether a key is still good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    /// It is.
    Active,
    /// Somebody revoked it.
    Revoked,
    /// Its time is over.
    Expired,
}

/// Where keys are stored.
#[async_trait]
pub trait KeySource: Send + Sync {
    /// Finds a key by SHA-256 of its text.
    async fn find(&self, hash: &[u8; 32]) -> anyhow::Result<Option<KeyRecord>>;
}

/// How keys are checked.
#[derive(Debug, Clone, Default)]
pub struct KeyOptions {
    /// For how long the store's answer about a key is good.
    pub cache: Duration,
    /// What a key may use up that has no limits of its own.
    pub limits: KeyLimits,
    /// The key that our own services share; empty: none.
    pub service_key: Secret,
    /// An operator's key that is configured rather than stored; empty: none.
    pub bootstrap_key: Secret,
}

/// Lets calls in or not. Clones share everything.
#[derive(Clone)]
pub struct Guard {
    keys: Option<Arc<Keys>>,
    auditor: Option<Auditor>,
}

pub(crate) struct Keys {
    source: Arc<dyn KeySource>,
    /// Keys of the configuration, by their hash.
    fixed: HashMap<[u8; 32], Known>,
    service_key: Option<[u8; 32]>,
    defaults: KeyLimits,
    cache: Cache,
    lookups: Semaphore,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys")
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.keys.is_some() { "Guard(keys)" } else { "Guard(open)" })
    }
}

/// A call that was let in.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) caller: Caller,
    pub(crate) running: Running,
    pub(crate) max_message_bytes: Option<u64>,
    pub(crate) lease: KeyLease,
}

/// Why calls are turned away, as metrics have it.
const REASONS: [&str; 10] =
    ["concurrency", "expired", "missing", "project", "rate", "revoked", "role", "size", "unavailable", "unknown"];

/// Counts what was not let in. Clones share the count.
#[derive(Debug, Clone)]
pub(crate) struct Denials(Counter<u64>);

impl Denials {
    pub(crate) fn new(meter: &Meter) -> Self {
        let counter = meter.u64_counter("waybill_auth_denied_total");
        let counter = counter.with_description("Calls that were turned away, by the reason").build();
        for reason in REASONS {
            counter.add(0, &[KeyValue::new("reason", reason)]);
        }
        Self(counter)
    }

    pub(crate) fn note(&self, reason: &'static str) {
        debug_assert!(REASONS.contains(&reason), "{reason} is told from the start on");
        self.0.add(1, &[KeyValue::new("reason", reason)]);
    }
}

/// A call that was not let in: what to answer, and the reason as metrics have it.
#[derive(Debug)]
pub(crate) struct Denied {
    pub(crate) status: Status,
    pub(crate) reason: &'static str,
}

impl Guard {
    /// Lets everybody do everything.
    #[must_use]
    pub const fn open() -> Self {
        Self { keys: None, auditor: None }
    }

    /// Lets in who has a key.
    #[must_use]
    pub fn keys(source: Arc<dyn KeySource>, options: &KeyOptions) -> Self {
        let hash = |secret: &Secret| (!secret.is_empty()).then(|| key::hash(secret.expose()));
        let usage = || Arc::new(Usage::new(KeyLimits::default()));
        let known =
            |name, role| Known { caller: Caller::new(name, None, role, None), state: KeyState::Active, usage: usage() };
        let (service_key, bootstrap) = (hash(&options.service_key), hash(&options.bootstrap_key));
        let service = service_key.map(|hash| (hash, known("service", Role::Writer)));
        let bootstrap = bootstrap.map(|hash| (hash, known("bootstrap", Role::Operator)));
        let keys = Keys {
            source,
            fixed: service.into_iter().chain(bootstrap).collect(),
            service_key,
            defaults: options.limits,
            cache: Cache::new(options.cache),
            lookups: Semaphore::new(LOOKUPS_AT_A_TIME),
        };
        Self { keys: Some(Arc::new(keys)), auditor: None }
    }

    /// Has what operators do noted in `log`.
    #[must_use]
    pub fn with_audit(mut self, log: Arc<dyn AuditLog>) -> Self {
        self.auditor = Some(Auditor::new(log));
        self
    }

    /// Says whether callers need a key.
    #[must_use]
    pub const fn asks_for_keys(&self) -> bool {
        self.keys.is_some()
    }

    pub(crate) fn auditor(&self) -> Option<&Auditor> {
        self.auditor.as_ref()
    }

    /// Decides about a call of `method` by its headers; its messages are for [`GuardedBody`].
    pub(crate) async fn admit(
        &self,
        method: &str,
        access: Option<&Access>,
        headers: &HeaderMap,
    ) -> Result<Admitted, Denied> {
        let (Some(keys), false) = (&self.keys, method.starts_with(OPEN)) else {
            let (caller, running) = (Caller::anybody(), Running::uncounted());
            return Ok(Admitted { caller, running, max_message_bytes: None, lease: KeyLease::for_ever() });
        };
        let hash = presented(headers)?;
        let known = keys.find(&hash).await?.good()?;
        let caller = known.caller;
        let only_services = keys.service_key == Some(hash);
        if only_services && !method.starts_with(FOR_SERVICES) {
            return Err(forbidden(format!("the key that services share is not for {method}")));
        }
        if !method.starts_with(DESCRIBING) {
            permit(method, access, &caller)?;
        }
        let running = known.usage.admit().map_err(|(status, reason)| Denied { status, reason })?;
        let lease = KeyLease::of(keys, hash);
        Ok(Admitted { caller, running, max_message_bytes: known.usage.limits().max_message_bytes, lease })
    }
}

impl Known {
    /// Says no to a key that was good once.
    fn good(self) -> Result<Self, Denied> {
        match self.state {
            KeyState::Active => Ok(self),
            KeyState::Revoked => Err(unauthenticated("KEY_REVOKED", "revoked", "this key was revoked")),
            KeyState::Expired => Err(unauthenticated("KEY_EXPIRED", "expired", "this key has expired")),
        }
    }
}

/// Checks role and reach.
fn permit(method: &str, access: Option<&Access>, caller: &Caller) -> Result<(), Denied> {
    let Some(access) = access else {
        // Also what no server has: a caller without rights need not learn which.
        return Err(forbidden(format!("nobody was given the right to call {method}: check its name")));
    };
    if caller.role() < access.role {
        let needed = access.role;
        return Err(forbidden(format!("{method} is for a {needed}, and this is {caller}: use another key")));
    }
    match &access.scope {
        Scope::All if caller.projects().is_some() => {
            Err(forbidden(format!("{method} is about all projects, and {caller} is good for some: use another key")))
        }
        Scope::All | Scope::Project(_) | Scope::Answer | Scope::None => Ok(()),
    }
}

impl Keys {
    async fn find(&self, hash: &[u8; 32]) -> Result<Known, Denied> {
        if let Some(known) = self.fixed.get(hash) {
            return Ok(known.clone());
        }
        let known = match self.cache.fresh(hash) {
            Some(known) => known,
            None => self.look_up(hash).await?,
        };
        known.ok_or_else(|| unauthenticated("UNKNOWN_KEY", "unknown", "there is no such key"))
    }

    async fn look_up(&self, hash: &[u8; 32]) -> Result<Option<Known>, Denied> {
        let _turn = self.lookups.acquire().await;
        // Somebody may have asked while this one waited for its turn.
        if let Some(known) = self.cache.fresh(hash) {
            return Ok(known);
        }
        let asked_at = Instant::now();
        let record = self.source.find(hash).await.map_err(|error| {
            tracing::warn!(error = format!("{error:#}"), "key not looked up");
            let text = "keys can't be checked for now, as the database does not answer: try again";
            Denied { status: status::unavailable("KEYS_UNAVAILABLE", text, Some(LOOKUP_RETRY)), reason: UNAVAILABLE }
        })?;
        let record = record.map(|record| KeyRecord { limits: record.limits.or(self.defaults), ..record });
        Ok(self.cache.put(*hash, asked_at, record))
    }
}

/// Reads `authorization: Bearer <key>`.
fn presented(headers: &HeaderMap) -> Result<[u8; 32], Denied> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Err(unauthenticated("KEY_MISSING", "missing", "this server asks for an API key"));
    };
    if values.next().is_some() {
        return Err(unauthenticated("KEY_MALFORMED", "unknown", "there are several keys"));
    }
    let text = value.to_str().unwrap_or_default();
    let key = text.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    match key {
        Some((_, key)) if !key.trim().is_empty() => Ok(key::hash(key.trim())),
        _ => Err(unauthenticated("KEY_MALFORMED", "unknown", "the key is not sent as it should be")),
    }
}

fn unauthenticated(code: &str, reason: &'static str, what: &str) -> Denied {
    let message = format!("{what}: send metadata \"authorization: Bearer wbk_...\" (`waybill keys create` makes keys)");
    Denied { status: status::with_reason(Code::Unauthenticated, code, message), reason }
}

fn forbidden(message: String) -> Denied {
    Denied { status: status::with_reason(Code::PermissionDenied, "ROLE", message), reason: "role" }
}
