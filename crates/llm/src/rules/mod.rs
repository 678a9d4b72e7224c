//! Extraction by counting words.

mod entities;
mod sentences;

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use unicode_segmentation::UnicodeSegmentation;

use self::{entities::Phrases, sentences::sentences};
use crate::{
    Answer, Dropped, Extraction, ExtractionSettings, ExtractionTask, Fact, LlmError, LlmProvider, Usage,
    limits::MAX_STATEMENT_BYTES, text::clean,
};

/// The most facts of one chunk.
const MAX_SENTENCES: usize = 8;

/// The fewest words of a sentence that is taken for a statement.
const MIN_WORDS: usize = 4;

/// How many words of content make a sentence count in full; a shorter one would win by a
/// single frequent word.
const FULL_CONTENT: usize = 6;

/// The only type of fact there is here.
const KIND: &str = "statement";

/// The name that answers carry. Changes whenever the rules do.
const MODEL: &str = "rules-1";

/// English words that say nothing about what a text is about. In other languages the
/// frequent short words count, which makes the choice of sentences worse, not wrong.
const STOP_WORDS: &[&str] = &[
    "about", "after", "all", "also", "and", "any", "are", "because", "been", "before", "being", "between", "both",
    "but", "can", "could", "did", "does", "each", "for", "from", "had", "has", "have", "her", "his", "how", "into",
    "its", "may", "more", "most", "much", "must", "not", "only", "other", "our", "out", "over", "own", "same", "she",
    "should", "some", "such", "than", "that", "the", "their", "them", "then", "there", "these", "they", "this",
    "those", "through", "too", "under", "very", "was", "were", "what", "when", "where", "which", "while", "who",
    "will", "with", "would", "you", "your",
];

/// Picks the most salient sentences by rules. Not a language model.
///
/// It understands nothing: a sentence counts by how often its words occur in the chunk, up
/// to eight of them become facts of the type `statement`, and their confidence is that
/// salience, not a probability of being true. Entities are what looks like a name
/// (`name`), an identifier (`identifier`) or a phrase that the chunk repeats (`term`); they
/// have no subject, predicate or object. If the settings ask for other types, there are
/// none. Instructions and the model's name are ignored.
///
/// It needs no server and no key, costs nothing and gives the same answer every time, which
/// makes it fit for trying a pipeline out and for tests.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rules;

impl Rules {
    /// Makes the provider.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

#[async_trait]
impl LlmProvider for Rules {
    fn name(&self) -> &'static str {
        "rules"
    }

    fn model(&self) -> &str {
        MODEL
    }

    async fn extract(&self, task: &ExtractionTask) -> Result<Answer, LlmError> {
        Ok(Answer {
            extraction: extract(&task.text, &task.settings),
            usage: Usage::default(),
            model: MODEL.to_owned(),
            repaired: false,
        })
    }
}

/// A sentence that may become a fact.
struct Candidate<'a> {
    start: usize,
    quote: &'a str,
    salience: f32,
}

fn extract(text: &str, settings: &ExtractionSettings) -> Extraction {
    if !settings.fact_types.is_empty() && !settings.fact_types.iter().any(|kind| kind == KIND) {
        return Extraction::default();
    }
    let counts = count_words(text);
    let top = counts.values().copied().max().unwrap_or(1);
    let mut dropped = Dropped::default();
    let mut candidates = Vec::new();
    for (start, quote) in sentences(text) {
        if quote.unicode_words().count() < MIN_WORDS {
            continue;
        }
        if quote.len() > MAX_STATEMENT_BYTES {
            dropped.too_long = dropped.too_long.saturating_add(1);
            continue;
        }
        let salience = salience(quote, &counts, top);
        if salience > 0.0 {
            candidates.push(Candidate { start, quote, salience });
        }
    }
    candidates.sort_by(|a, b| b.salience.total_cmp(&a.salience).then(a.start.cmp(&b.start)));
    candidates.truncate(MAX_SENTENCES);
    candidates.sort_by_key(|candidate| candidate.start);
    let phrases = Phrases::of(text, &counts);
    let facts = candidates
        .into_iter()
        .map(|candidate| Fact {
            kind: KIND.to_owned(),
            statement: clean(candidate.quote),
            subject: None,
            predicate: None,
            object: None,
            confidence: candidate.salience,
            quote: candidate.quote.to_owned(),
            start_byte: candidate.start,
            end_byte: candidate.start + candidate.quote.len(),
            entities: phrases.entities(candidate.quote, &settings.entity_types),
        })
        .collect();
    Extraction { facts, dropped }
}

/// Counts the words of content, in lower case.
fn count_words(text: &str) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for word in text.unicode_words().filter_map(content_word) {
        *counts.entry(word).or_insert(0) += 1;
    }
    counts
}

