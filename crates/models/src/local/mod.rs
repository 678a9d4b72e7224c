//! Sentence-embedding models from a folder, run in this process.

mod bert;
mod folder;
mod onnx;
mod pool;
mod pooling;
mod table;
mod tokens;
mod weights;

use std::{num::NonZero, sync::Arc};

use async_trait::async_trait;
use futures::future::try_join_all;

use self::{bert::Bert, folder::ModelFolder, onnx::OnnxModel, pool::Pool, table::Table, tokens::TextTokenizer};
use crate::{EmbeddingProvider, LocalConfig, ModelError, ModelFormat, ModelInfo, Purpose, provider::Prefixes};

/// Turns token ids into vectors, on one thread.
trait Encoder: Send {
    /// Makes one vector for each list of ids, in order. A list may be empty.
    fn encode(&mut self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, ModelError>;
}

/// A model that is loaded, with the threads that run it.
pub(crate) struct LocalProvider {
    info: ModelInfo,
    prefixes: Prefixes,
    pool: Pool,
    threads: usize,
    batch: usize,
}

/// What loading a folder gives: the encoders, one for each thread, and what they make.
struct Loaded {
    info: ModelInfo,
    tokenizer: TextTokenizer,
    encoders: Vec<Box<dyn Encoder>>,
}

impl LocalProvider {
    /// Loads the model; takes a second or so, off the async workers.
    pub(crate) async fn load(config: &LocalConfig) -> Result<Self, ModelError> {
        let config = config.clone();
        let threads = match config.threads {
            0 => std::thread::available_parallelism().map_or(1, NonZero::get),
            threads => threads,
        };
        let prefixes = Prefixes::new(&config.document_prefix, &config.query_prefix);
        let (batch, queue) = (config.batch, config.queue);
        let loaded = tokio::task::spawn_blocking(move || load_folder(&config, threads))
            .await
            .map_err(|error| ModelError::Inference(format!("loading stopped: {error}")))??;
        let pool = Pool::start(loaded.encoders, Arc::new(loaded.tokenizer), queue)?;
        Ok(Self { info: loaded.info, prefixes, pool, threads, batch })
    }
}

fn load_folder(config: &LocalConfig, threads: usize) -> Result<Loaded, ModelError> {
    let folder = ModelFolder::open(&config.path, config.format)?;
    let max_tokens = config.max_tokens.unwrap_or(folder.max_tokens()?);
    let tokenizer = TextTokenizer::load(
        &folder.tokenizer_path(),
        max_tokens,
        // A token table was made from texts without the marks of a sentence.
        folder.format() != ModelFormat::Static,
    )?;
    let (dimensions, encoders) = load_encoders(config, &folder, max_tokens, threads)?;
    let name = match &config.name {
        Some(name) => name.clone(),
        None => folder.fingerprinted_name(config, max_tokens)?,
    };
    let info = ModelInfo { name, provider: "local", dimensions, max_tokens };
    Ok(Loaded { info, tokenizer, encoders })
}

fn load_encoders(
    config: &LocalConfig,
    folder: &ModelFolder,
    max_tokens: usize,
    threads: usize,
) -> Result<(usize, Vec<Box<dyn Encoder>>), ModelError> {
    let boxed = |encoder| -> Box<dyn Encoder> { encoder };
    match folder.format() {
        ModelFormat::Bert => {
            let model = Arc::new(Bert::load(folder, max_tokens)?);
            let encoders = (0..threads).map(|_| boxed(Box::new(bert::Runner::new(&model))));
            Ok((model.dimensions(), encoders.collect()))
        }
        ModelFormat::Static => {
            let table = Arc::new(Table::load(folder)?);
            let encoders = (0..threads).map(|_| boxed(Box::new(table::Runner::new(&table))));
            Ok((table.dimensions(), encoders.collect()))
        }
        ModelFormat::Onnx => {
            let library = onnx::find_library(config.onnxruntime.as_deref(), folder.path());
            let models: Vec<_> =
                (0..threads).map(|_| OnnxModel::load(folder, library.as_deref())).collect::<Result<_, _>>()?;
            let dimensions = models.first().map_or(0, OnnxModel::dimensions);
            Ok((dimensions, models.into_iter().map(|model| boxed(Box::new(model))).collect()))
        }
    }
}

#[async_trait]
impl EmbeddingProvider for LocalProvider {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    async fn embed(&self, texts: &[String], purpose: Purpose) -> Result<Vec<Vec<f32>>, ModelError> {
        let texts = self.prefixes.apply(texts, purpose);
        // Texts of like length go together, so that a thread isn't left with all the long ones
        // when the others are done; the longest go first for the same reason.
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&place| std::cmp::Reverse(texts[place].len()));
        let per_batch = texts.len().div_ceil(self.threads).clamp(1, self.batch);
        let batches = order
            .chunks(per_batch)
            .map(|places| self.pool.run(places.iter().map(|&place| texts[place].clone()).collect()));
        let vectors = try_join_all(batches).await?;
        let mut placed: Vec<(usize, Vec<f32>)> = order.iter().copied().zip(vectors.into_iter().flatten()).collect();
        placed.sort_unstable_by_key(|(place, _)| *place);
        Ok(placed.into_iter().map(|(_, vector)| vector).collect())
    }
}
