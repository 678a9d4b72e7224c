use async_trait::async_trait;
use futures::future::try_join_all;
use serde::Deserialize;
use serde_json::json;

use crate::{
    EmbeddingProvider, ModelError, ModelInfo, OpenAiConfig, Purpose,
    config::OPENAI_TLS,
    http::{Server, ServerOptions, check_vectors},
    provider::Prefixes,
};

/// Embeds by any server that speaks OpenAI's `POST {base_url}/embeddings`.
pub(crate) struct OpenAiProvider {
    info: ModelInfo,
    server: Server,
    prefixes: Prefixes,
    batch: usize,
    send_dimensions: bool,
}

#[derive(Deserialize)]
struct Answer {
    data: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    index: usize,
    embedding: Vec<f32>,
}

impl OpenAiProvider {
    /// Makes the provider; asks the server for one vector if `dimensions` is left open.
    pub(crate) async fn connect(config: &OpenAiConfig) -> Result<Self, ModelError> {
        let server = Server::new(ServerOptions {
            provider: "openai",
            base_url: &config.base_url,
            url_key: "openai.base_url",
            tls: config.tls.of(OPENAI_TLS),
            key: config.read_key()?,
            timeout_ms: config.timeout_ms,
            concurrency: config.concurrency,
        })?;
        let mut provider = Self {
            info: ModelInfo {
                name: config.model.clone(),
                provider: "openai",
                dimensions: config.dimensions.unwrap_or_default(),
                max_tokens: config.max_tokens,
            },
            server,
            prefixes: Prefixes::new(&config.document_prefix, &config.query_prefix),
            batch: config.batch,
            send_dimensions: config.send_dimensions,
        };
        if config.dimensions.is_none() {
            let probe = provider.request(&["dimensions".to_owned()], None).await?;
            provider.info.dimensions = probe.first().map_or(0, Vec::len);
        }
        Ok(provider)
    }

    async fn request(&self, texts: &[String], dimensions: Option<usize>) -> Result<Vec<Vec<f32>>, ModelError> {
        let mut body = json!({
            "model": self.info.name,
            "input": texts,
            "encoding_format": "float",
        });
        if self.send_dimensions {
            body["dimensions"] = json!(self.info.dimensions);
        }
        let answer: Answer = self.server.post("embeddings", &body).await?;
        let vectors = self.in_order(answer.data, texts.len())?;
        check_vectors(&self.server, &vectors, texts.len(), dimensions)?;
        Ok(vectors)
    }

    /// Puts the vectors where their `index` says: a server need not keep the order.
    fn in_order(&self, items: Vec<Item>, count: usize) -> Result<Vec<Vec<f32>>, ModelError> {
        if items.len() != count {
            let got = items.len();
            return Err(self.server.bad_answer(format!("{got} vectors for {count} texts")));
        }
        let mut vectors = vec![None; count];
        for item in items {
            let index = item.index;
            match vectors.get_mut(index) {
                Some(slot @ None) => *slot = Some(item.embedding),
                Some(_) => {
                    return Err(self.server.bad_answer(format!("index {index} came twice")));
                }
                None => {
                    return Err(self.server.bad_answer(format!("index {index} of {count} texts")));
                }
            }
        }
        Ok(vectors.into_iter().flatten().collect())
    }
}

#[async_trait]
impl EmbeddingProvider for OpenAiProvider {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    async fn embed(&self, texts: &[String], purpose: Purpose) -> Result<Vec<Vec<f32>>, ModelError> {
        let texts = self.prefixes.apply(texts, purpose);
        let requests = texts.chunks(self.batch).map(|part| self.request(part, Some(self.info.dimensions)));
        Ok(try_join_all(requests).await?.into_iter().flatten().collect())
    }
}
