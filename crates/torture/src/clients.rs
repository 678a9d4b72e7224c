//! Clients: each writes, reads and searches, knows what must be there, and looks whether it is.

use std::{sync::Arc, time::Duration};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use waybill_api::{
    embedding::v1::{Hit, SearchMode, SearchResponse},
    ingestion::v1::{MediaType, PutOutcome},
};
use waybill_testkit::corpus::{self, Form};

use crate::{
    FACTS_PREFIX,
    calls::{Answer, Calls, Draft},
    compare,
    history::History,
    oracle::{Content, Oracle, State, Tick},
    world::World,
};

/// How many there are.
pub(crate) const CLIENTS: usize = 6;

/// The most sources of a client. Beyond it changes, deletes and creations balance.
const SOURCES_MAX: usize = 30;

/// The longest pause between two operations.
const THINK_MAX_MS: u64 = 250;

/// Between two attempts of an operation.
const RETRY_MS: std::ops::Range<u64> = 50..500;

/// How long an unclear answer is asked for again when the run is over.
const PATIENCE: Duration = Duration::from_secs(20);

/// A source of ours that is there.
#[derive(Debug, Clone)]
struct Owned {
    uri: String,
    /// The document that its text is made of.
    base: usize,
    draft: Draft,
    version: i64,
    token: String,
    /// What it said before.
    old_word: Option<String>,
}

/// One client. Its sources are nobody else's.
#[derive(Debug)]
pub(crate) struct Client {
    who: String,
    index: usize,
    seed: u64,
    random: StdRng,
    calls: Calls,
    world: Arc<World>,
    oracle: Arc<Oracle>,
    history: Arc<History>,
    stopping: CancellationToken,
    live: Vec<Owned>,
    /// Deleted for sure, with nothing under way: free to be put again.
    gone: Vec<Owned>,
    made: usize,
    words: u64,
    requests: u64,
}

/// What clients share.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub(crate) seed: u64,
    pub(crate) world: Arc<World>,
    pub(crate) oracle: Arc<Oracle>,
    pub(crate) history: Arc<History>,
    pub(crate) stopping: CancellationToken,
}

impl Client {
    pub(crate) fn new(index: usize, calls: Calls, shared: Shared) -> Self {
        let Shared { seed, world, oracle, history, stopping } = shared;
        Self {
            who: format!("client {index}"),
            index,
            seed,
            // Another stream than the schedule's.
            random: StdRng::seed_from_u64(seed ^ (index as u64 + 1) << 32),
            calls,
            world,
            oracle,
            history,
            stopping,
            live: Vec::new(),
            gone: Vec::new(),
            made: 0,
            words: 0,
            requests: 0,
        }
    }

    /// Works until it is told to stop, and then until its last answer is clear or [`PATIENCE`]
    /// has passed.
    pub(crate) async fn run(mut self) {
        loop {
            let think = Duration::from_millis(self.random.random_range(10..=THINK_MAX_MS));
            if self.stopping.clone().run_until_cancelled(sleep(think)).await.is_none() {
                return;
            }
            self.act().await;
        }
    }

    async fn act(&mut self) {
        let room = self.live.len() < SOURCES_MAX;
        match self.random.random_range(0..100) {
            0..25 if room => self.create().await,
            25..33 if room && !self.gone.is_empty() => self.bring_back().await,
            0..55 if !self.live.is_empty() => self.change().await,
            55..60 if !self.live.is_empty() => self.put_again().await,
            60..73 if !self.live.is_empty() => self.delete().await,
            73..82 => self.read().await,
            82..91 if !self.live.is_empty() => {
                let chosen = self.random.random_range(0..self.live.len());
                self.search_as_fresh(self.live[chosen].clone()).await;
            }
            _ => self.search().await,
        }
    }

    fn word(&mut self) -> String {
        self.words += 1;
        // Ends in a letter that no stemmer takes away.
        format!("zq{}c{}w{}x", self.seed, self.index, self.words)
    }

    fn draft(&mut self, base: usize, rev: Option<i64>) -> Draft {
        let word = self.word();
        let document = corpus::document(self.seed, base);
        let body = document.body.replace(&document.needle, &word);
        let media_type = match document.form {
            Form::Text => MediaType::Text,
            Form::Markdown => MediaType::Markdown,
            Form::Html => MediaType::Html,
        };
        Draft { content: Content { word, sha256: hex::encode(Sha256::digest(&body)), rev }, media_type, body }
    }

