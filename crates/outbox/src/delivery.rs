//! One delivery, from the keys to what the sink said of each.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use waybill_domain::ErrorClass;
use waybill_storage::{lease::LaneLease, settle::Confirmed};

use crate::{
    DeliveryError, Key, Permit, Sink,
    core::{Batch, Ticket},
};

/// A delivery that has ended.
#[derive(Debug)]
pub(crate) struct Delivered {
    pub(crate) batch: Batch,
    /// Each key of the batch is in one part.
    pub(crate) parts: Vec<Part>,
    pub(crate) elapsed: Duration,
}

#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) keys: Vec<Key>,
    pub(crate) outcome: Result<Vec<Confirmed>, DeliveryError>,
}

/// A part that was confirmed and is to be settled.
#[derive(Debug)]
pub(crate) struct ToSettle {
    pub(crate) ticket: Ticket,
    /// The lanes as they were held when the delivery began.
    pub(crate) leases: Vec<LaneLease>,
    pub(crate) keys: Vec<Key>,
    pub(crate) confirmed: Vec<Confirmed>,
}

/// Delivers a batch. One that is refused for good is split until the keys at fault are alone,
/// so that they hold up no other.
pub(crate) async fn deliver(sink: Arc<dyn Sink>, batch: Batch, permit: Permit) -> Delivered {
    let start = Instant::now();
    let mut parts = Vec::new();
    let mut left = vec![batch.keys.clone()];
    while let Some(mut keys) = left.pop() {
        let outcome = sink.deliver(&keys, &permit).await.and_then(|confirmed| complete(&keys, confirmed));
        match outcome {
            Err(error) if error.class == ErrorClass::Permanent && keys.len() > 1 => {
                left.push(keys.split_off(keys.len() / 2));
                left.push(keys);
            }
            outcome => parts.push(Part { keys, outcome }),
        }
    }
    Delivered { batch, parts, elapsed: start.elapsed() }
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
