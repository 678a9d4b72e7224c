use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};
use waybill_api::embedding::v1::{
    EmbedRequest, EmbedResponse, Embedding, ListModelsRequest, ListModelsResponse, Model as ProtoModel,
    SparseVector as ProtoSparse, embedding_service_server::EmbeddingService,
};
use waybill_models::{Purpose, SparseVector};
use waybill_runtime::status::{from_decode, not_found};

use super::{check, status};
use crate::embed::Embedder;
use crate::registry::{Model, Registry};

/// Messages of one stream that are worked on at a time: one is looked up while another is
/// with the model. More would let one caller fill the queue.
const STREAM_DEPTH: usize = 2;

/// Serves `EmbeddingService`. Clones share everything.
#[derive(Clone)]
pub(crate) struct EmbeddingGrpc {
    registry: Arc<Registry>,
    embedder: Arc<Embedder>,
}

impl EmbeddingGrpc {
    pub(crate) fn new(registry: Arc<Registry>, embedder: Arc<Embedder>) -> Self {
        Self { registry, embedder }
    }

    async fn answer(&self, request: EmbedRequest) -> Result<EmbedResponse, Status> {
        let purpose = check::embed(&request)?;
        let model = self.find(&request.model)?;
        let embedded = match purpose {
            Purpose::Document => self.embedder.documents(model, request.texts, request.with_sparse).await,
            Purpose::Query => self.embedder.queries(model, request.texts, request.with_sparse).await,
        };
        let embedded = embedded.map_err(status::of_embed)?;
        let mut sparse = embedded.sparse.map(Vec::into_iter);
        let embeddings = embedded
            .dense
            .into_iter()
            .map(|dense| Embedding { dense, sparse: sparse.as_mut().and_then(Iterator::next).map(to_proto) })
            .collect();
        Ok(EmbedResponse { model: model.info.name.clone(), embeddings, cached_count: to_i32(embedded.cached) })
    }

    fn find(&self, name: &str) -> Result<&Arc<Model>, Status> {
        self.registry.find(name).ok_or_else(|| {
            let status = not_found("model", name);
            let message = format!("model: {}; served here: {}", status.message(), self.registry.names());
            Status::with_details(status.code(), message, status.details().to_vec().into())
        })
    }
}

#[tonic::async_trait]
impl EmbeddingService for EmbeddingGrpc {
    async fn embed(&self, request: Request<EmbedRequest>) -> Result<Response<EmbedResponse>, Status> {
        self.answer(request.into_inner()).await.map(Response::new)
    }

    type EmbedStreamStream = Pin<Box<dyn Stream<Item = Result<EmbedResponse, Status>> + Send>>;

    async fn embed_stream(
        &self,
        request: Request<Streaming<EmbedRequest>>,
    ) -> Result<Response<Self::EmbedStreamStream>, Status> {
        let service = self.clone();
        let answers = request
            .into_inner()
            .map(move |message| {
                let service = service.clone();
                async move { service.answer(message.map_err(from_decode)?).await }
            })
            .buffered(STREAM_DEPTH);
        // The first failure ends the stream: answers are told from each other by their order.
        let answers = answers.scan(false, |failed, answer| {
            let item = (!*failed).then_some(answer);
            *failed = matches!(item, Some(Err(_)));
            std::future::ready(item)
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn list_models(&self, _: Request<ListModelsRequest>) -> Result<Response<ListModelsResponse>, Status> {
        let models = self.registry.all().iter().enumerate().map(|(place, model)| ProtoModel {
            name: model.info.name.clone(),
            provider: model.info.provider.to_owned(),
            dimensions: to_i32(model.info.dimensions),
            max_tokens: to_i32(model.info.max_tokens),
            default: place == 0,
        });
        Ok(Response::new(ListModelsResponse { models: models.collect() }))
    }
}

fn to_proto(SparseVector { indices, values }: SparseVector) -> ProtoSparse {
    ProtoSparse { indices, values }
}

fn to_i32(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