    async fn create(&mut self) {
        self.made += 1;
        let base = self.index * 1_000_000 + self.made * 10;
        // A small share is read for facts.
        let folder = if self.made.is_multiple_of(5) { FACTS_PREFIX } else { "docs/" };
        let uri = format!("{folder}c{}/{}", self.index, self.made);
        let rev = self.random.random_bool(0.5).then_some(1);
        let draft = self.draft(base, rev);
        self.put(uri, base, draft, None).await;
    }

    async fn bring_back(&mut self) {
        let chosen = self.random.random_range(0..self.gone.len());
        let old = self.gone.swap_remove(chosen);
        // Half of them say what they said: their chunks come back under the ids they had.
        let draft = if self.random.random_bool(0.5) { old.draft } else { self.draft(old.base, old.draft.content.rev) };
        self.put(old.uri, old.base, draft, None).await;
    }

    async fn change(&mut self) {
        let chosen = self.random.random_range(0..self.live.len());
        let old = self.live.swap_remove(chosen);
        // Half of the changes leave all passages but one as they are, and a third touch the
        // metadata, which every point carries.
        let base =
            if self.random.random_bool(0.5) { old.base } else { old.base + 1_000 * self.random.random_range(1..90) };
        let rev = if self.random.random_bool(0.3) {
            Some(old.draft.content.rev.unwrap_or(0) + 1)
        } else {
            old.draft.content.rev
        };
        let draft = self.draft(base, rev);
        self.put(old.uri.clone(), base, draft, Some(old)).await;
    }

    async fn put_again(&mut self) {
        let chosen = self.random.random_range(0..self.live.len());
        let old = self.live.swap_remove(chosen);
        self.put(old.uri.clone(), old.base, old.draft.clone(), Some(old)).await;
    }

    /// Puts until the answer is clear, always under one request id.
    async fn put(&mut self, uri: String, base: usize, draft: Draft, old: Option<Owned>) {
        self.requests += 1;
        let request_id = format!("c{}r{}", self.index, self.requests);
        let content = draft.content.clone();
        let expected = match &old {
            None => PutOutcome::Created,
            Some(old) if old.draft.content == content => PutOutcome::Unchanged,
            Some(_) => PutOutcome::Changed,
        };
        if expected != PutOutcome::Unchanged {
            self.oracle.begin(&uri, State::Present { content: content.clone(), version: None });
        }
        let mut retry = Retry::new();
        loop {
            let begun = Instant::now();
            let answer = self.calls.put(&uri, &draft, &request_id).await;
            self.history.note(
                &self.who,
                "put",
                json!({ "uri": uri, "word": content.word, "rev": content.rev, "request": request_id,
                        "took_s": begun.elapsed().as_secs_f64(), "answer": format!("{answer:?}") }),
            );
            match answer {
                Answer::Clear(put) => {
                    self.history.count("writes");
                    let kept = old.as_ref().filter(|_| expected == PutOutcome::Unchanged);
                    if put.outcome() != expected || kept.is_some_and(|old| old.version != put.version) {
                        let text = format!(
                            "put of {uri} did {:?} at version {} where {expected:?} was due{}",
                            put.outcome(),
                            put.version,
                            kept.map(|old| format!(" at version {}", old.version)).unwrap_or_default()
                        );
                        self.history.violation(&self.who, text, json!({ "request": request_id }));
                    }
                    self.oracle.settle(&uri, State::Present { content, version: Some(put.version) });
                    let old_word = old.map(|old| old.draft.content.word).filter(|old| *old != draft.content.word);
                    let owned = Owned { uri, base, draft, version: put.version, token: put.freshness_token, old_word };
                    self.live.push(owned.clone());
                    if self.random.random_bool(0.6) {
                        self.search_as_fresh(owned).await;
                    }
                    return;
                }
                Answer::Unclear(_) if retry.goes_on(self).await => {}
                // Nobody will know: it is not ours any more.
                Answer::Unclear(_) => return,
                Answer::NotFound => return self.wrong("put", &uri, "NOT_FOUND"),
                Answer::Wrong(status) => return self.wrong("put", &uri, &status.to_string()),
            }
        }
    }

