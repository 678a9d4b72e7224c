//! What the clients know: the state of each source, or the states that it may have.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::Serialize;
use serde_json::Value;

/// What a source says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Content {
    /// A word that is in no other source, nor in another state of this one.
    pub(crate) word: String,
    /// Of the body, in lower-case hex.
    pub(crate) sha256: String,
    /// A number in its metadata, if it has any.
    pub(crate) rev: Option<i64>,
}

/// A state of a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) enum State {
    /// It is not there.
    Absent,
    /// It is there.
    Present {
        /// What it says.
        content: Content,
        /// The version that the answer told, if there was one.
        version: Option<i64>,
    },
}

impl State {
    /// Returns what it says, if it is there.
    pub(crate) const fn content(&self) -> Option<&Content> {
        match self {
            Self::Absent => None,
            Self::Present { content, .. } => Some(content),
        }
    }
}

/// A moment in the order of what the clients did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tick(u64);

#[derive(Debug, Clone)]
struct Known {
    /// One, unless an answer was unclear.
    possible: Vec<State>,
    /// When a deletion was acknowledged, or it was never there.
    gone_since: Option<Tick>,
}

/// What all clients know together. Each source belongs to one of them.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    ticks: AtomicU64,
    known: Mutex<BTreeMap<String, Known>>,
}

impl Oracle {
    /// Returns a moment after all that came before.
    pub(crate) fn tick(&self) -> Tick {
        Tick(self.ticks.fetch_add(1, Ordering::SeqCst))
    }

    /// Says that from now on the source may be in `next`, too.
    pub(crate) fn begin(&self, uri: &str, next: State) {
        let mut known = self.lock();
        let entry =
            known.entry(uri.to_owned()).or_insert_with(|| Known { possible: vec![State::Absent], gone_since: None });
        if next != State::Absent {
            entry.gone_since = None;
        }
        if !entry.possible.contains(&next) {
            entry.possible.push(next);
        }
    }

    /// Says that the source is in `state`.
    pub(crate) fn settle(&self, uri: &str, state: State) {
        let gone_since = (state == State::Absent).then(|| self.tick());
        self.lock().insert(uri.to_owned(), Known { possible: vec![state], gone_since });
    }

    /// Returns the state of a source, if it is clear.
    pub(crate) fn state(&self, uri: &str) -> Option<State> {
        match self.lock().get(uri).map(|known| known.possible.clone()) {
            None => Some(State::Absent),
            Some(possible) if possible.len() == 1 => possible.into_iter().next(),
            Some(_) => None,
        }
    }

    /// Says whether the source was gone at `since`, and has stayed so.
    pub(crate) fn is_gone_since(&self, uri: &str, since: Tick) -> bool {
        self.lock().get(uri).and_then(|known| known.gone_since).is_some_and(|gone| gone < since)
    }

    /// Returns every source with the states it may have.
    pub(crate) fn all(&self) -> BTreeMap<String, Vec<State>> {
        self.lock().iter().map(|(uri, known)| (uri.clone(), known.possible.clone())).collect()
    }

    /// Returns the sources that are surely there, with what they say.
    pub(crate) fn present(&self) -> Vec<(String, Content)> {
        let all = self.all().into_iter();
        all.filter_map(|(uri, possible)| match possible.as_slice() {
            [State::Present { content, .. }] => Some((uri, content.clone())),
            _ => None,
        })
        .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A source as Postgres has it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize, Serialize)]
pub(crate) struct Found {
    /// Its uri.
    pub(crate) uri: String,
    /// Of the body, in lower-case hex.
    pub(crate) sha256: String,
    /// Its version.
    pub(crate) version: i64,
    /// Its metadata.
    pub(crate) metadata: Value,
}

impl Found {
    fn is(&self, state: &State) -> bool {
        let State::Present { content, version } = state else { return false };
        self.sha256 == content.sha256
            && self.metadata.get("rev").and_then(Value::as_f64).map(|rev| rev as i64) == content.rev
            && version.is_none_or(|version| version == self.version)
    }
}

/// How a source differs from what its client knows; `None` if it doesn't.
#[must_use]
pub(crate) fn difference(possible: &[State], found: Option<&Found>) -> Option<Difference> {
    let Some(found) = found else {
        return (!possible.contains(&State::Absent)).then_some(Difference::Lost);
    };
    if possible.iter().any(|state| found.is(state)) {
        return None;
    }
    let same = |state: &State| state.content().is_some_and(|content| content.sha256 == found.sha256);
    Some(match possible {
        [State::Absent] => Difference::CameBack,
        // What was acknowledged once was written more than once.
        states if states.iter().any(same) => Difference::WrittenAgain,
        _ => Difference::Stale,
    })
}

/// How a source in Postgres can differ from what was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Difference {
    /// It is not there.
    Lost,
    /// It was deleted.
    CameBack,
    /// It says something else.
    Stale,
    /// It says the right thing, in a version that no answer told.
    WrittenAgain,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn state(word: &str, version: Option<i64>) -> State {
        let content = Content { word: word.to_owned(), sha256: word.to_owned(), rev: Some(1) };
        State::Present { content, version }
    }

    fn found(word: &str, version: i64) -> Found {
        Found { uri: "u".to_owned(), sha256: word.to_owned(), version, metadata: json!({ "rev": 1 }) }
    }

    #[test]
    fn a_source_is_in_one_of_its_possible_states() {
        let unclear = [state("a", Some(1)), state("b", None)];
        assert_eq!(difference(&unclear, Some(&found("a", 1))), None);
        assert_eq!(difference(&unclear, Some(&found("b", 9))), None);
        assert_eq!(difference(&unclear, Some(&found("c", 9))), Some(Difference::Stale));
        assert_eq!(difference(&unclear, Some(&found("a", 2))), Some(Difference::WrittenAgain));
        assert_eq!(difference(&unclear, None), Some(Difference::Lost));
        assert_eq!(difference(&[State::Absent, state("a", None)], None), None);
        assert_eq!(difference(&[State::Absent], Some(&found("a", 1))), Some(Difference::CameBack));
    }

    #[test]
    fn gone_is_what_was_deleted_before_and_not_put_since() {
        let oracle = Oracle::default();
        oracle.begin("u", state("a", None));
        oracle.settle("u", state("a", Some(1)));
        oracle.begin("u", State::Absent);
        assert!(!oracle.is_gone_since("u", oracle.tick()), "the deletion is under way");
        let before = oracle.tick();
        oracle.settle("u", State::Absent);
        assert!(!oracle.is_gone_since("u", before));
        let after = oracle.tick();
        assert!(oracle.is_gone_since("u", after));
        oracle.begin("u", state("b", None));
        assert!(!oracle.is_gone_since("u", after), "it may be back");
        assert_eq!(oracle.state("u"), None);
    }
}
