//! From a body to chunks: reduced to readable text, cut at headings, then at sentences.
//!
//! Pure and blocking: callers run it off the async threads.

mod html;
mod markdown;
mod outline;
mod readable;
mod split;
mod tokens;

use std::path::Path;

use waybill_domain::{MediaType, TextHash, embedding_text};
use waybill_storage::sources::NewChunk;

use outline::Outline;
use readable::Readable;
pub use tokens::{TokenCounter, TokenizerError};

/// Changes with every change of the rules in this module: sources that were cut by other
/// rules are cut again when they are put again.
const RULES: &str = "v1";

/// The longest title, in bytes. One that a document brings itself is cut to it.
pub const MAX_TITLE_BYTES: usize = 1_024;

/// Passages of one document, at most. They are rows of one transaction. 16 MiB of prose are
/// 25,000; a document that passes this is made of headings.
const MAX_CHUNKS: usize = 50_000;

/// A document that falls into too many passages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("falls into more than {MAX_CHUNKS} passages: part the document")]
pub struct TooManyChunks;

/// A document, read and cut.
#[derive(Debug, Clone, PartialEq)]
pub struct Cut {
    /// As given, else as found in the document, else from the uri.
    pub title: String,
    /// What a person would read of it. The chunks' ranges point into it.
    pub text: String,
    /// In the order of the text. Empty if there is nothing to read.
    pub chunks: Vec<NewChunk>,
}

/// Cuts documents. Share it: a tokenizer takes megabytes.
#[derive(Debug)]
pub struct Chunker {
    counter: TokenCounter,
    max_tokens: usize,
    overlap_tokens: usize,
    id: String,
}

impl Chunker {
    /// Makes a chunker for passages of at most `max_tokens`, each of which begins with up to
    /// `overlap_tokens` of the one before. Tokens are those of the `tokenizer.json` at
    /// `tokenizer`, or an estimate (see [`TokenCounter::Estimate`]).
    ///
    /// # Errors
    /// If the tokenizer can't be read.
    pub fn new(max_tokens: usize, overlap_tokens: usize, tokenizer: Option<&Path>) -> Result<Self, TokenizerError> {
        let (counter, tokenizer) = match tokenizer {
            Some(path) => TokenCounter::load(path)?,
            None => (TokenCounter::Estimate, "estimate".to_owned()),
        };
        Ok(Self {
            counter,
            max_tokens,
            overlap_tokens,
            id: format!("{RULES}:{max_tokens}:{overlap_tokens}:{tokenizer}"),
        })
    }

    /// Returns what names this way of cutting: two chunkers with one id cut alike.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Reads and cuts a document. Takes any input; time is linear in its length.
    ///
    /// # Errors
    /// If it falls into too many passages.
    pub fn cut(
        &self,
        body: &str,
        media_type: MediaType,
        given_title: Option<&str>,
        uri: &str,
    ) -> Result<Cut, TooManyChunks> {
        let readable = match media_type {
            MediaType::Text => Readable::plain(body),
            MediaType::Markdown => markdown::read(body),
            MediaType::Html => html::read(body),
        };
        let title = match given_title {
            Some(title) => title.to_owned(),
            None => readable.title.clone().unwrap_or_else(|| title_of_uri(uri)),
        };
        let mut chunks = Vec::new();
        for section in Outline::new(&title, &readable).sections() {
            if chunks.len() > MAX_CHUNKS {
                return Err(TooManyChunks);
            }
            let heading_tokens = self.counter.count(&embedding_text(&section.headings, ""));
            // What is embedded is the headings too. They may take half of what there is.
            let budget = self.max_tokens.saturating_sub(heading_tokens).max(self.max_tokens.div_ceil(2)).max(1);
            let overlap = self.overlap_tokens.min(budget - 1);
            split::split(
                &readable.text,
                section.range,
                media_type,
                &self.counter,
                budget,
                overlap,
                |range, token_count| {
                    chunks.push(NewChunk {
                        text_hash: TextHash::of(embedding_text(&section.headings, &readable.text[range.clone()])),
                        headings: section.headings.clone(),
                        range,
                        token_count,
                    });
                },
            );
        }
        if chunks.len() > MAX_CHUNKS {
            return Err(TooManyChunks);
        }
        Ok(Cut { title, text: readable.text, chunks })
    }
}

/// Makes a title of what a uri ends with.
fn title_of_uri(uri: &str) -> String {
    let path = uri.split(['?', '#']).next().unwrap_or(uri);
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().trim();
    readable::shortened(if name.is_empty() { uri } else { name }, MAX_TITLE_BYTES).to_owned()
}

#[cfg(test)]
mod tests;
