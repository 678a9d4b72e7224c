use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::{Denied, Keys};

/// The pause after the store did not answer grows up to this.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// What a call goes on by: its key is good. Streams may outlast that.
#[derive(Debug)]
pub(crate) struct KeyLease(Option<(Arc<Keys>, [u8; 32])>);

impl KeyLease {
    pub(super) fn of(keys: &Arc<Keys>, hash: [u8; 32]) -> Self {
        // What is configured is good as long as the process runs.
        Self((!keys.fixed.contains_key(&hash)).then(|| (Arc::clone(keys), hash)))
    }

    pub(super) const fn for_ever() -> Self {
        Self(None)
    }

    /// Returns what to answer when the key is good no longer: as soon as a new call would be told
    /// so. A store that does not answer ends nothing that goes on.
    pub(crate) async fn lost(self) -> Denied {
        let Some((keys, hash)) = self.0 else {
            return pending().await;
        };
        let mut pause = keys.cache.keep();
        loop {
            sleep_until(keys.cache.fresh_until(&hash).unwrap_or_else(|| Instant::now() + pause)).await;
            match keys.find(&hash).await.and_then(super::Known::good) {
                Ok(_) => pause = keys.cache.keep(),
                Err(denied) if denied.reason == super::UNAVAILABLE => {
                    pause = (pause * 2).min(PAUSE_MAX);
                    sleep_until(Instant::now() + pause).await;
                }
                Err(denied) => return denied,
            }
        }
    }
}
