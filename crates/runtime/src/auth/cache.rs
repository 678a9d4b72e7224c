use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::limits::Usage;
use super::{Caller, KeyState};

/// Keys that are remembered, known and unknown ones. Some hundred bytes each.
const MAX_ENTRIES: usize = 10_000;

/// A key that there is.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) caller: Caller,
    pub(super) state: KeyState,
    pub(super) usage: Arc<Usage>,
}

/// What the store said of keys, for a few seconds: so long a key that was revoked is still good.
#[derive(Debug)]
pub(super) struct Cache {
    keep: Duration,
    entries: Mutex<HashMap<[u8; 32], Entry>>,
}

#[derive(Debug)]
struct Entry {
    asked_at: Instant,
    known: Option<Known>,
}

impl Cache {
    pub(super) fn new(keep: Duration) -> Self {
        Self { keep, entries: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 32], Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long an answer of the store counts.
    pub(super) const fn keep(&self) -> Duration {
        self.keep
    }

    /// Until when what the store said of a key counts; `None` if it is not remembered.
    pub(super) fn fresh_until(&self, hash: &[u8; 32]) -> Option<Instant> {
        self.lock().get(hash).map(|entry| entry.asked_at + self.keep)
    }

    /// Returns what the store said, if it was asked not long ago.
    pub(super) fn fresh(&self, hash: &[u8; 32]) -> Option<Option<Known>> {
        let entries = self.lock();
        let entry = entries.get(hash)?;
        (entry.asked_at.elapsed() < self.keep).then(|| entry.known.clone())
    }

    /// Returns what the key is using up, however old the rest is: a limit holds across questions.
    pub(super) fn usage(&self, hash: &[u8; 32]) -> Option<Arc<Usage>> {
        self.lock().get(hash)?.known.as_ref().map(|known| Arc::clone(&known.usage))
    }

    /// Notes what the store said when it was asked at `asked_at`: a revocation after that counts
    /// from then.
    pub(super) fn put(&self, hash: [u8; 32], asked_at: Instant, known: Option<Known>) {
        let mut entries = self.lock();
        if entries.len() >= MAX_ENTRIES && !entries.contains_key(&hash) {
            entries.retain(|_, entry| entry.asked_at.elapsed() < self.keep);
        }
        // Full of fresh ones, which are guesses then: what is not remembered is asked again.
        if entries.len() < MAX_ENTRIES || entries.contains_key(&hash) {
            entries.insert(hash, Entry { asked_at, known });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: usize) -> [u8; 32] {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&number.to_be_bytes());
        hash
    }

    #[test]
    fn it_never_grows_beyond_its_bound() {
        let cache = Cache::new(Duration::from_secs(3_600));
        for number in 0..MAX_ENTRIES + 10 {
            cache.put(hash(number), Instant::now(), None);
        }
        assert_eq!(cache.lock().len(), MAX_ENTRIES);
        assert!(cache.fresh(&hash(0)).is_some() && cache.fresh(&hash(MAX_ENTRIES)).is_none());
    }

    #[test]
    fn it_forgets_what_is_old_and_makes_room() {
        let cache = Cache::new(Duration::ZERO);
        for number in 0..=MAX_ENTRIES {
            cache.put(hash(number), Instant::now(), None);
            assert!(cache.fresh(&hash(number)).is_none());
        }
        assert_eq!(cache.lock().len(), 1);
    }
}