/// Returns a word in lower case, unless it says nothing about what a text is about.
fn content_word(word: &str) -> Option<String> {
    let word = word.to_lowercase();
    // Scripts without spaces give words of one or two letters that do mean something.
    let long = word.len() >= 3 && word.chars().any(char::is_alphabetic);
    (long && STOP_WORDS.binary_search(&word.as_str()).is_err()).then_some(word)
}

/// Says how typical a sentence is of its chunk: the mean frequency of its words, against
/// the most frequent one.
#[expect(clippy::cast_precision_loss, reason = "a chunk has few words")]
fn salience(sentence: &str, counts: &HashMap<String, usize>, top: usize) -> f32 {
    let words: HashSet<String> = sentence.unicode_words().filter_map(content_word).collect();
    if words.is_empty() {
        return 0.0;
    }
    // Whole numbers until the end: a sum of fractions would depend on the set's order.
    let sum: usize = words.iter().filter_map(|word| counts.get(word)).sum();
    let mean = sum as f32 / (words.len() * top.max(1)) as f32;
    let weight = words.len().min(FULL_CONTENT) as f32 / FULL_CONTENT as f32;
    (mean * weight).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Waybill and its workers at large\n\n\
        Waybill stores documents in Postgres. The\n  workers of Waybill read documents from the queue and write\n\
        vectors to Qdrant. It is so. Waybill Relay moves each `outbox_event` to the HTTP API of Qdrant Cloud.\n\n\
        - Größere Dokumente werden von Waybill in Stücke zerlegt.\n\
        - The retry_count of documents never exceeds MAX_RETRIES in any case.\n";

    fn read(text: &str) -> Extraction {
        extract(text, &ExtractionSettings::default())
    }

    #[test]
    fn stop_words_are_sorted() {
        assert!(STOP_WORDS.is_sorted());
    }

    #[test]
    fn every_quote_is_verbatim_and_a_sentence() {
        let extraction = read(TEXT);
        let statements: Vec<_> = extraction.facts.iter().map(|fact| &*fact.statement).collect();
        assert_eq!(
            statements,
            [
                "Waybill stores documents in Postgres.",
                "The workers of Waybill read documents from the queue and write vectors to Qdrant.",
                "Waybill Relay moves each `outbox_event` to the HTTP API of Qdrant Cloud.",
                "Größere Dokumente werden von Waybill in Stücke zerlegt.",
                "The retry_count of documents never exceeds MAX_RETRIES in any case.",
            ]
        );
        for fact in &extraction.facts {
            assert_eq!(&TEXT[fact.start_byte..fact.end_byte], fact.quote);
            assert!(fact.confidence > 0.0 && fact.confidence <= 1.0, "{}", fact.confidence);
            assert_eq!(fact.kind, "statement");
        }
    }

    #[test]
    fn entities_are_names_identifiers_and_terms() {
        let extraction = read(TEXT);
        let entities = |number: usize| -> Vec<(&str, &str)> {
            extraction.facts[number].entities.iter().map(|entity| (&*entity.kind, &*entity.name)).collect()
        };
        assert_eq!(
            entities(2),
            [
                ("name", "Waybill Relay"),
                ("identifier", "outbox_event"),
                ("identifier", "HTTP"),
                ("identifier", "API"),
                ("name", "Qdrant Cloud"),
                ("term", "waybill"),
            ]
        );
        assert_eq!(entities(4), [("identifier", "retry_count"), ("identifier", "MAX_RETRIES"), ("term", "documents")]);
    }

    #[test]
    fn the_same_text_gives_the_same_answer() {
        let text = TEXT.repeat(20);
        let first = read(&text);
        assert_eq!(first.facts.len(), MAX_SENTENCES);
        for _ in 0..20 {
            assert_eq!(read(&text), first);
        }
    }

    #[test]
    fn types_that_are_not_asked_for_are_left_out() {
        let settings = |facts: &str, entities: &str| ExtractionSettings {
            fact_types: vec![facts.to_owned()],
            entity_types: vec![entities.to_owned()],
            ..ExtractionSettings::default()
        };
        assert_eq!(extract(TEXT, &settings("deadline", "name")), Extraction::default());
        let extraction = extract(TEXT, &settings("statement", "name"));
        let mut entities = extraction.facts.iter().flat_map(|fact| &fact.entities);
        assert!(entities.all(|entity| entity.kind == "name"));
    }

    #[test]
    fn odd_texts_are_survived() {
        for text in
            ["", " \n\n ", "...", "\u{0}\u{1}", "Too short here.", "日本の首都は東京です。東京は大きい都市です。"]
        {
            for fact in read(text).facts {
                assert_eq!(&text[fact.start_byte..fact.end_byte], fact.quote);
            }
        }
        let endless = "word ".repeat(10_000);
        assert_eq!(read(&endless).dropped.too_long, 1);
    }
}
