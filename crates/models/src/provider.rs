use std::borrow::Cow;

use async_trait::async_trait;

use crate::ModelError;

/// What a model is called and what it makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// Identifies the vectors: two models with the same name make the same vectors, so
    /// it is the key of the cache and of the collection.
    pub name: String,
    /// The kind of provider: `local`, `openai` or `tei`.
    pub provider: &'static str,
    /// How many numbers a vector has.
    pub dimensions: usize,
    /// How many tokens of a text the model reads; the rest is cut off.
    pub max_tokens: usize,
}

/// What a text is embedded for. Some models want a prefix that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// It will be searched for.
    Document,
    /// It searches.
    Query,
}

/// A sentence-embedding model, wherever it runs.
#[async_trait]
pub trait EmbeddingProvider: Send + Sync + 'static {
    /// Tells what the model is called and what it makes. Never changes.
    fn info(&self) -> &ModelInfo;

    /// Embeds each text, in order: as many vectors as texts, each of
    /// [`ModelInfo::dimensions`] finite numbers. A text longer than the model reads is cut.
    ///
    /// Dropping the future gives up what has not begun.
    ///
    /// # Errors
    /// All texts fail together; [`ModelError::class`] tells whether to try again.
    async fn embed(&self, texts: &[String], purpose: Purpose) -> Result<Vec<Vec<f32>>, ModelError>;
}

/// What goes in front of a text, by purpose.
#[derive(Debug, Clone)]
pub(crate) struct Prefixes {
    document: String,
    query: String,
}

impl Prefixes {
    pub(crate) fn new(document: &str, query: &str) -> Self {
        Self { document: document.to_owned(), query: query.to_owned() }
    }

    pub(crate) fn apply<'a>(&self, texts: &'a [String], purpose: Purpose) -> Cow<'a, [String]> {
        let prefix = match purpose {
            Purpose::Document => &self.document,
            Purpose::Query => &self.query,
        };
        if prefix.is_empty() {
            return Cow::Borrowed(texts);
        }
        Cow::Owned(texts.iter().map(|text| format!("{prefix}{text}")).collect())
    }
}
