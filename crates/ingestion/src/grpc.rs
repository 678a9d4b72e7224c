//! The proto on one side, the service on the other.

use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use waybill_api::ingestion::v1::{
    self as proto, CreateProjectRequest, DeleteProjectRequest, DeleteProjectResponse, DeleteSourceRequest,
    DeleteSourceResponse, GetProjectRequest, GetSourceRequest, ListProjectsRequest, ListProjectsResponse,
    ListSourcesRequest, ListSourcesResponse, Project, PutSourceRequest, PutSourceResponse, PutSourcesRequest,
    PutSourcesResponse, Source, UploadSourceRequest, ingestion_service_server::IngestionService,
};
use waybill_domain::{FreshnessToken, ProjectId, ProjectName, SourceId};
use waybill_runtime::{Shutdown, auth::Caller, grpc::answer_by, status};
use waybill_storage::{
    projects,
    sources::{self, Deleted, Deletion, Provisional, SourceFilter},
};

use crate::{
    Config,
    acknowledge::{Acknowledge, Committed, Waits},
    backlog::Backlog,
    convert,
    errors::{self, no_project, outbox_headers},
    limits::Limits,
    pages::{self, Tokens},
    service::Ingestion,
    stream, upload,
    validate::{self, Header, Put, Violations},
};

/// Answers the calls of `IngestionService`.
#[derive(Clone)]
pub(crate) struct Grpc {
    pub(crate) config: Config,
    pub(crate) ingestion: Ingestion,
    pub(crate) limits: Limits,
    pub(crate) backlog: Backlog,
    pub(crate) shutdown: Shutdown,
}

impl Grpc {
    /// Stores one source and answers for it, when its caller wants that and not after
    /// `answer_by`. `held` is what storing takes, and is given back before any wait.
    pub(crate) async fn put<T>(
        &self,
        mut put: Put,
        answer_by: Option<Instant>,
        held: T,
    ) -> Result<PutSourceResponse, Status> {
        // A body takes its time to arrive.
        self.backlog.admit()?;
        let acknowledge = put.acknowledge.within(answer_by);
        let _waiting = match acknowledge {
            Acknowledge::Accepted => None,
            Acknowledge::Indexed(_) | Acknowledge::AllOrNothing(_) => Some(self.limits.waiting()?),
        };
        if let Acknowledge::AllOrNothing(timeout) = acknowledge {
            put.key.provisional = Some(timeout);
        }
        let begun = Instant::now();
        let (project, project_id, uri) = (put.project.clone(), put.key.project_id, put.key.uri.clone());
        let request = put.key.request.clone();
        let stored = self.ingestion.put(put, outbox_headers().as_deref()).await.map_err(|refusal| {
            let request_id = request.as_ref().map(|request| request.id.as_str());
            errors::refusal(&refusal, &project, request_id, "")
        })?;
        drop(held);
        let source = Provisional { project_id, put: stored, request };
        let answer = Committed { uri, acknowledge, source, begun, answer_by }.acknowledge(self).await?;
        Ok(convert::put(project_id, answer, self.backlog.hint()))
    }

    /// Finds out why there is no such source, or no sources at all.
    async fn check_project(&self, name: &ProjectName) -> Result<ProjectId, Status> {
        let found = projects::find(self.ingestion.db(), name).await.map_err(|error| errors::storage(&error))?;
        found.ok_or_else(|| no_project(name, "project"))
    }

    async fn no_source(&self, project: &ProjectName, uri: &str) -> Status {
        match self.check_project(project).await {
            Ok(_) => status::not_found("source", uri),
            Err(status) => status,
        }
    }
}

/// Checks the fields that name one source.
fn named_source(project: &str, uri: &str) -> Result<(ProjectName, SourceId), Status> {
    let mut violations = Violations::default();
    let name = validate::project_name("project", project, &mut violations);
    validate::uri("uri", uri, &mut violations);
    let name = checked(name, violations)?;
    let id = SourceId::derive(ProjectId::derive(&name), uri);
    Ok((name, id))
}

fn named_project(name: &str) -> Result<ProjectName, Status> {
    let mut violations = Violations::default();
    let name = validate::project_name("name", name, &mut violations);
    checked(name, violations)
}

/// Unwraps a value that is missing only if there is a violation.
fn checked<T>(value: Option<T>, violations: Violations) -> Result<T, Status> {
    violations.check()?;
    value.ok_or_else(|| status::internal("a request without violations was not read"))
}

#[tonic::async_trait]
impl IngestionService for Grpc {
    async fn create_project(&self, request: Request<CreateProjectRequest>) -> Result<Response<Project>, Status> {
        let name = named_project(&request.get_ref().name)?;
        let made = projects::create(self.ingestion.db(), &name).await.map_err(|error| errors::storage(&error))?;
        let project = made.ok_or_else(|| status::already_exists("project", &name))?;
        Ok(Response::new(convert::project(project, None)))
    }

    async fn get_project(&self, request: Request<GetProjectRequest>) -> Result<Response<Project>, Status> {
        let name = named_project(&request.get_ref().name)?;
        let found = projects::get(self.ingestion.db(), &name).await.map_err(|error| errors::storage(&error))?;
        let (project, source_count) = found.ok_or_else(|| no_project(&name, "name"))?;
        Ok(Response::new(convert::project(project, Some(source_count))))
    }

    async fn list_projects(
        &self,
        request: Request<ListProjectsRequest>,
    ) -> Result<Response<ListProjectsResponse>, Status> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        let key = self.ingestion.token_key().await.map_err(|error| errors::storage(&error))?;
        let tokens = Tokens::new(key, &["projects"]);
        let mut violations = Violations::default();
        let size = pages::size(request.page_size, &mut violations);
        let after = tokens.read(&request.page_token, &mut violations);
        violations.check()?;

