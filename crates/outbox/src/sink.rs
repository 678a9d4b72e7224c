use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::Instant;
use tracing::Span;
use waybill_domain::{ErrorClass, Lane, SinkName};
use waybill_storage::{lease::LaneLease, settle::Confirmed};

use crate::Key;

/// A store that mirrors Postgres.
#[async_trait]
pub trait Sink: Send + Sync + 'static {
    /// Returns the name that its outbox rows carry.
    fn name(&self) -> SinkName;

    /// Makes the store show the current state of `keys`, and returns what it confirmed: one
    /// entry a key.
    ///
    /// The state has to be read after this was called. Right before each request that changes
    /// the store, `permit.time_left()` has to be asked, and the request has to end within it.
    ///
    /// # Errors
    /// If not every key was confirmed. Those that were are delivered again: harmless.
    async fn deliver(&self, keys: &[Key], permit: &Permit) -> Result<Vec<Confirmed>, DeliveryError>;

    /// Returns the span of a delivery of `keys`. `origins` are the headers of the transactions
    /// that it carries on.
    fn span(&self, keys: &[Key], origins: &[Arc<str>]) -> Span {
        let (_, _) = (keys, origins);
        Span::none()
    }

    /// Finds out whether the store, and whatever else a delivery needs, works at all. Asked
    /// after a failure: if it works, the keys are at fault.
    ///
    /// # Errors
    /// If it doesn't.
    async fn probe(&self) -> Result<(), DeliveryError>;
}

/// Why a delivery was not confirmed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct DeliveryError {
    /// What it means for a retry.
    pub class: ErrorClass,
    /// For people; holds no document text and no secret.
    pub message: String,
    /// How long the peer asked to be left alone.
    pub retry_after: Option<Duration>,
    /// Whether the permit was refused: nothing was sent, and nobody is to blame.
    pub lane_lost: bool,
}

impl DeliveryError {
    /// Makes an error of this class.
    #[must_use]
    pub fn new(class: ErrorClass, message: impl Into<String>) -> Self {
        Self { class, message: message.into(), retry_after: None, lane_lost: false }
    }

    fn lane_lost(lane: Lane) -> Self {
        Self {
            lane_lost: true,
            ..Self::new(ErrorClass::Transient, format!("the lease of lane {lane} ended before the delivery was sent"))
        }
    }
}

/// The leases a relay holds, as far as it can be sure of them. Shared with deliveries.
#[derive(Debug, Clone)]
pub(crate) struct Holdings(Arc<Mutex<Held>>);

#[derive(Debug)]
struct Held {
    epochs: HashMap<Lane, i64>,
    valid_until: Instant,
}

impl Holdings {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Held { epochs: HashMap::new(), valid_until: Instant::now() })))
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists what is held, expired or not.
    pub(crate) fn leases(&self) -> Vec<LaneLease> {
        self.lock().epochs.iter().map(|(&lane, &epoch)| LaneLease { lane, epoch }).collect()
    }

    pub(crate) fn len(&self) -> u32 {
        u32::try_from(self.lock().epochs.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn holds(&self, lane: Lane) -> bool {
        self.lock().epochs.contains_key(&lane)
    }

    pub(crate) fn insert(&self, lease: LaneLease) {
        self.lock().epochs.insert(lease.lane, lease.epoch);
    }

    pub(crate) fn remove(&self, lane: Lane) {
        self.lock().epochs.remove(&lane);
    }

    pub(crate) fn renew_until(&self, valid_until: Instant) {
        self.lock().valid_until = valid_until;
    }

    pub(crate) fn valid_until(&self) -> Instant {
        self.lock().valid_until
    }
}

/// Allows one delivery to change the sink while its lanes are held.
#[derive(Debug, Clone)]
pub struct Permit {
    pub(crate) leases: Vec<LaneLease>,
    pub(crate) holdings: Holdings,
    /// Less than this is not worth a request: it would only end with an unknown outcome.
    pub(crate) least: Duration,
}

impl Permit {
    /// Returns how long a request may take that is sent now.
    ///
    /// # Errors
    /// If a lane of the batch was lost, or its lease is about to end: send nothing.
    pub fn time_left(&self) -> Result<Duration, DeliveryError> {
        let held = self.holdings.lock();
        for lease in &self.leases {
            if held.epochs.get(&lease.lane) != Some(&lease.epoch) {
                return Err(DeliveryError::lane_lost(lease.lane));
            }
        }
        let left = held.valid_until.saturating_duration_since(Instant::now());
        match self.leases.first() {
            Some(lease) if left < self.least => Err(DeliveryError::lane_lost(lease.lane)),
            _ => Ok(left),
        }
    }
}
