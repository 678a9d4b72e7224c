//! What was sent and not answered yet: bounded, and sent again after a failure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;
use waybill_api::ingestion::v1::{PutSourceRequest, PutSourcesRequest};

use super::read::Document;

/// The service commits groups of some dozens; this many keep it busy across a network.
const MAX_ITEMS: usize = 256;

/// Bodies of this size together; a larger one travels alone.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// How often one document is tried that the service could not take for now. With the
/// pauses below that is about half a minute.
const MAX_ATTEMPTS: u32 = 6;

/// The pause after the first failure of a document; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// How long one document waits for an index that is behind: an operator who set a limit wants
/// producers to wait.
pub(super) const MAX_HELD_BACK: Duration = Duration::from_secs(60 * 60);

/// The longest pause that a service may ask for.
pub(super) const MAX_PAUSE: Duration = Duration::from_secs(60);

/// A document on its way.
#[derive(Debug)]
struct Pending {
    document: Document,
    input_bytes: u64,
    failures: u32,
    /// When the service first asked to wait with it.
    held_back: Option<Instant>,
}

/// The documents on their way, by the sequence number they are sent under.
#[derive(Debug)]
pub(super) struct Window {
    project: String,
    /// Identifies this run of the import, so that what it sends twice is one request.
    run: Uuid,
    pending: BTreeMap<i64, Pending>,
    /// Those of `pending` that are to be sent, in order.
    unsent: VecDeque<i64>,
    /// Those of `pending` that wait out a pause.
    paused: BTreeSet<(Instant, i64)>,
    bytes: usize,
    last_sequence: i64,
}

impl Window {
    /// Makes an empty window for one run of an import into `project`.
    pub(super) fn new(project: String, run: Uuid) -> Self {
        Self {
            project,
            run,
            pending: BTreeMap::new(),
            unsent: VecDeque::new(),
            paused: BTreeSet::new(),
            bytes: 0,
            last_sequence: 0,
        }
    }

    /// Says whether another document may be added.
    pub(super) fn has_room(&self) -> bool {
        self.pending.len() < MAX_ITEMS && self.bytes < MAX_BYTES
    }

