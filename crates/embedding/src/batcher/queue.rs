//! What waits for a model. No IO and no clock: the workers in `super` bring both.

use std::collections::{HashMap, VecDeque, hash_map::Entry};
use std::sync::Arc;

use tokio::sync::oneshot;
use waybill_domain::TextHash;
use waybill_models::Purpose;

use super::EmbedError;

/// What one who waits is told: a vector as little-endian f32.
pub(crate) type Outcome = Result<Arc<[u8]>, EmbedError>;

/// A text under a purpose. Whoever asks for the same one shares its vector.
pub(crate) type Key = (TextHash, Purpose);

/// Bytes of English text to a token, about; other languages have fewer. What matters is that
/// batches come out about equal, not that the number is right.
const BYTES_PER_TOKEN: usize = 4;

/// How much may wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueueLimits {
    pub(crate) texts: usize,
    pub(crate) bytes: usize,
}

/// How much goes into one call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchLimits {
    pub(crate) texts: usize,
    pub(crate) tokens: usize,
    /// The model cuts longer texts, so they cost no more.
    pub(crate) tokens_per_text: usize,
}

/// A batch that a worker took.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) purpose: Purpose,
    pub(crate) hashes: Vec<TextHash>,
    pub(crate) texts: Vec<String>,
}

/// There is no room.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// Texts that wait, and those under way. Queries and documents have a line each, and each
/// line its own limits: an import that fills its line keeps no search out.
#[derive(Debug)]
pub(crate) struct Queue {
    limits: QueueLimits,
    queries: Line,
    documents: Line,
    jobs: HashMap<Key, Job>,
}

#[derive(Debug, Default)]
struct Line {
    keys: VecDeque<Key>,
    bytes: usize,
}

#[derive(Debug)]
struct Job {
    /// Taken by the worker that embeds it.
    text: Option<String>,
    waiters: Vec<oneshot::Sender<Outcome>>,
}

impl Job {
    fn is_wanted(&self) -> bool {
        self.waiters.iter().any(|waiter| !waiter.is_closed())
    }
}

impl Queue {
    pub(crate) fn new(limits: QueueLimits) -> Self {
        Self { limits, queries: Line::default(), documents: Line::default(), jobs: HashMap::new() }
    }

    /// Takes in all texts or none; answers come in their order. A text that waits or is
    /// under way already is joined and takes no room.
    pub(crate) fn submit(
        &mut self,
        texts: Vec<(TextHash, String)>,
        purpose: Purpose,
    ) -> Result<Vec<oneshot::Receiver<Outcome>>, Full> {
        let new = texts.iter().filter(|(hash, _)| !self.jobs.contains_key(&(*hash, purpose)));
        let (count, bytes) = new.fold((0, 0), |(count, bytes), (_, text)| (count + 1, bytes + text.len()));
        if !self.has_room(purpose, count, bytes) {
            self.drop_unwanted(purpose);
            if !self.has_room(purpose, count, bytes) {
                return Err(Full);
            }
        }
        let line = line_of(&mut self.queries, &mut self.documents, purpose);
        let receivers = texts.into_iter().map(|(hash, text)| {
            let (sender, receiver) = oneshot::channel();
            match self.jobs.entry((hash, purpose)) {
                Entry::Occupied(mut job) => job.get_mut().waiters.push(sender),
                Entry::Vacant(place) => {
                    line.keys.push_back((hash, purpose));
                    line.bytes += text.len();
                    place.insert(Job { text: Some(text), waiters: vec![sender] });
                }
            }
            receiver
        });
        Ok(receivers.collect())
    }

    /// Takes the next batch: queries before documents. Texts that nobody waits for any more
    /// are dropped here.
    pub(crate) fn take(&mut self, limits: &BatchLimits, only_queries: bool) -> Option<Batch> {
        let batch = self.take_from(Purpose::Query, limits);
        if batch.is_some() || only_queries { batch } else { self.take_from(Purpose::Document, limits) }
    }

    fn take_from(&mut self, purpose: Purpose, limits: &BatchLimits) -> Option<Batch> {
        let line = line_of(&mut self.queries, &mut self.documents, purpose);
        let mut batch = Batch { purpose, hashes: Vec::new(), texts: Vec::new() };
        let mut tokens = 0;
        while batch.texts.len() < limits.texts {
            let Some(key) = line.keys.front().copied() else {
                break;
            };
            let Some(job) = self.jobs.get_mut(&key) else {
                line.keys.pop_front();
                continue;
            };
            let length = job.text.as_ref().map_or(0, String::len);
            if !job.is_wanted() {
                line.keys.pop_front();
                line.bytes -= length;
                self.jobs.remove(&key);
                continue;
            }
            let cost = (length / BYTES_PER_TOKEN + 1).min(limits.tokens_per_text);
            if !batch.texts.is_empty() && tokens + cost > limits.tokens {
                break;
            }
            line.keys.pop_front();
            line.bytes -= length;
            tokens += cost;
            batch.hashes.push(key.0);
            batch.texts.push(job.text.take().unwrap_or_default());
        }
        (!batch.texts.is_empty()).then_some(batch)
    }

    /// Says whether somebody still waits for a text under way. If not, it is forgotten.
    pub(crate) fn still_wanted(&mut self, key: &Key) -> bool {
        let wanted = self.jobs.get(key).is_some_and(Job::is_wanted);
        if !wanted {
            self.jobs.remove(key);
        }
        wanted
    }

    /// Tells everybody who waits for a text.
    pub(crate) fn complete(&mut self, key: &Key, outcome: &Outcome) {
        let Some(job) = self.jobs.remove(key) else {
            return;
        };
        for waiter in job.waiters {
            // Fails if they have gone; nothing is lost.
            let _gone = waiter.send(outcome.clone());
        }
    }

    /// Returns how many texts wait, queries and documents.
    pub(crate) fn waiting(&self) -> usize {
        self.queries.keys.len() + self.documents.keys.len()
    }

    /// An empty line takes whatever comes: a limit below one request would refuse it forever.
    fn has_room(&self, purpose: Purpose, count: usize, bytes: usize) -> bool {
        let line = match purpose {
            Purpose::Query => &self.queries,
            Purpose::Document => &self.documents,
        };
        line.keys.is_empty()
            || (line.keys.len() + count <= self.limits.texts && line.bytes + bytes <= self.limits.bytes)
    }

    /// Makes room by what callers have left behind. Looks at every text that waits, so it is
    /// done only when there is no room.
    fn drop_unwanted(&mut self, purpose: Purpose) {
        let line = line_of(&mut self.queries, &mut self.documents, purpose);
        line.keys.retain(|key| {
            let Some(job) = self.jobs.get(key) else {
                return false;
            };
            if job.is_wanted() {
                return true;
            }
            line.bytes -= job.text.as_ref().map_or(0, String::len);
            self.jobs.remove(key);
            false
        });
    }
}

fn line_of<'a>(queries: &'a mut Line, documents: &'a mut Line, purpose: Purpose) -> &'a mut Line {
    match purpose {
        Purpose::Query => queries,
        Purpose::Document => documents,
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
