//! What is kept of a model's answer.

mod quote;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value};

use self::quote::Haystack;
use crate::{
    Dropped, EntityMention, Extraction, ExtractionSettings, Fact,
    json::{End, Found, find_facts},
    limits::{MAX_ENTITIES_PER_FACT, MAX_ENTITY_NAME_BYTES, MAX_FACTS, MAX_STATEMENT_BYTES},
    task::is_type,
    text::{canonical, clean},
};

/// What a fact without a usable confidence gets: the model did not say.
const UNKNOWN_CONFIDENCE: f32 = 0.5;

/// The type of a fact that names none, where any type is allowed.
const DEFAULT_FACT_KIND: &str = "statement";

/// The type of an entity that names none, where any type is allowed.
const DEFAULT_ENTITY_KIND: &str = "other";

/// Why a part of the answer is not kept.
enum Drop {
    QuoteNotFound,
    TooLong,
    Malformed,
    EmptyName,
    UnknownType,
}

/// What came of reading an answer.
#[derive(Debug, PartialEq)]
pub(crate) enum Reading {
    /// What is kept of it.
    Read(Extraction),
    /// It breaks in the middle.
    Broken {
        /// What is wrong; never a piece of the answer.
        problem: String,
        /// What is kept of the facts before the place, if there are any.
        rest: Option<Extraction>,
    },
}

/// Reads a model's answer and keeps the facts that `text` bears out.
///
/// The answer may surround its JSON object with other text, and may be cut off: then the
/// facts that stand whole before the cut count. Each fact must quote `text` word for word,
/// white space aside; its offsets are those of the quote in `text`. Facts and entities that
/// don't hold, are not asked for or go beyond [`crate::limits`] are counted and left out.
///
/// # Errors
/// What is wrong with an answer that holds no such object; never a piece of it.
pub fn read_extraction(json: &str, text: &str, settings: &ExtractionSettings) -> Result<Extraction, String> {
    match read_answer(json, text, settings) {
        Reading::Read(extraction) => Ok(extraction),
        Reading::Broken { problem, .. } => Err(problem),
    }
}

/// Reads like [`read_extraction`], and says what stands before the place where an answer breaks.
pub(crate) fn read_answer(answer: &str, text: &str, settings: &ExtractionSettings) -> Reading {
    let Found { facts, end } = match find_facts(answer) {
        Ok(found) => found,
        Err(problem) => return Reading::Broken { problem, rest: None },
    };
    let mut extraction = keep(&facts, text, settings);
    match end {
        End::Whole => Reading::Read(extraction),
        End::Cut => {
            extraction.dropped.truncated = 1;
            Reading::Read(extraction)
        }
        End::Broken(problem) => {
            extraction.dropped.truncated = 1;
            Reading::Broken { problem, rest: Some(extraction) }
        }
    }
}

fn keep(items: &[Value], text: &str, settings: &ExtractionSettings) -> Extraction {
    let mut reader = Reader { haystack: Haystack::new(text), settings, dropped: Dropped::default() };
    let mut facts = Vec::new();
    for item in items {
        if facts.len() >= MAX_FACTS {
            reader.dropped.too_many = reader.dropped.too_many.saturating_add(1);
            continue;
        }
        match reader.fact(item) {
            Ok(fact) => facts.push(fact),
            Err(drop) => reader.count(&drop),
        }
    }
    Extraction { facts, dropped: reader.dropped }
}

struct Reader<'a> {
    haystack: Haystack<'a>,
    settings: &'a ExtractionSettings,
    dropped: Dropped,
}

