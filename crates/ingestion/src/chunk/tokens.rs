//! Counting tokens.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use tokenizers::Tokenizer;
use waybill_domain::ContentHash;

/// What one token may stand for, in bytes. A word that a tokenizer doesn't know can be one
/// token, however long: counted so, a passage would have no bound.
const MAX_TOKEN_BYTES: usize = 16;

/// A word of up to this many bytes counts as one token in the estimate, one of twice as many
/// as two. Word pieces of English text are about 1.3 a word, which is about what this gives.
const ESTIMATED_BYTES: usize = 8;

/// From here on (CJK radicals), scripts are written without spaces, and tokenizers of
/// sentence models take each character as a token.
const FIRST_IDEOGRAPH: char = '\u{2e80}';

/// A tokenizer that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file can't be read.
    #[error("read the tokenizer {}: {source}", path.display())]
    Read {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is no tokenizer.
    #[error("{} is no tokenizer.json: {reason}", path.display())]
    Parse {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Counts tokens.
#[derive(Debug)]
pub enum TokenCounter {
    /// Counts a run of letters and digits as one token for each 8 bytes begun, any other
    /// character but white space as one, and each character of CJK scripts as one. Within a
    /// fifth of a BERT tokenizer on English prose; it errs upwards on source code.
    Estimate,
    /// Counts as a model does.
    Model(Box<Tokenizer>),
}

impl TokenCounter {
    /// Loads a `tokenizer.json`, and names it by its content.
    pub(super) fn load(path: &Path) -> Result<(Self, String), TokenizerError> {
        let bytes = fs::read(path).map_err(|source| TokenizerError::Read { path: path.to_owned(), source })?;
        let mut tokenizer = Tokenizer::from_bytes(&bytes)
            .map_err(|error| TokenizerError::Parse { path: path.to_owned(), reason: error.to_string() })?;
        // Both belong to a model's input, not to a text.
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|error| TokenizerError::Parse { path: path.to_owned(), reason: error.to_string() })?;
        let name: String = ContentHash::of(&bytes).to_string().chars().take(16).collect();
        Ok((Self::Model(Box::new(tokenizer)), name))
    }

    /// Counts the tokens of `text`.
    pub(super) fn count(&self, text: &str) -> usize {
        self.starts(text).len()
    }

    /// Lists where the tokens of `text` begin, in bytes, ascending.
    pub(super) fn starts(&self, text: &str) -> Vec<usize> {
        let mut starts = Vec::with_capacity(text.len() / 4);
        let mut push = |start: usize, end: usize, bytes: usize| {
            starts.extend((start..end.max(start + 1)).step_by(bytes));
        };
        if let Self::Model(tokenizer) = self
            && let Ok(encoding) = tokenizer.encode(text, false)
        {
            for &(start, end) in encoding.get_offsets() {
                push(start, end, MAX_TOKEN_BYTES);
            }
            // Normalizers may move an offset; the search in the list needs it sorted.
            starts.sort_unstable();
            return starts;
        }
        let mut word: Option<usize> = None;
        for (index, character) in text.char_indices() {
            let in_word = character.is_alphanumeric() && character < FIRST_IDEOGRAPH;
            if in_word {
                word.get_or_insert(index);
                continue;
            }
            if let Some(start) = word.take() {
                push(start, index, ESTIMATED_BYTES);
            }
            if !character.is_whitespace() {
                push(index, index + 1, ESTIMATED_BYTES);
            }
        }
        if let Some(start) = word {
            push(start, text.len(), ESTIMATED_BYTES);
        }
        starts
    }
}