    async fn delete(&mut self) {
        let chosen = self.random.random_range(0..self.live.len());
        let old = self.live.swap_remove(chosen);
        self.oracle.begin(&old.uri, State::Absent);
        let mut retry = Retry::new();
        loop {
            let answer = self.calls.delete(&old.uri, old.version).await;
            self.history.note(&self.who, "delete", json!({ "uri": old.uri, "answer": format!("{answer:?}") }));
            let token = match answer {
                Answer::Clear(token) => Some(token),
                Answer::NotFound if retry.attempts > 0 => None,
                Answer::NotFound => return self.wrong("delete", &old.uri, "NOT_FOUND, and it had been acknowledged"),
                Answer::Unclear(_) if retry.goes_on(self).await => continue,
                Answer::Unclear(_) => return,
                Answer::Wrong(status) => return self.wrong("delete", &old.uri, &status.to_string()),
            };
            self.history.count("deletions");
            self.oracle.settle(&old.uri, State::Absent);
            let word = old.draft.content.word.clone();
            let began = self.oracle.tick();
            let found = match &token {
                Some(token) => self.calls.search_as_fresh(&word, None, token).await,
                None => self.calls.search(&word, SearchMode::Lexical).await,
            };
            self.answered("search after delete", &word, began, found);
            // One that was given up may be on its way still. It names the version that it means, so
            // it leaves alone what is put under this uri next.
            self.gone.push(old);
            return;
        }
    }

    async fn read(&mut self) {
        let choices = self.live.len() + self.gone.len();
        if choices == 0 {
            return;
        }
        let chosen = self.random.random_range(0..choices);
        let owned = self.live.get(chosen).or_else(|| self.gone.get(chosen - self.live.len()));
        let Some(uri) = owned.map(|owned| owned.uri.clone()) else { return };
        let Some(expected) = self.oracle.state(&uri) else { return };
        let answer = self.calls.get(&uri).await;
        self.history.note(&self.who, "get", json!({ "uri": uri, "answer": format!("{answer:?}") }));
        match (answer, &expected) {
            (Answer::Clear(source), State::Present { content, version }) => {
                self.history.count("reads");
                if source.content_sha256 != content.sha256 || version.is_some_and(|version| version != source.version) {
                    let text = format!("{uri} reads as version {} and not as {expected:?}", source.version);
                    self.history.violation(&self.who, text, json!({}));
                }
            }
            (Answer::NotFound, State::Absent) => self.history.count("reads"),
            (Answer::Clear(_), State::Absent) => self.wrong("get", &uri, "it was deleted"),
            (Answer::NotFound, State::Present { .. }) => {
                self.wrong("get", &uri, "NOT_FOUND, and it had been acknowledged")
            }
            (Answer::Unclear(_), _) => {}
            (Answer::Wrong(status), _) => self.wrong("get", &uri, &status.to_string()),
        }
    }

    /// A search that must see a write, if it is answered.
    async fn search_as_fresh(&mut self, owned: Owned) {
        let Content { word, rev, .. } = owned.draft.content.clone();
        let began = self.oracle.tick();
        self.history.count("token searches");
        let answer = self.calls.search_as_fresh(&word, rev, &owned.token).await;
        let Some(found) = self.answered("token search", &word, began, answer) else { return };
        self.history.count("token searches answered");
        if found.hits.iter().any(|hit| hit.source_uri == owned.uri && hit.text.contains(&word)) {
            return;
        }
        let text = format!("a search with the token of {} does not find {word}", owned.uri);
        let again = match self.calls.search_as_fresh(&word, rev, &owned.token).await {
            Answer::Clear(found) => json!({ "hits": shown(&found.hits), "stale": found.stale_count }),
            other => json!(format!("{other:?}")),
        };
        let plain = match self.calls.search(&word, SearchMode::Lexical).await {
            Answer::Clear(found) => json!({ "hits": shown(&found.hits), "stale": found.stale_count }),
            other => json!(format!("{other:?}")),
        };
        let passages = compare::passages(&self.world, &owned.uri).await;
        let passages = passages.unwrap_or_else(|error| json!(format!("{error:#}")));
        let seen = json!({ "token": owned.token, "rev": rev, "hits": shown(&found.hits), "stale": found.stale_count,
                           "again": again, "without": plain, "passages": passages });
        self.history.violation(&self.who, text, seen);
    }