impl Reader<'_> {
    fn count(&mut self, drop: &Drop) {
        let counter = match drop {
            Drop::QuoteNotFound => &mut self.dropped.quote_not_found,
            Drop::TooLong => &mut self.dropped.too_long,
            Drop::Malformed | Drop::EmptyName | Drop::UnknownType => &mut self.dropped.malformed,
        };
        *counter = counter.saturating_add(1);
    }

    fn count_entity(&mut self, drop: &Drop) {
        let entities = &mut self.dropped.entities;
        let counter = match drop {
            Drop::EmptyName => &mut entities.empty_name,
            Drop::TooLong => &mut entities.name_too_long,
            Drop::UnknownType => &mut entities.unknown_type,
            Drop::Malformed | Drop::QuoteNotFound => &mut entities.malformed,
        };
        *counter = counter.saturating_add(1);
    }

    fn fact(&mut self, item: &Value) -> Result<Fact, Drop> {
        let item = item.as_object().ok_or(Drop::Malformed)?;
        let kind = read_kind(item, &self.settings.fact_types, DEFAULT_FACT_KIND)?;
        let statement = read_line(item, "statement", MAX_STATEMENT_BYTES)?.ok_or(Drop::Malformed)?;
        let quote = item.get("quote").and_then(Value::as_str).filter(|quote| !quote.trim().is_empty());
        let place = self.haystack.find(quote.ok_or(Drop::Malformed)?).ok_or(Drop::QuoteNotFound)?;
        Ok(Fact {
            kind,
            statement,
            subject: self.part(item, "subject"),
            predicate: self.part(item, "predicate"),
            object: self.part(item, "object"),
            confidence: read_confidence(item.get("confidence")),
            quote: self.haystack.text()[place.clone()].to_owned(),
            start_byte: place.start,
            end_byte: place.end,
            entities: self.entities(item.get("entities")),
        })
    }

    /// Reads a part that a fact can do without.
    fn part(&mut self, item: &Map<String, Value>, key: &str) -> Option<String> {
        read_line(item, key, MAX_ENTITY_NAME_BYTES).unwrap_or_else(|drop| {
            self.count(&drop);
            None
        })
    }

    fn entities(&mut self, items: Option<&Value>) -> Vec<EntityMention> {
        let items = match items {
            None | Some(Value::Null) => return Vec::new(),
            Some(Value::Array(items)) => items,
            Some(_) => {
                self.count_entity(&Drop::Malformed);
                return Vec::new();
            }
        };
        let mut entities = Vec::new();
        for item in items {
            if entities.len() >= MAX_ENTITIES_PER_FACT {
                self.dropped.entities.too_many = self.dropped.entities.too_many.saturating_add(1);
                continue;
            }
            match self.entity(item) {
                // Said twice is no loss, so it is not counted as one.
                Ok(entity) if entities.contains(&entity) => {}
                Ok(entity) => entities.push(entity),
                Err(drop) => self.count_entity(&drop),
            }
        }
        entities
    }

    fn entity(&self, item: &Value) -> Result<EntityMention, Drop> {
        let item = item.as_object().ok_or(Drop::Malformed)?;
        let kind = read_kind(item, &self.settings.entity_types, DEFAULT_ENTITY_KIND)?;
        let name = read_line(item, "name", MAX_ENTITY_NAME_BYTES)?.ok_or(Drop::EmptyName)?;
        let canonical = canonical(&name);
        if canonical.is_empty() {
            return Err(Drop::EmptyName);
        }
        // One character may become eighteen in NFKC.
        if canonical.len() > MAX_ENTITY_NAME_BYTES {
            return Err(Drop::TooLong);
        }
        let role = match item.get("role").and_then(Value::as_str).map(|role| role.trim().to_ascii_lowercase()) {
            Some(role) if role == "subject" || role == "object" => role,
            _ => "mention".to_owned(),
        };
        Ok(EntityMention { kind, name, canonical, role })
    }
}

/// Reads a type, which some models call `type` whatever they are told.
fn read_kind(item: &Map<String, Value>, allowed: &[String], default: &str) -> Result<String, Drop> {
    let kind = match item.get("kind").or_else(|| item.get("type")) {
        None | Some(Value::Null) => default.to_owned(),
        Some(Value::String(kind)) => kind.trim().to_ascii_lowercase().replace([' ', '-'], "_"),
        Some(_) => return Err(Drop::UnknownType),
    };
    let known = if allowed.is_empty() { is_type(&kind) } else { allowed.contains(&kind) };
    if known { Ok(kind) } else { Err(Drop::UnknownType) }
}

/// Reads a text as one clean line; `None` if it is missing or empty.
fn read_line(item: &Map<String, Value>, key: &str, limit: usize) -> Result<Option<String>, Drop> {
    let line = match item.get(key) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) => clean(text),
        // An object such as 42 loses nothing by being a text.
        Some(Value::Number(number)) => number.to_string(),
        Some(_) => return Err(Drop::Malformed),
    };
    if line.len() > limit {
        return Err(Drop::TooLong);
    }
    Ok(Some(line).filter(|line| !line.is_empty()))
}

/// Reads a confidence, which may be a number, a number in quotes, or anything else.
fn read_confidence(value: Option<&Value>) -> f32 {
    let number = match value {
        Some(Value::Number(number)) => number.as_f64(),
        Some(Value::String(text)) => text.trim().parse().ok(),
        _ => None,
    };
    #[expect(clippy::cast_possible_truncation, reason = "a number between 0 and 1 fits")]
    number.filter(|number| number.is_finite()).map_or(UNKNOWN_CONFIDENCE, |number| number.clamp(0.0, 1.0) as f32)
}
