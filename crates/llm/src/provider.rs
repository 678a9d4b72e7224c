use async_trait::async_trait;

use crate::{ExtractionTask, LlmError};

/// Reads facts and entities out of a chunk.
#[async_trait]
pub trait LlmProvider: Send + Sync {
    /// Returns the kind of provider, for logs and metrics.
    fn name(&self) -> &'static str;

    /// Returns the model that is used where a task names none.
    fn model(&self) -> &str;

    /// Reads one chunk. Safe to repeat, though a repetition may cost money.
    ///
    /// # Errors
    /// [`LlmError`]; its class tells whether to try again.
    async fn extract(&self, task: &ExtractionTask) -> Result<Answer, LlmError>;
}

/// What a provider made of a chunk.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The facts, checked against the chunk.
    pub extraction: Extraction,
    /// What was used up, over all requests of the call; zero where the server doesn't say.
    pub usage: Usage,
    /// The model that was asked.
    pub model: String,
    /// Whether the first answer could not be read and was asked for again.
    pub repaired: bool,
}

/// How many tokens a call took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens that were sent.
    pub prompt_tokens: u64,
    /// Tokens that were written.
    pub completion_tokens: u64,
}

impl Usage {
    pub(crate) const fn plus(self, other: Self) -> Self {
        Self {
            prompt_tokens: self.prompt_tokens.saturating_add(other.prompt_tokens),
            completion_tokens: self.completion_tokens.saturating_add(other.completion_tokens),
        }
    }
}

/// The facts of one chunk, each with its evidence.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Extraction {
    /// The facts, in the order of the answer.
    pub facts: Vec<Fact>,
    /// How much of the answer was not kept.
    pub dropped: Dropped,
}

/// One fact.
#[derive(Debug, Clone, PartialEq)]
pub struct Fact {
    /// The type of fact.
    pub kind: String,
    /// The fact as a sentence that stands by itself.
    pub statement: String,
    /// Whom or what the fact is about.
    pub subject: Option<String>,
    /// What it says about the subject.
    pub predicate: Option<String>,
    /// What the predicate points at.
    pub object: Option<String>,
    /// How sure the provider is, 0 to 1.
    pub confidence: f32,
    /// The evidence: a piece of the chunk, byte for byte.
    pub quote: String,
    /// Where the quote begins in the chunk.
    pub start_byte: usize,
    /// Where the quote ends in the chunk, exclusive.
    pub end_byte: usize,
    /// Whom and what the fact mentions.
    pub entities: Vec<EntityMention>,
}

/// An entity in a fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntityMention {
    /// The type of entity.
    pub kind: String,
    /// The name as the provider wrote it.
    pub name: String,
    /// The name for comparing: NFKC, lower-cased, white space collapsed.
    pub canonical: String,
    /// `subject`, `object` or `mention`.
    pub role: String,
}

/// How much of an answer was not kept, and why. The parts themselves are gone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Facts whose quote does not stand in the chunk.
    pub quote_not_found: u32,
    /// Facts beyond the number that is kept.
    pub too_many: u32,
    /// Facts or parts of facts that are too long.
    pub too_long: u32,
    /// Facts that miss something or have a type that is not asked for.
    pub malformed: u32,
    /// Answers that end before their list of facts does: 1 or 0. What they would have said is
    /// not known; the facts before the cut are kept.
    pub truncated: u32,
    /// Entities of facts that were kept.
    pub entities: DroppedEntities,
}

/// How many entities of the facts that were kept were not kept with them, and why.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DroppedEntities {
    /// Those whose name is missing, or holds nothing that can be compared.
    pub empty_name: u32,
    /// Those whose name is too long.
    pub name_too_long: u32,
    /// Those of a type that is not asked for, or is none.
    pub unknown_type: u32,
    /// Those beyond the number that is kept of a fact.
    pub too_many: u32,
    /// What is no entity at all.
    pub malformed: u32,
}

impl Dropped {
    /// Lists the reasons why facts or parts of them were dropped, with how many, without zeros.
    pub fn fact_reasons(&self) -> impl Iterator<Item = (&'static str, u32)> {
        let reasons = [
            ("quote_not_found", self.quote_not_found),
            ("too_many", self.too_many),
            ("too_long", self.too_long),
            ("malformed", self.malformed),
            ("truncated", self.truncated),
        ];
        reasons.into_iter().filter(|(_, count)| *count > 0)
    }

    /// Lists the reasons why entities were dropped, with how many, without zeros.
    pub fn entity_reasons(&self) -> impl Iterator<Item = (&'static str, u32)> {
        let reasons = [
            ("empty_name", self.entities.empty_name),
            ("name_too_long", self.entities.name_too_long),
            ("unknown_type", self.entities.unknown_type),
            ("too_many", self.entities.too_many),
            ("malformed", self.entities.malformed),
        ];
        reasons.into_iter().filter(|(_, count)| *count > 0)
    }
}
