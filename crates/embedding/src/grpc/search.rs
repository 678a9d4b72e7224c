use std::sync::Arc;

use chrono::{DateTime, Utc};
use prost_types::Timestamp;
use tonic::{Request, Response, Status};
use waybill_api::common::v1::Kind as ProtoKind;
use waybill_api::embedding::v1::{
    Hit as ProtoHit, SearchRequest, SearchResponse, search_service_server::SearchService,
};
use waybill_domain::Kind;
use waybill_runtime::grpc::answer_by;

use super::{check, json, status};
use crate::search::{Hit, Searcher};

/// Serves `SearchService`.
pub(crate) struct SearchGrpc(Arc<Searcher>);

impl SearchGrpc {
    pub(crate) fn new(searcher: Arc<Searcher>) -> Self {
        Self(searcher)
    }
}

#[tonic::async_trait]
impl SearchService for SearchGrpc {
    async fn search(&self, request: Request<SearchRequest>) -> Result<Response<SearchResponse>, Status> {
        let answer_by = answer_by(request.metadata());
        let search = check::search(request.into_inner())?;
        let found = self.0.search(&search, answer_by).await.map_err(status::of_search)?;
        Ok(Response::new(SearchResponse {
            hits: found.hits.into_iter().map(to_proto).collect(),
            stale_count: i32::try_from(found.stale).unwrap_or(i32::MAX),
            model: found.model,
        }))
    }
}

fn to_proto(Hit { score, row }: Hit) -> ProtoHit {
    ProtoHit {
        id: row.id.to_string(),
        kind: match row.kind {
            Kind::Chunk => ProtoKind::Chunk.into(),
            Kind::Extraction => ProtoKind::Extraction.into(),
            Kind::Entity => ProtoKind::Entity.into(),
            // No point is one: it is Redis that hears of requests.
            Kind::LlmRequest => ProtoKind::Unspecified.into(),
        },
        score,
        text: row.text,
        quote: row.quote,
        headings: row.headings,
        source_uri: row.source_uri,
        source_title: row.source_title,
        metadata: Some(json::to_struct(row.metadata)),
        start_byte: row.start_byte,
        end_byte: row.end_byte,
        version: row.version,
        source_update_time: Some(to_timestamp(row.source_updated_at)),
        job_id: row.job_id.map(|id| id.to_string()).unwrap_or_default(),
    }
}

fn to_timestamp(time: DateTime<Utc>) -> Timestamp {
    Timestamp { seconds: time.timestamp(), nanos: i32::try_from(time.timestamp_subsec_nanos()).unwrap_or_default() }
}