    /// A search without a token: it may be late, and never wrong.
    async fn search(&mut self) {
        let began = self.oracle.tick();
        let (query, mode) = match self.random.random_range(0..4) {
            0 if !self.gone.is_empty() => {
                let chosen = self.random.random_range(0..self.gone.len());
                (self.gone[chosen].draft.content.word.clone(), SearchMode::Lexical)
            }
            1 if !self.live.is_empty() => {
                let chosen = self.random.random_range(0..self.live.len());
                let owned = &self.live[chosen];
                let word = owned.old_word.as_ref().unwrap_or(&owned.draft.content.word);
                (word.clone(), SearchMode::Lexical)
            }
            2 => ("the heavy crane waits for grain".to_owned(), SearchMode::Hybrid),
            _ => ("harbour ledger".to_owned(), SearchMode::Dense),
        };
        let answer = self.calls.search(&query, mode).await;
        self.answered("search", &query, began, answer);
    }

    /// Writes down a search, and checks that it shows nothing that is gone or changed.
    fn answered(&self, what: &str, query: &str, began: Tick, answer: Answer<SearchResponse>) -> Option<SearchResponse> {
        let found = match answer {
            Answer::Clear(found) => found,
            Answer::Unclear(why) => {
                self.history.note(&self.who, what, json!({ "query": query, "unanswered": why }));
                self.history.count("searches unanswered");
                return None;
            }
            Answer::NotFound => {
                self.wrong(what, query, "NOT_FOUND");
                return None;
            }
            Answer::Wrong(status) => {
                self.wrong(what, query, &status.to_string());
                return None;
            }
        };
        self.history.note(
            &self.who,
            what,
            json!({ "query": query, "hits": shown(&found.hits), "stale": found.stale_count }),
        );
        self.history.count("searches");
        for hit in &found.hits {
            if hit.source_uri.is_empty() {
                // An entity is of many sources.
                continue;
            }
            if self.oracle.is_gone_since(&hit.source_uri, began) {
                let text = format!("a search for {query:?} shows {}, which was deleted before", hit.source_uri);
                self.history.violation(&self.who, text, json!({ "text": hit.text, "version": hit.version }));
            }
            // Of our own sources we know what they say during the search.
            let ours = self.live.iter().find(|owned| owned.uri == hit.source_uri);
            let Some(content) = ours.map(|owned| &owned.draft.content) else { continue };
            if let Some(other) = marks(&hit.text).find(|mark| *mark != content.word) {
                let text =
                    format!("a search for {query:?} shows {other} of {}, which says {}", hit.source_uri, content.word);
                self.history.violation(&self.who, text, json!({ "text": hit.text, "version": hit.version }));
            }
        }
        Some(found)
    }

    fn wrong(&self, what: &str, of: &str, answer: &str) {
        self.history.violation(&self.who, format!("{what} of {of} was answered: {answer}"), json!({}));
    }
}

/// Words that only our documents have.
fn marks(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|word| word.starts_with("zq"))
}

fn shown(hits: &[Hit]) -> Vec<String> {
    hits.iter().map(|hit| format!("{} {}@{}", hit.source_uri, hit.id, hit.version)).collect()
}

/// Attempts of one operation.
struct Retry {
    attempts: u32,
    stopped_at: Option<Instant>,
}

impl Retry {
    const fn new() -> Self {
        Self { attempts: 0, stopped_at: None }
    }

    /// Pauses before the next attempt. `false` if there is to be none.
    async fn goes_on(&mut self, client: &mut Client) -> bool {
        client.history.count("unclear answers");
        self.attempts += 1;
        if client.stopping.is_cancelled() && self.stopped_at.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
            client.history.count("operations that stayed unclear");
            return false;
        }
        sleep(Duration::from_millis(client.random.random_range(RETRY_MS))).await;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_found_between_anything() {
        let text = "The mark of `zq7c1w2x`, and <zq7c1w3x>. azq1 zebra";
        assert_eq!(marks(text).collect::<Vec<_>>(), ["zq7c1w2x", "zq7c1w3x"]);
    }
}
