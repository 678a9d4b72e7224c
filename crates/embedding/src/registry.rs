//! The models that this process serves.

use std::sync::Arc;

use tokio::time::sleep;
use waybill_domain::Backoff;
use waybill_models::{EmbeddingProvider, ModelInfo, ProviderConfig};
use waybill_runtime::{Shutdown, Signals};
use waybill_vectors::CollectionSpec;

use crate::batcher::Batcher;
use crate::cache::CacheWriter;
use crate::config::Config;
use crate::meter::ModelMeter;

/// Between two attempts to reach a model's server at the start.
const START_BACKOFF: Backoff =
    Backoff { base: std::time::Duration::from_millis(500), max: std::time::Duration::from_secs(15) };

/// A model with its queue.
pub(crate) struct Model {
    /// What it is.
    pub(crate) info: ModelInfo,
    /// Its name in the cache. The dimensions belong to it: a server can be asked to shorten
    /// the vectors of one model.
    pub(crate) cache_key: Arc<str>,
    /// The collection that its vectors are in.
    pub(crate) collection: CollectionSpec,
    /// Embeds.
    pub(crate) batcher: Batcher,
}

/// The models, the default first.
pub(crate) struct Registry(Vec<Arc<Model>>);

impl Registry {
    /// Makes every configured model ready. Waits for servers that can't be reached yet, until
    /// the process is to stop.
    ///
    /// # Errors
    /// If a model can't be used as configured, or two have the same name.
    pub(crate) async fn build(
        config: &Config,
        writer: &CacheWriter,
        signals: &Signals,
        shutdown: &Shutdown,
    ) -> anyhow::Result<Self> {
        let mut models: Vec<Arc<Model>> = Vec::new();
        for (number, provider_config) in std::iter::once(&config.model).chain(&config.more_models).enumerate() {
            let provider = ready(provider_config, shutdown).await?;
            let info = provider.info().clone();
            anyhow::ensure!(
                models.iter().all(|other| other.info.name != info.name),
                "embedding.more_models[{}]: there are two models called {:?}, remove one or name it differently",
                number.saturating_sub(1),
                info.name,
            );
            let cache_key: Arc<str> = format!("{}/{}", info.name, info.dimensions).into();
            let (writer, key) = (writer.clone(), Arc::clone(&cache_key));
            let batcher = Batcher::start(
                provider,
                config.batching.options(provider_config.kind, info.max_tokens),
                Box::new(move |hash, vector| writer.store(&key, hash, vector)),
                Some((ModelMeter::new(&signals.meter, &info.name), signals.components.clone())),
            );
            let collection = CollectionSpec::for_model(&info.name, info.dimensions);
            models.push(Arc::new(Model { info, cache_key, collection, batcher }));
        }
        Ok(Self(models))
    }

    /// Finds a model by its name; the default one by an empty name.
    pub(crate) fn find(&self, name: &str) -> Option<&Arc<Model>> {
        if name.is_empty() {
            return self.0.first();
        }
        self.0.iter().find(|model| model.info.name == name)
    }

    /// Finds the model whose vectors are in `collection`.
    pub(crate) fn of_collection(&self, collection: &str) -> Option<&Arc<Model>> {
        self.0.iter().find(|model| model.collection.name == collection)
    }

    /// Lists the models, the default first.
    pub(crate) fn all(&self) -> &[Arc<Model>] {
        &self.0
    }

    /// Lists the models' names, for messages.
    pub(crate) fn names(&self) -> String {
        let names: Vec<&str> = self.0.iter().map(|model| model.info.name.as_str()).collect();
        names.join(", ")
    }
}

async fn ready(config: &ProviderConfig, shutdown: &Shutdown) -> anyhow::Result<Arc<dyn EmbeddingProvider>> {
    let mut attempt = 0;
    loop {
        let error = match waybill_models::build(config).await {
            Ok(provider) => return Ok(provider),
            Err(error) if !error.class().is_retryable() => return Err(error.into()),
            Err(error) => error,
        };
        attempt += 1;
        let wait = START_BACKOFF.wait(attempt, &mut rand::rng());
        tracing::warn!(attempt, wait_ms = wait.as_millis() as u64, %error, "model is not ready, trying again");
        if shutdown.soft().run_until_cancelled(sleep(wait)).await.is_none() {
            anyhow::bail!("stopped before the model was ready: {error}");
        }
    }
}
