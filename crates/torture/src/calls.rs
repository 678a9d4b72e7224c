//! What clients ask of the services, and how sure they are of an answer.

use std::{collections::BTreeMap, time::Duration};

use prost_types::{Struct, Value, value::Kind as ValueKind};
use tokio::time::timeout;
use tonic::{Code, Request, Response, Status, transport::Channel};
use waybill_api::{
    common::v1::Kind,
    embedding::v1::{SearchMode, SearchRequest, SearchResponse, search_service_client::SearchServiceClient},
    ingestion::v1::{
        DeleteSourceRequest, GetSourceRequest, MediaType, PutSourceRequest, PutSourceResponse, Source,
        ingestion_service_client::IngestionServiceClient,
    },
};
use waybill_runtime::grpc::channel;

use crate::{PROJECT, oracle::Content};

/// How long a client waits for a write or a read before it asks again.
const CALL: Duration = Duration::from_secs(4);

/// How long a search with a token may take.
const TOKEN_SEARCH: Duration = Duration::from_secs(8);

/// Beyond a call's own deadline, for an answer that says so.
const GRACE: Duration = Duration::from_millis(500);

/// More than the hits that any word has: each is in one source only.
const HITS_MAX: i32 = 50;

/// What came of a call.
#[derive(Debug)]
pub(crate) enum Answer<T> {
    /// It was done, or found, for sure.
    Clear(T),
    /// There is no such source.
    NotFound,
    /// Nobody knows what was done: to be asked again.
    Unclear(String),
    /// An answer that no fault explains.
    Wrong(Status),
}

/// A document on its way.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    pub(crate) content: Content,
    pub(crate) media_type: MediaType,
    pub(crate) body: String,
}

/// A client of all services.
#[derive(Debug, Clone)]
pub(crate) struct Calls {
    ingestion: IngestionServiceClient<Channel>,
    search: SearchServiceClient<Channel>,
}

impl Calls {
    pub(crate) fn connect(ingestion_url: &str, search_url: &str) -> anyhow::Result<Self> {
        Ok(Self {
            ingestion: IngestionServiceClient::new(channel(ingestion_url)?),
            search: SearchServiceClient::new(channel(search_url)?),
        })
    }

    pub(crate) async fn put(&self, uri: &str, draft: &Draft, request_id: &str) -> Answer<PutSourceResponse> {
        let request = PutSourceRequest {
            project: PROJECT.to_owned(),
            uri: uri.to_owned(),
            media_type: draft.media_type.into(),
            metadata: Some(metadata(draft.content.rev)),
            body: draft.body.clone().into_bytes(),
            request_id: request_id.to_owned(),
            ..PutSourceRequest::default()
        };
        let mut client = self.ingestion.clone();
        judge(CALL, client.put_source(bounded(request, CALL))).await
    }

    /// Deletes a source in this version, and returns the token. A source that is gone is [`Answer::NotFound`].
    pub(crate) async fn delete(&self, uri: &str, version: i64) -> Answer<String> {
        let request =
            DeleteSourceRequest { project: PROJECT.to_owned(), uri: uri.to_owned(), if_version: Some(version) };
        let mut client = self.ingestion.clone();
        match judge(CALL, client.delete_source(bounded(request, CALL))).await {
            Answer::Clear(deleted) => Answer::Clear(deleted.freshness_token),
            Answer::NotFound => Answer::NotFound,
            Answer::Unclear(why) => Answer::Unclear(why),
            Answer::Wrong(status) => Answer::Wrong(status),
        }
    }

    pub(crate) async fn get(&self, uri: &str) -> Answer<Source> {
        let request = GetSourceRequest { project: PROJECT.to_owned(), uri: uri.to_owned(), with_text: false };
        let mut client = self.ingestion.clone();
        judge(CALL, client.get_source(bounded(request, CALL))).await
    }

    /// Searches for a word and sees what is there.
    pub(crate) async fn search(&self, query: &str, mode: SearchMode) -> Answer<SearchResponse> {
        let request = SearchRequest { mode: mode.into(), ..search_for(query) };
        self.found(request, CALL).await
    }

    /// Searches for a word and sees the write that `token` is of, for sure: in its newest words,
    /// and with its newest metadata if it has any.
    pub(crate) async fn search_as_fresh(&self, word: &str, rev: Option<i64>, token: &str) -> Answer<SearchResponse> {
        let request = SearchRequest {
            mode: SearchMode::Lexical.into(),
            kinds: vec![Kind::Chunk.into()],
            metadata: rev.map(|rev| metadata(Some(rev))),
            at_least_as_fresh: vec![token.to_owned()],
            ..search_for(word)
        };
        self.found(request, TOKEN_SEARCH).await
    }

    async fn found(&self, request: SearchRequest, limit: Duration) -> Answer<SearchResponse> {
        let mut client = self.search.clone();
        match judge(limit, client.search(bounded(request, limit))).await {
            Answer::NotFound => Answer::Wrong(Status::not_found("the project")),
            answer => answer,
        }
    }
}

fn search_for(query: &str) -> SearchRequest {
    SearchRequest { project: PROJECT.to_owned(), query: query.to_owned(), limit: HITS_MAX, ..SearchRequest::default() }
}

fn metadata(rev: Option<i64>) -> Struct {
    let number = |rev: i64| Value { kind: Some(ValueKind::NumberValue(rev as f64)) };
    let fields: BTreeMap<String, Value> = rev.map(|rev| ("rev".to_owned(), number(rev))).into_iter().collect();
    Struct { fields: fields.into_iter().collect() }
}

fn bounded<T>(message: T, limit: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

/// Waits for an answer and says what it is worth.
async fn judge<T>(limit: Duration, call: impl Future<Output = Result<Response<T>, Status>>) -> Answer<T> {
    let status = match timeout(limit + GRACE, call).await {
        Ok(Ok(response)) => return Answer::Clear(response.into_inner()),
        Ok(Err(status)) => status,
        Err(_) => return Answer::Unclear("no answer".to_owned()),
    };
    match status.code() {
        Code::NotFound => Answer::NotFound,
        // The connection broke, a store is away, time was up: whatever was asked may have been
        // done, or will be.
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Unknown
        | Code::Internal
        | Code::Aborted
        | Code::ResourceExhausted => Answer::Unclear(format!("{:?}: {}", status.code(), status.message())),
        _ => Answer::Wrong(status),
    }
}
