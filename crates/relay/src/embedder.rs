//! The embedding service, as the relay uses it.

use std::time::Duration;

use tonic::{Code, Request, Status};
use tonic_types::StatusExt;
use waybill_api::embedding::v1::{
    EmbedRequest, ListModelsRequest, Purpose, embedding_service_client::EmbeddingServiceClient,
};
use waybill_domain::ErrorClass;
use waybill_outbox::DeliveryError;
use waybill_runtime::grpc::Peer;
use waybill_vectors::CollectionSpec;

/// Texts in one call: what the service takes at the most is 1,024.
const TEXTS_MAX: usize = 512;
/// The largest answer: 512 vectors of 4,096 dimensions with their BM25 terms, and room.
const ANSWER_BYTES_MAX: usize = 32 * 1024 * 1024;
/// The largest request: 512 texts of 64 KiB.
const REQUEST_BYTES_MAX: usize = 33 * 1024 * 1024;

/// A text's vectors.
#[derive(Debug)]
pub(crate) struct Embedded {
    pub(crate) dense: Vec<f32>,
    pub(crate) sparse: (Vec<u32>, Vec<f32>),
}

/// A model with the collection of its vectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) collection: CollectionSpec,
}

/// What the embedding service serves.
#[derive(Debug)]
pub(crate) struct Models {
    served: Vec<Model>,
    /// The one that is configured, or the service's default.
    wanted: String,
}

impl Models {
    /// Finds the model that a first collection is made for.
    pub(crate) fn wanted(&self) -> Result<Model, DeliveryError> {
        self.named(&self.wanted)
    }

    pub(crate) fn named(&self, name: &str) -> Result<Model, DeliveryError> {
        self.served.iter().find(|model| model.name == name).cloned().ok_or_else(|| {
            // Transient: the service may be restarted with the model; no key is at fault.
            let message = format!("the embedding service doesn't serve the model {name:?}, it serves {}", self.names());
            DeliveryError::new(ErrorClass::Transient, message)
        })
    }

    /// Finds the model whose vectors are in `collection`.
    pub(crate) fn of_collection(&self, collection: &str) -> Option<Model> {
        self.served.iter().find(|model| model.collection.name == collection).cloned()
    }

    pub(crate) fn names(&self) -> String {
        self.served.iter().map(|model| model.name.as_str()).collect::<Vec<_>>().join(", ")
    }
}

/// Asks the embedding service for vectors.
#[derive(Debug, Clone)]
pub(crate) struct Embedder {
    client: EmbeddingServiceClient<Peer>,
    /// Empty: the service's default.
    model: String,
    timeout: Duration,
}

impl Embedder {
    pub(crate) fn new(peer: Peer, model: String, timeout: Duration) -> Self {
        let client = EmbeddingServiceClient::new(peer)
            .max_decoding_message_size(ANSWER_BYTES_MAX)
            .max_encoding_message_size(REQUEST_BYTES_MAX);
        Self { client, model, timeout }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }

    /// Asks which models embed, and names their collections.
    pub(crate) async fn models(&self) -> Result<Models, DeliveryError> {
        let answer = self
            .client
            .clone()
            .list_models(self.request(ListModelsRequest {}))
            .await
            .map_err(|status| failure(&status))?;
        let served = answer.into_inner().models;
        let wanted = served
            .iter()
            .find(|model| if self.model.is_empty() { model.default } else { model.name == self.model })
            .map(|model| model.name.clone());
        let models = served.into_iter().map(|model| {
            let dimensions = usize::try_from(model.dimensions).unwrap_or(0);
            let collection = CollectionSpec::for_model(&model.name, dimensions);
            Model { name: model.name, collection }
        });
        let wanted = wanted.or_else(|| Some(self.model.clone()).filter(|model| !model.is_empty()));
        Ok(Models { served: models.collect(), wanted: wanted.unwrap_or_default() })
    }

    /// Embeds documents under `model`: one answer a text, in order.
    pub(crate) async fn embed(
        &self,
        model: &str,
        dimensions: usize,
        texts: Vec<String>,
    ) -> Result<Vec<Embedded>, DeliveryError> {
        let mut embedded = Vec::with_capacity(texts.len());
        let mut texts = texts.into_iter();
        loop {
            let batch: Vec<String> = texts.by_ref().take(TEXTS_MAX).collect();
            if batch.is_empty() {
                return Ok(embedded);
            }
            let count = batch.len();
            let message = EmbedRequest {
                texts: batch,
                model: model.to_owned(),
                purpose: Purpose::Document.into(),
                with_sparse: true,
            };
            let answer = self.client.clone().embed(self.request(message)).await.map_err(|status| failure(&status))?;
            let embeddings = answer.into_inner().embeddings;
            if embeddings.len() != count || embeddings.iter().any(|embedding| embedding.dense.len() != dimensions * 4) {
                return Err(DeliveryError::new(
                    ErrorClass::Transient,
                    "the embedding service's answer doesn't fit the request",
                ));
            }
            embedded.extend(embeddings.into_iter().map(|embedding| {
                let (floats, _) = embedding.dense.as_chunks::<4>();
                let sparse = embedding.sparse.unwrap_or_default();
                Embedded {
                    dense: floats.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
                    sparse: (sparse.indices, sparse.values),
                }
            }));
        }
    }
}

/// Sorts what the embedding service answered.
fn failure(status: &Status) -> DeliveryError {
    let class = match status.code() {
        Code::ResourceExhausted => ErrorClass::Throttled,
        Code::InvalidArgument | Code::OutOfRange => ErrorClass::Permanent,
        // Embedding changes nothing, so an unknown outcome is as good as none.
        _ => ErrorClass::Transient,
    };
    let mut error = DeliveryError::new(class, format!("embed ({:?}): {}", status.code(), status.message()));
    error.retry_after = status.get_details_retry_info().and_then(|info| info.retry_delay);
    error
}
