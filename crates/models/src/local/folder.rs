use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::{LocalConfig, ModelError, ModelFormat};

/// How many tokens a token table reads: its cost is linear, but a text must end somewhere.
const STATIC_MAX_TOKENS: usize = 8_192;

/// How many tokens a BERT reads when its folder does not say.
const BERT_MAX_TOKENS: usize = 512;

/// How many hexadecimal digits of the fingerprint a name gets.
const FINGERPRINT_DIGITS: usize = 8;

/// The files of a model, found and told apart.
pub(super) struct ModelFolder {
    path: PathBuf,
    format: ModelFormat,
}

/// How a sentence's vector comes from its tokens' vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pooling {
    /// Their mean.
    Mean,
    /// The first, which stands for the sentence.
    First,
}

#[derive(Deserialize)]
struct SentenceConfig {
    max_seq_length: usize,
}

#[derive(Deserialize)]
struct PoolingConfig {
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
}

impl ModelFolder {
    /// Looks which files are there and takes the format from them, unless it is given.
    pub(super) fn open(path: &Path, format: Option<ModelFormat>) -> Result<Self, ModelError> {
        if !path.is_dir() {
            return Err(load_error(path, "there is no such folder; set local.path to the model's"));
        }
        let has = |name: &str| path.join(name).is_file();
        let format = match format {
            Some(format) => format,
            None => match (has("model.onnx"), has("model.safetensors"), has("config.json")) {
                (true, true, _) => {
                    let problem = "has both model.onnx and model.safetensors; set local.format";
                    return Err(load_error(path, problem));
                }
                (true, false, _) => ModelFormat::Onnx,
                (false, true, true) => ModelFormat::Bert,
                (false, true, false) => ModelFormat::Static,
                (false, false, _) => {
                    let problem = "has neither model.safetensors nor model.onnx";
                    return Err(load_error(path, problem));
                }
            },
        };
        let folder = Self { path: path.to_owned(), format };
        for file in [folder.weights_path(), folder.tokenizer_path()] {
            if !file.is_file() {
                return Err(load_error(&file, "there is no such file"));
            }
        }
        Ok(folder)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) const fn format(&self) -> ModelFormat {
        self.format
    }

    pub(super) fn weights_path(&self) -> PathBuf {
        self.path.join(match self.format {
            ModelFormat::Onnx => "model.onnx",
            ModelFormat::Bert | ModelFormat::Static => "model.safetensors",
        })
    }

    pub(super) fn tokenizer_path(&self) -> PathBuf {
        self.path.join("tokenizer.json")
    }

    pub(super) fn config_path(&self) -> PathBuf {
        self.path.join("config.json")
    }

    /// Says how many tokens the model was made for, as sentence-transformers writes it down.
    pub(super) fn max_tokens(&self) -> Result<usize, ModelError> {
        if self.format == ModelFormat::Static {
            return Ok(STATIC_MAX_TOKENS);
        }
        let config: Option<SentenceConfig> = self.optional_json("sentence_bert_config.json")?;
        Ok(config.map_or(BERT_MAX_TOKENS, |config| config.max_seq_length))
    }

    /// Says how the tokens' vectors become one, as sentence-transformers writes it down.
    pub(super) fn pooling(&self) -> Result<Pooling, ModelError> {
        let Some(config): Option<PoolingConfig> = self.optional_json("1_Pooling/config.json")? else {
            return Ok(Pooling::Mean);
        };
        match (config.pooling_mode_mean_tokens, config.pooling_mode_cls_token) {
            (true, false) => Ok(Pooling::Mean),
            (false, true) => Ok(Pooling::First),
            _ => Err(load_error(
                &self.path.join("1_Pooling/config.json"),
                "asks for a pooling other than mean or cls, which is not supported",
            )),
        }
    }

    /// Names the model after its folder and all that its vectors depend on.
    ///
    /// Vectors are kept under this name, so a folder whose files were exchanged, or a
    /// changed prefix, must not pass for the same model.
    pub(super) fn fingerprinted_name(&self, config: &LocalConfig, max_tokens: usize) -> Result<String, ModelError> {
        let mut hash = Sha256::new();
        for file in [self.weights_path(), self.tokenizer_path()] {
            let bytes = read(&file)?;
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(&bytes);
        }
        hash.update((max_tokens as u64).to_le_bytes());
        for prefix in [&config.document_prefix, &config.query_prefix] {
            hash.update((prefix.len() as u64).to_le_bytes());
            hash.update(prefix);
        }
        let mut digits = hex::encode(hash.finalize());
        digits.truncate(FINGERPRINT_DIGITS);
        // `models/x/..` has no name of its own; the real path has.
        let path = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
        let name = path.file_name().map_or_else(|| "local".into(), |name| name.to_string_lossy());
        Ok(format!("{name}-{digits}"))
    }

    fn optional_json<T: for<'a> Deserialize<'a>>(&self, name: &str) -> Result<Option<T>, ModelError> {
        let path = self.path.join(name);
        if !path.is_file() {
            return Ok(None);
        }
        read_json(&path).map(Some)
    }
}

pub(super) fn load_error(path: &Path, problem: impl Into<String>) -> ModelError {
    ModelError::Load { path: path.to_owned(), problem: problem.into() }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, ModelError> {
    fs::read(path).map_err(|error| load_error(path, error.to_string()))
}

pub(super) fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T, ModelError> {
    serde_json::from_slice(&read(path)?).map_err(|error| load_error(path, error.to_string()))
}
