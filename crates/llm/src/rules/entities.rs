use std::collections::{HashMap, HashSet};

use unicode_segmentation::UnicodeSegmentation;

use super::content_word;
use crate::{
    EntityMention,
    limits::{MAX_ENTITIES_PER_FACT, MAX_ENTITY_NAME_BYTES},
    text::{canonical, clean},
};

/// How often a word occurs in a chunk that is one of its terms.
const MIN_WORD_COUNT: usize = 3;

/// How often a pair of words does; a pair is seldom repeated by chance.
const MIN_PAIR_COUNT: usize = 2;

/// The phrases that a chunk repeats.
pub(super) struct Phrases {
    terms: HashSet<String>,
}

impl Phrases {
    /// Finds the phrases of a chunk, whose words are counted in `counts`.
    pub(super) fn of(text: &str, counts: &HashMap<String, usize>) -> Self {
        let mut pairs = HashMap::new();
        for pair in neighbours(text) {
            *pairs.entry(pair).or_insert(0) += 1;
        }
        let words = counts.iter().filter(|(_, count)| **count >= MIN_WORD_COUNT).map(|(word, _)| word.clone());
        let pairs = pairs.into_iter().filter(|(_, count)| *count >= MIN_PAIR_COUNT).map(|(pair, _)| pair);
        Self { terms: words.chain(pairs).collect() }
    }

    /// Finds the entities of a sentence, in the order they stand in, terms last.
    pub(super) fn entities(&self, sentence: &str, kinds: &[String]) -> Vec<EntityMention> {
        let mut found = Found { kinds, seen: HashSet::new(), entities: Vec::new() };
        names_and_identifiers(sentence, &mut found);
        let words = sentence.unicode_words().filter_map(content_word);
        for term in neighbours(sentence).chain(words).filter(|term| self.terms.contains(term)) {
            found.add("term", &term);
        }
        found.entities
    }
}

/// Returns the pairs of words of content that stand side by side.
fn neighbours(text: &str) -> impl Iterator<Item = String> + '_ {
    let mut before: Option<(usize, String)> = None;
    text.unicode_word_indices().filter_map(move |(start, word)| {
        let content = content_word(word);
        let pair = match (&before, &content) {
            // More than one byte in between is punctuation or a line end.
            (Some((end, first)), Some(second)) if *end + 1 == start => Some(format!("{first} {second}")),
            _ => None,
        };
        before = content.map(|content| (start + word.len(), content));
        pair
    })
}

struct Found<'a> {
    kinds: &'a [String],
    seen: HashSet<String>,
    entities: Vec<EntityMention>,
}

impl Found<'_> {
    /// Adds an entity, unless it is there under this or another kind.
    fn add(&mut self, kind: &str, name: &str) {
        let wanted = self.kinds.is_empty() || self.kinds.iter().any(|wanted| wanted == kind);
        if !wanted || self.entities.len() >= MAX_ENTITIES_PER_FACT {
            return;
        }
        let name = clean(name);
        let canonical = canonical(&name);
        let too_long = name.len().max(canonical.len()) > MAX_ENTITY_NAME_BYTES;
        if canonical.is_empty() || too_long || !self.seen.insert(canonical.clone()) {
            return;
        }
        self.entities.push(EntityMention { kind: kind.to_owned(), name, canonical, role: "mention".to_owned() });
    }
}

fn names_and_identifiers(sentence: &str, found: &mut Found<'_>) {
    let mut name: Vec<&str> = Vec::new();
    for word in sentence.split_whitespace() {
        let core = word.trim_matches(|char: char| !char.is_alphanumeric() && char != '_');
        let opens = word.starts_with(core);
        if is_identifier(core) {
            finish_name(&mut name, found);
            found.add("identifier", core);
            continue;
        }
        // A bracket or a quotation mark begins another name.
        if !opens {
            finish_name(&mut name, found);
        }
        if is_capitalised(core) && content_word(core).is_some() {
            name.push(core);
        } else {
            finish_name(&mut name, found);
        }
        if !word.ends_with(core) {
            finish_name(&mut name, found);
        }
    }
    finish_name(&mut name, found);
}

fn finish_name(name: &mut Vec<&str>, found: &mut Found<'_>) {
    // A single capitalised word may just begin its sentence.
    if name.len() > 1 {
        found.add("name", &name.join(" "));
    }
    name.clear();
}

fn is_capitalised(word: &str) -> bool {
    let mut chars = word.chars();
    chars.next().is_some_and(char::is_uppercase) && chars.any(char::is_lowercase)
}

/// Says whether a word looks like `ALL_CAPS`, `snake_case`, `camelCase` or `a::path`.
fn is_identifier(word: &str) -> bool {
    let letters = || word.chars().filter(|char| char.is_alphabetic());
    if letters().count() < 2 {
        return false;
    }
    let plain = word.chars().all(|char| char.is_alphanumeric() || matches!(char, '_' | '-' | ':' | '.'));
    let all_caps = letters().all(char::is_uppercase);
    let humps = word.chars().zip(word.chars().skip(1)).any(|(a, b)| a.is_lowercase() && b.is_uppercase());
    let joined = word.trim_matches('_').contains('_') || word.contains("::");
    plain && (all_caps || humps || joined)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_told_from_words() {
        for word in ["HTTP", "MAX_SIZE", "retry_count", "camelCase", "OpenAi", "std::fs", "UTF-8"] {
            assert!(is_identifier(word), "{word}");
        }
        for word in ["Word", "word", "I", "A", "2024", "well-known", "e.g", "_x", ""] {
            assert!(!is_identifier(word), "{word}");
        }
    }

    #[test]
    fn punctuation_ends_a_name() {
        let mut found = Found { kinds: &[], seen: HashSet::new(), entities: Vec::new() };
        names_and_identifiers("In Berlin, Jane Doe met (Ada Lovelace) The Great Émile Zola.", &mut found);
        let names: Vec<_> = found.entities.iter().map(|entity| &*entity.name).collect();
        assert_eq!(names, ["Jane Doe", "Ada Lovelace", "Great Émile Zola"]);
    }
}