        // One more, to know whether there is another page.
        let found = projects::list(self.ingestion.db(), after.as_deref(), caller.projects(), size + 1).await;
        let mut found = found.map_err(|error| errors::storage(&error))?;
        let size = usize::try_from(size).unwrap_or_default();
        let is_last = found.len() <= size;
        found.truncate(size);
        let next_page_token = match found.last() {
            Some(last) if !is_last => tokens.make(&last.name),
            _ => String::new(),
        };
        let projects = found.into_iter().map(|project| convert::project(project, None)).collect();
        Ok(Response::new(ListProjectsResponse { projects, next_page_token }))
    }

    async fn delete_project(
        &self,
        request: Request<DeleteProjectRequest>,
    ) -> Result<Response<DeleteProjectResponse>, Status> {
        let name = named_project(&request.get_ref().name)?;
        let deleted = projects::delete(self.ingestion.db(), &name, outbox_headers().as_deref()).await;
        let deleted = deleted.map_err(|error| errors::storage(&error))?;
        self.ingestion.ring();
        let deleted_source_count = deleted.ok_or_else(|| no_project(&name, "name"))?;
        Ok(Response::new(DeleteProjectResponse { deleted_source_count }))
    }

    async fn put_source(&self, request: Request<PutSourceRequest>) -> Result<Response<PutSourceResponse>, Status> {
        let answer_by = answer_by(request.metadata());
        let mut request = request.into_inner();
        let admitted = self.limits.put()?;
        let body = std::mem::take(&mut request.body);
        let header = Header::check(&request, "", Some(Waits::new(&self.config)))?;
        let bytes = self.limits.bytes(body.len().min(self.config.max_body_bytes))?;
        let put = header.with_body(body, "", self.config.max_body_bytes, self.ingestion.chunker_id())?;
        Ok(Response::new(self.put(put, answer_by, (admitted, bytes)).await?))
    }

    async fn upload_source(
        &self,
        request: Request<Streaming<UploadSourceRequest>>,
    ) -> Result<Response<PutSourceResponse>, Status> {
        let answer_by = answer_by(request.metadata());
        Ok(Response::new(upload::run(self, request.into_inner(), answer_by).await?))
    }

    type PutSourcesStream = ReceiverStream<Result<PutSourcesResponse, Status>>;

    async fn put_sources(
        &self,
        request: Request<Streaming<PutSourcesRequest>>,
    ) -> Result<Response<Self::PutSourcesStream>, Status> {
        Ok(Response::new(stream::start(self.clone(), request.into_inner())?))
    }

    async fn get_source(&self, request: Request<GetSourceRequest>) -> Result<Response<Source>, Status> {
        let request = request.into_inner();
        let (project, id) = named_source(&request.project, &request.uri)?;
        let found =
            sources::get(self.ingestion.db(), id, request.with_text).await.map_err(|error| errors::storage(&error))?;
        match found {
            Some(source) => Ok(Response::new(convert::source(source, &project))),
            None => Err(self.no_source(&project, &request.uri).await),
        }
    }

    async fn list_sources(
        &self,
        request: Request<ListSourcesRequest>,
    ) -> Result<Response<ListSourcesResponse>, Status> {
        let request = request.into_inner();
        let key = self.ingestion.token_key().await.map_err(|error| errors::storage(&error))?;
        let state = request.state.to_string();
        let tokens = Tokens::new(key, &["sources", &request.project, &request.uri_prefix, &state]);
        let mut violations = Violations::default();
        let name = validate::project_name("project", &request.project, &mut violations);
        let size = pages::size(request.page_size, &mut violations);
        let after = tokens.read(&request.page_token, &mut violations);
        validate::uri_prefix(&request.uri_prefix, &mut violations);
        let state = validate::state_filter(request.state, &mut violations);
        let name = checked(name, violations)?;

        let project = self.check_project(&name).await?;
        let filter = SourceFilter { uri_prefix: request.uri_prefix, state };
        let page = sources::list(self.ingestion.db(), project, &filter, after.as_deref(), size).await;
        let page = page.map_err(|error| errors::storage(&error))?;
        Ok(Response::new(ListSourcesResponse {
            sources: page.sources.into_iter().map(|source| convert::source(source, &name)).collect(),
            next_page_token: page.next_after.map(|after| tokens.make(&after)).unwrap_or_default(),
        }))
    }

    async fn delete_source(
        &self,
        request: Request<DeleteSourceRequest>,
    ) -> Result<Response<DeleteSourceResponse>, Status> {
        let request = request.into_inner();
        let (project, id) = named_source(&request.project, &request.uri)?;
        let deleted = sources::delete(self.ingestion.db(), id, request.if_version, outbox_headers().as_deref()).await;
        match deleted.map_err(|error| errors::storage(&error))? {
            Deletion::Done(Deleted { chunks, version }) => {
                self.ingestion.ring();
                let token = FreshnessToken { project: ProjectId::derive(&project), source: id, version, deleted: true };
                Ok(Response::new(DeleteSourceResponse {
                    deleted_chunk_count: i64::try_from(chunks).unwrap_or(i64::MAX),
                    freshness_token: token.to_string(),
                }))
            }
            Deletion::Missing => Err(self.no_source(&project, &request.uri).await),
            Deletion::Changed(version) => Err(status::failed_precondition(
                "SOURCE_CHANGED",
                format!(
                    "if_version: the source has version {version}: read it again, and delete it in that version if it is to go"
                ),
            )),
        }
    }
}

/// The full name of the service, for health.
pub(crate) const SERVICE: &str = proto::ingestion_service_server::SERVICE_NAME;
