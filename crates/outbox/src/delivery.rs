//! One delivery, from the keys to what the sink said of each.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, timeout};
use tracing::Span;
use waybill_domain::{CrashPoint, ErrorClass};
use waybill_storage::{
    lease::LaneLease,
    settle::{Confirmed, Refused},
};

use crate::{
    DeliveryError, Key, Permit, Sink,
    core::{Batch, Ticket},
};

/// How old a sign of life may be for a batch to be taken apart.
const SIGN_OF_LIFE_MAX_AGE: Duration = Duration::from_secs(1);

/// When the sink last did what it was asked. Shared by an engine's deliveries.
#[derive(Debug, Clone, Default)]
pub(crate) struct Vitals(Arc<Mutex<Option<Instant>>>);

impl Vitals {
    pub(crate) fn seen(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn are_fresh(&self) -> bool {
        let seen = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.is_some_and(|seen| seen.elapsed() < SIGN_OF_LIFE_MAX_AGE)
    }
}

/// A delivery that has ended.
#[derive(Debug)]
pub(crate) struct Delivered {
    pub(crate) batch: Batch,
    pub(crate) outcome: Outcome,
    pub(crate) began: Instant,
    /// What was done for it stands under this, in traces.
    pub(crate) span: Span,
}

#[derive(Debug)]
pub(crate) enum Outcome {
    /// The sink shows each key as it is.
    Confirmed(Vec<Confirmed>),
    /// The sink works, and doesn't take what is in this batch.
    Refused(DeliveryError),
    /// Nothing can be said of the keys: the sink is down or busy, or the lane was lost.
    Undecided(DeliveryError),
}

/// What is to be settled of a delivery.
#[derive(Debug)]
pub(crate) struct ToSettle {
    pub(crate) ticket: Ticket,
    /// The lanes as they were held when the delivery began.
    pub(crate) leases: Vec<LaneLease>,
    pub(crate) keys: Vec<Key>,
    pub(crate) verdict: Verdict,
}

#[derive(Debug)]
pub(crate) enum Verdict {
    Confirmed(Vec<Confirmed>),
    /// The one key was refused; when it is tried again, if ever.
    Refused(Refused, Option<Duration>),
}

/// Delivers a batch. When that fails, the sink is asked whether it works at all: only then
/// is the failure the keys' own.
pub(crate) async fn deliver(
    sink: Arc<dyn Sink>,
    batch: Batch,
    permit: Permit,
    vitals: Vitals,
    probe_timeout: Duration,
) -> Delivered {
    let began = Instant::now();
    let outcome = match sink.deliver(&batch.keys, &permit).await.and_then(|answer| complete(&batch.keys, answer)) {
        Ok(confirmed) => {
            CrashPoint::Send.hit();
            vitals.seen();
            Outcome::Confirmed(confirmed)
        }
        Err(error) if error.lane_lost || error.class == ErrorClass::Throttled => Outcome::Undecided(error),
        // To take a batch apart blames nobody, so for that an older sign of life will do. A key
        // that is alone is blamed, and given up at once if it is refused for good: before that
        // the sink has to show that it works now.
        Err(error) if batch.keys.len() > 1 && error.class != ErrorClass::Permanent && vitals.are_fresh() => {
            Outcome::Refused(error)
        }
        Err(error) => match probe(&*sink, probe_timeout).await {
            Ok(()) => {
                vitals.seen();
                Outcome::Refused(error)
            }
            Err(down) => {
                tracing::debug!(sink = %sink.name(), %down, "the sink fails its probe, too");
                Outcome::Undecided(error)
            }
        },
    };
    Delivered { batch, outcome, began, span: Span::current() }
}

/// Asks the sink whether it works.
pub(crate) async fn probe(sink: &dyn Sink, longest: Duration) -> Result<(), DeliveryError> {
    match timeout(longest, sink.probe()).await {
        Ok(answer) => answer,
        Err(_) => Err(DeliveryError::new(ErrorClass::Unknown, format!("no answer to a probe within {longest:?}"))),
    }
}

/// Refuses an answer that leaves a key out: it would be taken for settled.
fn complete(keys: &[Key], confirmed: Vec<Confirmed>) -> Result<Vec<Confirmed>, DeliveryError> {
    let matches = confirmed.len() == keys.len() && {
        let mut asked: Vec<_> = keys.iter().map(|key| (key.kind, key.id)).collect();
        let mut answered: Vec<_> = confirmed.iter().map(|c| (c.kind, c.key)).collect();
        asked.sort_unstable();
        answered.sort_unstable();
        asked == answered
    };
    if matches {
        Ok(confirmed)
    } else {
        Err(DeliveryError::new(ErrorClass::Unknown, "the sink did not answer for each key"))
    }
}
