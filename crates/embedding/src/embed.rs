//! Embedding: hash, look up, embed what is missing, weigh terms.

use std::num::NonZero;
use std::sync::Arc;

use futures::future::{OptionFuture, join, try_join_all};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use waybill_domain::TextHash;
use waybill_models::{Bm25, Purpose, SparseVector};

use crate::batcher::EmbedError;
use crate::cache::VectorCache;
use crate::registry::Model;
use crate::vector::from_bytes;

/// Texts of up to so many bytes in all are hashed and weighed where they are: that takes less
/// time than to wake another thread. Of a longer request it would hold up everybody else on
/// this one.
const INLINE_BYTES: usize = 16 << 10;

/// What texts became.
pub(crate) struct Embedded {
    /// Little-endian f32, one for each text.
    pub(crate) dense: Vec<Vec<u8>>,
    /// One for each text, if asked for.
    pub(crate) sparse: Option<Vec<SparseVector>>,
    /// How many came from the cache.
    pub(crate) cached: usize,
}

/// Embeds for whoever asks.
pub(crate) struct Embedder {
    cache: VectorCache,
    bm25: Arc<Bm25>,
    /// Threads that weigh terms at a time: more than cores would only hold memory.
    weighers: Arc<Semaphore>,
    cores: usize,
}

impl Embedder {
    pub(crate) fn new(cache: VectorCache) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self { cache, bm25: Arc::new(Bm25::new()), weighers: Arc::new(Semaphore::new(cores)), cores }
    }

    /// Embeds documents, through the cache.
    pub(crate) async fn documents(
        &self,
        model: &Model,
        texts: Vec<String>,
        with_sparse: bool,
    ) -> Result<Embedded, EmbedError> {
        let texts = Arc::new(texts);
        let sparse = OptionFuture::from(with_sparse.then(|| self.sparse(&texts, Purpose::Document)));
        let (dense, sparse) = join(self.dense(model, &texts), sparse).await;
        let (dense, cached) = dense?;
        Ok(Embedded { dense, sparse, cached })
    }

    /// Embeds queries. Few are asked twice, so they are not cached.
    pub(crate) async fn queries(
        &self,
        model: &Model,
        texts: Vec<String>,
        with_sparse: bool,
    ) -> Result<Embedded, EmbedError> {
        let texts = Arc::new(texts);
        let wanted = texts.iter().map(|text| (TextHash::of(text), text.clone())).collect();
        let sparse = OptionFuture::from(with_sparse.then(|| self.sparse(&texts, Purpose::Query)));
        let (dense, sparse) = join(model.batcher.embed(wanted, Purpose::Query), sparse).await;
        let dense = dense?.iter().map(|vector| vector.to_vec()).collect();
        Ok(Embedded { dense, sparse, cached: 0 })
    }

    /// Embeds one query, as numbers.
    pub(crate) async fn query(&self, model: &Model, text: &str) -> Result<Vec<f32>, EmbedError> {
        let wanted = vec![(TextHash::of(text), text.to_owned())];
        let vectors = model.batcher.embed(wanted, Purpose::Query).await?;
        Ok(vectors.first().map(|vector| from_bytes(vector)).unwrap_or_default())
    }

    /// Weighs the terms of one query.
    pub(crate) fn query_terms(&self, text: &str) -> SparseVector {
        self.bm25.query(text)
    }

    async fn dense(&self, model: &Model, texts: &Arc<Vec<String>>) -> Result<(Vec<Vec<u8>>, usize), EmbedError> {
        let hashes = hashes_of(texts).await;
        let mut found = self.cache.lookup(&model.cache_key, model.info.dimensions, &hashes).await;
        let missing: Vec<usize> = (0..found.len()).filter(|&place| found[place].is_none()).collect();
        let cached = texts.len() - missing.len();
        if !missing.is_empty() {
            let wanted = missing.iter().map(|&place| (hashes[place], texts[place].clone())).collect();
            let vectors = model.batcher.embed(wanted, Purpose::Document).await?;
            for (place, vector) in missing.into_iter().zip(vectors) {
                found[place] = Some(vector.to_vec());
            }
        }
        Ok((found.into_iter().flatten().collect(), cached))
    }

    /// Weighs the terms of each text, on threads for blocking work if there is much to do.
    async fn sparse(&self, texts: &Arc<Vec<String>>, purpose: Purpose) -> Vec<SparseVector> {
        if bytes_of(texts) <= INLINE_BYTES {
            return weigh(&self.bm25, texts, purpose);
        }
        let per_part = texts.len().div_ceil(self.cores).max(1);
        let parts = (0..texts.len()).step_by(per_part).map(|start| {
            let (texts, bm25, weighers) = (Arc::clone(texts), Arc::clone(&self.bm25), Arc::clone(&self.weighers));
            async move {
                // Never closed: then there would be no permit, and no need for one.
                let permit = weighers.acquire_owned().await.ok();
                spawn_blocking(move || {
                    let _permit = permit;
                    let end = (start + per_part).min(texts.len());
                    weigh(&bm25, &texts[start..end], purpose)
                })
                .await
            }
        });
        // Fails only if weighing panicked: then each text goes without terms, as a text of
        // stop words does, rather than none having a vector.
        let parts = try_join_all(parts).await.unwrap_or_else(|_| {
            // Without the error: it has the panic's message, which may quote a text.
            tracing::error!("weighing terms panicked");
            vec![vec![SparseVector::default(); texts.len()]]
        });
        parts.into_iter().flatten().collect()
    }
}

fn weigh(bm25: &Bm25, texts: &[String], purpose: Purpose) -> Vec<SparseVector> {
    let weigh = |text: &String| match purpose {
        Purpose::Document => bm25.document(text),
        Purpose::Query => bm25.query(text),
    };
    texts.iter().map(weigh).collect()
}

async fn hashes_of(texts: &Arc<Vec<String>>) -> Vec<TextHash> {
    let hash = |texts: &[String]| texts.iter().map(TextHash::of).collect();
    if bytes_of(texts) <= INLINE_BYTES {
        return hash(texts);
    }
    let shared = Arc::clone(texts);
    // Fails only if the runtime is going away; then the answer goes nowhere.
    spawn_blocking(move || hash(&shared)).await.unwrap_or_else(|_| hash(texts))
}

fn bytes_of(texts: &[String]) -> usize {
    texts.iter().map(String::len).sum()
}