    /// Says whether everything was answered.
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Returns how many documents are on their way.
    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }

    /// Adds a document, to be sent.
    pub(super) fn add(&mut self, document: Document, input_bytes: u64) {
        self.last_sequence += 1;
        self.bytes += document.body.len();
        self.unsent.push_back(self.last_sequence);
        self.pending.insert(self.last_sequence, Pending { document, input_bytes, failures: 0, held_back: None });
    }

    /// Says whether something is to be sent.
    pub(super) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Takes the next message.
    pub(super) fn take(&mut self) -> Option<PutSourcesRequest> {
        while let Some(sequence) = self.unsent.pop_front() {
            if let Some(pending) = self.pending.get(&sequence) {
                let source = Some(self.request(sequence, &pending.document));
                return Some(PutSourcesRequest { sequence, source });
            }
        }
        None
    }

    /// Takes a document out for good: it was answered. Returns its uri and input bytes.
    pub(super) fn settle(&mut self, sequence: i64) -> Option<(String, u64)> {
        let pending = self.pending.remove(&sequence)?;
        self.bytes -= pending.document.body.len();
        Some((pending.document.uri, pending.input_bytes))
    }

    /// Puts a document back, to be sent again after a pause. Returns `false` if it was
    /// tried often enough.
    pub(super) fn retry(&mut self, sequence: i64, now: Instant) -> bool {
        let Some(pending) = self.pending.get_mut(&sequence) else {
            return true;
        };
        pending.failures += 1;
        if pending.failures >= MAX_ATTEMPTS {
            return false;
        }
        let pause = FIRST_PAUSE * 2_u32.pow(pending.failures - 1);
        self.paused.insert((now + pause, sequence));
        true
    }

    /// Puts a document back, to be sent again when the service said. That is no failure of the
    /// document's. Returns `false` if it was put off for too long.
    pub(super) fn hold_back(&mut self, sequence: i64, pause: Duration, now: Instant) -> bool {
        let Some(pending) = self.pending.get_mut(&sequence) else {
            return true;
        };
        let since = *pending.held_back.get_or_insert(now);
        if now - since > MAX_HELD_BACK {
            return false;
        }
        self.paused.insert((now + pause.clamp(FIRST_PAUSE, MAX_PAUSE), sequence));
        true
    }

    /// Returns when the first pause is over.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.paused.first().map(|(due, _)| *due)
    }

    /// Ends the pauses that are over.
    pub(super) fn resume(&mut self, now: Instant) {
        while let Some((due, sequence)) = self.paused.first().copied() {
            if due > now {
                break;
            }
            self.paused.pop_first();
            self.unsent.push_back(sequence);
        }
    }

    /// Marks everything as unsent: the connection is gone, and what was sent may be too.
    pub(super) fn rewind(&mut self) {
        self.paused.clear();
        self.unsent = self.pending.keys().copied().collect();
    }

    fn request(&self, sequence: i64, document: &Document) -> PutSourceRequest {
        // The sequence number is part of it: one run may hold two versions of one uri.
        let identity = format!("{sequence}\0{}", document.uri);
        PutSourceRequest {
            project: self.project.clone(),
            uri: document.uri.clone(),
            title: document.title.clone(),
            media_type: document.media_type.into(),
            metadata: document.metadata.clone(),
            body: document.body.clone(),
            request_id: Uuid::new_v5(&self.run, identity.as_bytes()).to_string(),
            job_id: self.run.to_string(),
            ..PutSourceRequest::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use waybill_api::ingestion::v1::MediaType;

    use super::*;

    fn document(uri: &str, bytes: usize) -> Document {
        Document {
            uri: uri.to_owned(),
            title: String::new(),
            media_type: MediaType::Text,
            metadata: None,
            body: vec![b'x'; bytes],
        }
    }

    fn window() -> Window {
        Window::new("p".to_owned(), Uuid::nil())
    }

    fn drain(window: &mut Window) -> Vec<PutSourcesRequest> {
        std::iter::from_fn(|| window.take()).collect()
    }

    #[test]
    fn what_was_not_answered_is_sent_again_as_the_same_request() {
        let mut window = window();
        for uri in ["a", "b", "c"] {
            window.add(document(uri, 1), 1);
        }
        let first = drain(&mut window);
        assert_eq!(window.settle(2), Some(("b".to_owned(), 1)));
        window.rewind();
        let again = drain(&mut window);
        assert_eq!(again, [first[0].clone(), first[2].clone()]);
    }

    #[test]
    fn two_versions_of_one_uri_are_two_requests() {
        let mut window = window();
        window.add(document("a", 1), 1);
        window.add(document("a", 2), 2);
        let ids: BTreeSet<_> = drain(&mut window)
            .into_iter()
            .filter_map(|message| message.source.map(|source| source.request_id))
            .collect();
        assert_eq!(ids.len(), 2);
    }

    #[test]
    fn it_is_bounded_by_number_and_by_size() {
        let mut window = window();
        for _ in 0..MAX_ITEMS {
            assert!(window.has_room());
            window.add(document("a", 1), 1);
        }
        assert!(!window.has_room());
        window.settle(1);
        assert!(window.has_room());
        window.add(document("b", MAX_BYTES), 1);
        window.settle(2);
        assert!(!window.has_room());
    }

    #[test]
    fn a_refused_document_pauses_and_is_given_up_at_last() {
        let mut window = window();
        let now = Instant::now();
        window.add(document("a", 1), 1);
        window.take();
        for _ in 1..MAX_ATTEMPTS {
            assert!(window.retry(1, now));
            assert!(!window.has_unsent());
            let due = window.next_due().unwrap();
            assert!(due > now);
            window.resume(due);
            assert_eq!(window.take().unwrap().sequence, 1);
        }
        assert!(!window.retry(1, now));
    }

    #[test]
    fn a_document_that_is_to_wait_loses_no_attempt() {
        let mut window = window();
        let begun = Instant::now();
        window.add(document("a", 1), 1);
        window.take();
        let pause = Duration::from_secs(10);
        let mut now = begun;
        while now - begun <= MAX_HELD_BACK {
            assert!(window.hold_back(1, pause, now));
            assert_eq!(window.next_due(), Some(now + pause));
            now += pause;
            window.resume(now);
            assert_eq!(window.take().unwrap().sequence, 1);
        }
        assert!(!window.hold_back(1, pause, now));
        assert!(window.retry(1, now), "it has not failed yet");
    }
}
