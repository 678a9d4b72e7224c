use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::limits::Usage;
use super::{Caller, KeyRecord, KeyState};

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

    /// Notes what the store said when it was asked at `asked_at` (a revocation after that counts
    /// from then), unless it has said something since. Returns what counts.
    ///
    /// What the key uses up is taken over in the same step: of two first calls at once both count.
    pub(super) fn put(&self, hash: [u8; 32], asked_at: Instant, record: Option<KeyRecord>) -> Option<Known> {
        let mut entries = self.lock();
        let before = entries.get(&hash);
        if let Some(newer) = before.filter(|entry| entry.asked_at > asked_at) {
            return newer.known.clone();
        }
        let usage = before.and_then(|entry| entry.known.as_ref()).map(|known| &known.usage);
        let known = record.map(|record| Known {
            usage: Usage::next(usage, record.limits),
            caller: record.caller,
            state: record.state,
        });
        let has_room = before.is_some() || make_room(&mut entries, self.keep, known.is_some());
        if has_room {
            entries.insert(hash, Entry { asked_at, known: known.clone() });
        }
        known
    }
}

/// Says whether there is room for one more, after it forgot what is needed least: old answers,
/// then guesses if it is for a key that there is. The calls of such a key are counted here, so
/// that one with calls under way stays.
fn make_room(entries: &mut HashMap<[u8; 32], Entry>, keep: Duration, is_known: bool) -> bool {
    if entries.len() >= MAX_ENTRIES {
        let in_use = |entry: &Entry| entry.known.as_ref().is_some_and(|known| known.usage.has_calls());
        entries.retain(|_, entry| entry.asked_at.elapsed() < keep || in_use(entry));
    }
    if entries.len() >= MAX_ENTRIES && is_known {
        entries.retain(|_, entry| entry.known.is_some());
    }
    entries.len() < MAX_ENTRIES
}

#[cfg(test)]
mod tests {
    use waybill_domain::Role;

    use super::*;
    use crate::auth::KeyLimits;

    fn hash(number: usize) -> [u8; 32] {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&number.to_be_bytes());
        hash
    }

    fn record(state: KeyState) -> Option<KeyRecord> {
        let limits = KeyLimits { concurrent_calls: Some(1), ..KeyLimits::default() };
        Some(KeyRecord { caller: Caller::new("somebody", None, Role::Writer, None), state, limits })
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

    #[test]
    fn guesses_make_room_for_a_key_that_there_is() {
        let cache = Cache::new(Duration::from_secs(3_600));
        for number in 0..MAX_ENTRIES {
            cache.put(hash(number), Instant::now(), None);
        }
        cache.put(hash(MAX_ENTRIES), Instant::now(), record(KeyState::Active));
        assert!(cache.fresh(&hash(MAX_ENTRIES)).flatten().is_some());
    }

    #[test]
    fn calls_under_way_are_not_forgotten() {
        let cache = Cache::new(Duration::ZERO);
        let first = cache.put(hash(0), Instant::now(), record(KeyState::Active)).unwrap();
        let _under_way = first.usage.admit().unwrap();
        for number in 1..=MAX_ENTRIES {
            cache.put(hash(number), Instant::now(), None);
        }
        let second = cache.put(hash(0), Instant::now(), record(KeyState::Active)).unwrap();
        assert_eq!(second.usage.admit().unwrap_err().1, "concurrency");
    }

    #[test]
    fn answers_to_questions_that_were_asked_at_once_share_a_count() {
        let cache = Cache::new(Duration::from_secs(3_600));
        let asked_at = Instant::now();
        let first = cache.put(hash(0), asked_at, record(KeyState::Active)).unwrap();
        let second = cache.put(hash(0), asked_at, record(KeyState::Active)).unwrap();
        let _under_way = first.usage.admit().unwrap();
        assert_eq!(second.usage.admit().unwrap_err().1, "concurrency");
    }

    #[test]
    fn an_answer_that_was_overtaken_changes_nothing() {
        let cache = Cache::new(Duration::from_secs(3_600));
        let asked_at = Instant::now();
        cache.put(hash(0), asked_at + Duration::from_millis(1), record(KeyState::Revoked));
        let counts = cache.put(hash(0), asked_at, record(KeyState::Active)).unwrap();
        assert_eq!(counts.state, KeyState::Revoked);
        assert_eq!(cache.fresh(&hash(0)).flatten().unwrap().state, KeyState::Revoked);
    }
}
