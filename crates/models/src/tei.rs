use async_trait::async_trait;
use futures::future::try_join_all;
use serde::Deserialize;
use serde_json::json;

use crate::{
    EmbeddingProvider, ModelError, ModelInfo, Purpose, TeiConfig,
    config::TEI_TLS,
    http::{Server, ServerOptions, check_vectors},
    provider::Prefixes,
};

/// Embeds by a Text Embeddings Inference server: `POST /embed`, `GET /info`.
pub(crate) struct TeiProvider {
    info: ModelInfo,
    server: Server,
    prefixes: Prefixes,
    batch: usize,
}

#[derive(Deserialize)]
struct Info {
    model_id: String,
    max_input_length: usize,
    // Absent before version 0.3.
    max_client_batch_size: Option<usize>,
}

impl TeiProvider {
    /// Asks the server for its model, and for one vector if `dimensions` is left open.
    pub(crate) async fn connect(config: &TeiConfig) -> Result<Self, ModelError> {
        let server = Server::new(ServerOptions {
            provider: "tei",
            base_url: &config.base_url,
            url_key: "tei.base_url",
            tls: config.tls.of(TEI_TLS),
            key: config.read_key()?,
            timeout_ms: config.timeout_ms,
            concurrency: config.concurrency,
        })?;
        let info: Info = server.get("info").await?;
        let server_batch = info.max_client_batch_size.unwrap_or(config.batch).max(1);
        let mut provider = Self {
            info: ModelInfo {
                name: info.model_id,
                provider: "tei",
                dimensions: config.dimensions.unwrap_or_default(),
                max_tokens: info.max_input_length,
            },
            server,
            prefixes: Prefixes::new(&config.document_prefix, &config.query_prefix),
            batch: config.batch.min(server_batch),
        };
        if config.dimensions.is_none() {
            let probe = provider.request(&["dimensions".to_owned()], None).await?;
            provider.info.dimensions = probe.first().map_or(0, Vec::len);
        }
        Ok(provider)
    }

    async fn request(&self, texts: &[String], dimensions: Option<usize>) -> Result<Vec<Vec<f32>>, ModelError> {
        let body = json!({ "inputs": texts, "normalize": true, "truncate": true });
        let vectors: Vec<Vec<f32>> = self.server.post("embed", &body).await?;
        check_vectors(&self.server, &vectors, texts.len(), dimensions)?;
        Ok(vectors)
    }
}

#[async_trait]
impl EmbeddingProvider for TeiProvider {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    async fn embed(&self, texts: &[String], purpose: Purpose) -> Result<Vec<Vec<f32>>, ModelError> {
        let texts = self.prefixes.apply(texts, purpose);
        let requests = texts.chunks(self.batch).map(|part| self.request(part, Some(self.info.dimensions)));
        Ok(try_join_all(requests).await?.into_iter().flatten().collect())
    }
}
