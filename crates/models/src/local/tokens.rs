use std::path::Path;

use tokenizers::{Tokenizer, TruncationParams};

use super::folder::load_error;
use crate::ModelError;

/// Turns text into the ids that a model knows, no more than it reads.
pub(super) struct TextTokenizer {
    tokenizer: Tokenizer,
    marks: bool,
}

impl TextTokenizer {
    /// Loads `tokenizer.json`. `marks` adds what a model expects around a sentence,
    /// such as `[CLS]` and `[SEP]`; they count towards `max_tokens`.
    pub(super) fn load(path: &Path, max_tokens: usize, marks: bool) -> Result<Self, ModelError> {
        let fail = |error: tokenizers::Error| load_error(path, error.to_string());
        let mut tokenizer = Tokenizer::from_file(path).map_err(fail)?;
        // Files carry the settings of whoever saved them; these are ours.
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(Some(TruncationParams { max_length: max_tokens, ..Default::default() }))
            .map_err(fail)?;
        Ok(Self { tokenizer, marks })
    }

    pub(super) fn ids(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let encoding = self
            .tokenizer
            .encode_fast(text, self.marks)
            .map_err(|error| ModelError::Inference(format!("tokenize: {error}")))?;
        Ok(encoding.get_ids().to_vec())
    }
}
