//! The proto on one side, Postgres on the other.

mod facts;
mod requests;
mod submit;

use std::{pin::Pin, sync::Arc, sync::atomic::Ordering, time::Duration};

use prost_types::Timestamp;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};
use uuid::Uuid;
use waybill_api::extraction::v1::{
    self as proto, BeginRequestRequest, BeginRequestResponse, CancelJobRequest, GetEntityRequest, GetEntityResponse,
    GetExtractionRequest, GetJobRequest, GetWorkerStatusRequest, GetWorkerStatusResponse, ListEntitiesRequest,
    ListEntitiesResponse, ListExtractionsRequest, ListExtractionsResponse, ListJobsRequest, ListJobsResponse,
    ListRequestsRequest, ListRequestsResponse, RejectExtractionsRequest, RejectExtractionsResponse,
    ReportFailureRequest, ReportFailureResponse, StartExtractionRequest, SubmitResponseRequest, SubmitResponseResponse,
    WatchJobRequest, extraction_service_server::ExtractionService,
};
use waybill_domain::{EntityId, ErrorClass, ExtractionId, JobId, JobState, ProjectId, ProjectName};
use waybill_llm::ExtractionSettings;
use waybill_runtime::{Shutdown, auth::Caller, status, trace::headers_as_json as outbox_headers};
use waybill_storage::{
    Bell, Db, StorageError,
    extractions::{self, Entity, FactFilter},
    jobs::{self, Job, NewJob},
    projects,
};

pub(crate) use self::submit::ForeignWorkers;
use crate::{config::Config, governor::Governor};

/// The service's full name.
pub(crate) const SERVICE: &str = "waybill.extraction.v1.ExtractionService";

const DEFAULT_PAGE: i64 = 100;
const MAX_PAGE: i64 = 1_000;
const MAX_REQUEST_ID_BYTES: usize = 128;
const MAX_URI_BYTES: usize = 2_048;
/// Between two looks at a job that is watched.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// When to try again after Postgres was away or busy.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Answers the calls of `ExtractionService`.
pub(crate) struct Grpc {
    pub(crate) config: Config,
    pub(crate) db: Db,
    pub(crate) governor: Arc<Governor>,
    pub(crate) provider: &'static str,
    pub(crate) model: String,
    pub(crate) bell: Bell,
    pub(crate) shutdown: Shutdown,
    pub(crate) foreign: ForeignWorkers,
}

impl Grpc {
    async fn project(&self, name: &str) -> Result<ProjectId, Status> {
        let name: ProjectName = name
            .parse()
            .map_err(|error: waybill_domain::InvalidName| status::invalid_argument("project", error.to_string()))?;
        let found = projects::find(&self.db, &name).await.map_err(|error| storage(&error))?;
        found.ok_or_else(|| status::not_found("project", &name))
    }

    /// Finds a job of a project that the caller may see.
    async fn job(&self, id: &str, caller: &Caller) -> Result<Job, Status> {
        let id = JobId::from_uuid(uuid("id", id)?);
        let found = jobs::get(&self.db, id).await.map_err(|error| storage(&error))?;
        found.filter(|job| caller.may_see_id(job.project_id)).ok_or_else(|| status::not_found("job", id))
    }
}

#[tonic::async_trait]
impl ExtractionService for Grpc {
    async fn start_extraction(&self, request: Request<StartExtractionRequest>) -> Result<Response<proto::Job>, Status> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        let priority = match proto::Priority::try_from(request.priority) {
            Ok(proto::Priority::High) => "high",
            Ok(proto::Priority::Low) => "low",
            Ok(proto::Priority::Normal | proto::Priority::Unspecified) => "normal",
            Err(_) => {
                let description = format!("is {}: 1 (high), 2 (normal) or 3 (low)", request.priority);
                return Err(status::invalid_argument("priority", description));
            }
        };
        for (field, text, most) in [
            ("request_id", &request.request_id, MAX_REQUEST_ID_BYTES),
            ("uri_prefix", &request.uri_prefix, MAX_URI_BYTES),
        ] {
            if text.len() > most {
                return Err(status::invalid_argument(field, format!("has {} bytes: at most {most}", text.len())));
            }
            if text.contains('\0') {
                return Err(status::invalid_argument(field, "has a NUL: leave it out"));
            }
        }
        let given = request.settings.unwrap_or_default();
        let settings = ExtractionSettings {
            enabled: true,
            instructions: given.instructions,
            fact_types: given.fact_types,
            entity_types: given.entity_types,
            model: Some(given.model).filter(|model| !model.is_empty()),
            priority: priority.to_owned(),
        };
        settings.validate().map_err(|problem| status::invalid_argument("settings", problem))?;
        if let Some(model) = &settings.model {
            self.config.check_model(model).map_err(|problem| status::invalid_argument("settings.model", problem))?;
        }
        let project_id = self.project(&request.project).await?;
        let id = match request.request_id.as_str() {
            "" => JobId::generate(),
            request_id => JobId::derive(project_id, request_id),
        };
        let job = NewJob {
            id,
            project_id,
            uri_prefix: request.uri_prefix,
            priority: priority.to_owned(),
            settings: serde_json::to_value(&settings).map_err(status::internal)?,
            follow: request.follow,
        };
        jobs::start(&self.db, &job, outbox_headers().as_deref()).await.map_err(|error| storage(&error))?;
        self.bell.ring();
        Ok(Response::new(job_to_proto(&self.job(&id.to_string(), &caller).await?)))
    }

    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<proto::Job>, Status> {
        let caller = Caller::of(&request);
        Ok(Response::new(job_to_proto(&self.job(&request.into_inner().id, &caller).await?)))
    }

    async fn list_jobs(&self, request: Request<ListJobsRequest>) -> Result<Response<ListJobsResponse>, Status> {
        let request = request.into_inner();
        let size = page_size(request.page_size)?;
        let after = job_token(&request.page_token)?;
        let project = self.project(&request.project).await?;
        let jobs = jobs::list(&self.db, project, after, size + 1).await.map_err(|error| storage(&error))?;
        let (jobs, next_page_token) =
            page(jobs, size, |job| format!("{:x}.{}", job.created_at.timestamp_micros(), job.id.as_uuid().simple()));
        Ok(Response::new(ListJobsResponse { jobs: jobs.iter().map(job_to_proto).collect(), next_page_token }))
    }

    async fn list_requests(
        &self,
        request: Request<ListRequestsRequest>,
    ) -> Result<Response<ListRequestsResponse>, Status> {
        Ok(Response::new(requests::list(self, request.into_inner()).await?))
    }

    type WatchJobStream = Pin<Box<dyn Stream<Item = Result<proto::Job, Status>> + Send>>;

    async fn watch_job(&self, request: Request<WatchJobRequest>) -> Result<Response<Self::WatchJobStream>, Status> {
        let caller = Caller::of(&request);
        let mut job = self.job(&request.into_inner().id, &caller).await?;
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let (db, stopping) = (self.db.clone(), self.shutdown.soft());
        tokio::spawn(async move {
            // Ends with the stream: then nobody receives.
            while sender.send(Ok(job_to_proto(&job))).await.is_ok() && !is_over(job.state) {
                let last = job.clone();
                while job == last {
                    if stopping.run_until_cancelled(tokio::time::sleep(WATCH_INTERVAL)).await.is_none() {
                        let stopping = status::unavailable("STOPPING", "the service is stopping: watch again", None);
                        let _gone = sender.send(Err(stopping)).await;
                        return;
                    }
                    if sender.is_closed() {
                        return;
                    }
                    job = match jobs::get(&db, job.id).await {
                        Ok(Some(job)) => job,
                        Ok(None) => {
                            let _gone = sender.send(Err(status::not_found("job", job.id))).await;
                            return;
                        }
                        Err(error) => {
                            let _gone = sender.send(Err(storage(&error))).await;
                            return;
                        }
                    };
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn cancel_job(&self, request: Request<CancelJobRequest>) -> Result<Response<proto::Job>, Status> {
        let caller = Caller::of(&request);
        let id = request.into_inner().id;
        let job = self.job(&id, &caller).await?;
        jobs::cancel(&self.db, job.id).await.map_err(|error| storage(&error))?;
        Ok(Response::new(job_to_proto(&self.job(&id, &caller).await?)))
    }

    async fn list_extractions(
        &self,
        request: Request<ListExtractionsRequest>,
    ) -> Result<Response<ListExtractionsResponse>, Status> {
        Ok(Response::new(facts::list(self, request.into_inner()).await?))
    }

    async fn get_extraction(
        &self,
        request: Request<GetExtractionRequest>,
    ) -> Result<Response<proto::Extraction>, Status> {
        let request = request.into_inner();
        let id = ExtractionId::from_uuid(uuid("id", &request.id)?);
        let project_id = self.project(&request.project).await?;
        let filter = FactFilter { id: Some(id), ..FactFilter::all(project_id) };
        let found =
            extractions::list_facts(&self.db, &filter, Uuid::nil(), 1).await.map_err(|error| storage(&error))?;
        let fact = found.into_iter().next().ok_or_else(|| status::not_found("extraction", id))?;
        Ok(Response::new(facts::to_proto(fact)))
    }

    async fn reject_extractions(
        &self,
        request: Request<RejectExtractionsRequest>,
    ) -> Result<Response<RejectExtractionsResponse>, Status> {
        let rejected_count = facts::reject(self, request.into_inner()).await?;
        Ok(Response::new(RejectExtractionsResponse { rejected_count }))
    }

    async fn get_entity(&self, request: Request<GetEntityRequest>) -> Result<Response<GetEntityResponse>, Status> {
        let request = request.into_inner();
        let id = EntityId::from_uuid(uuid("id", &request.id)?);
        let project_id = self.project(&request.project).await?;
        let found = extractions::entity(&self.db, project_id, id).await.map_err(|error| storage(&error))?;
        let entity = found.ok_or_else(|| status::not_found("entity", id))?;
        let filter = FactFilter { entities: vec![id], ..FactFilter::all(project_id) };
        let facts =
            extractions::list_facts(&self.db, &filter, Uuid::nil(), MAX_PAGE).await.map_err(|error| storage(&error))?;
        Ok(Response::new(GetEntityResponse {
            entity: Some(entity_to_proto(entity)),
            extractions: facts.into_iter().map(facts::to_proto).collect(),
        }))
    }

    async fn list_entities(
        &self,
        request: Request<ListEntitiesRequest>,
    ) -> Result<Response<ListEntitiesResponse>, Status> {
        let request = request.into_inner();
        let size = page_size(request.page_size)?;
        let after = page_token(&request.page_token)?;
        let project = self.project(&request.project).await?;
        let entities = extractions::list_entities(&self.db, project, "", after, size + 1)
            .await
            .map_err(|error| storage(&error))?;
        let (entities, next_page_token) = page(entities, size, |entity| entity.id.as_uuid().simple().to_string());
        Ok(Response::new(ListEntitiesResponse {
            entities: entities.into_iter().map(entity_to_proto).collect(),
            next_page_token,
        }))
    }

    async fn get_worker_status(
        &self,
        _request: Request<GetWorkerStatusRequest>,
    ) -> Result<Response<GetWorkerStatusResponse>, Status> {
        let small = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
        let large = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        Ok(Response::new(GetWorkerStatusResponse {
            provider: self.provider.to_owned(),
            model: self.model.clone(),
            concurrency_limit: small(self.governor.limit()),
            in_flight: small(self.governor.in_flight()),
            breaker: self.governor.breaker().to_owned(),
            done_count: large(self.governor.done.load(Ordering::Relaxed)),
            failed_count: large(self.governor.failed.load(Ordering::Relaxed)),
            throttled_count: large(self.governor.throttled.load(Ordering::Relaxed)),
        }))
    }

    async fn begin_request(
        &self,
        request: Request<BeginRequestRequest>,
    ) -> Result<Response<BeginRequestResponse>, Status> {
        let caller = Caller::of(&request);
        self.foreign.begin(request.into_inner(), &caller).await.map(Response::new)
    }

    async fn submit_response(
        &self,
        request: Request<SubmitResponseRequest>,
    ) -> Result<Response<SubmitResponseResponse>, Status> {
        let caller = Caller::of(&request);
        self.foreign.submit(request.into_inner(), &caller).await.map(Response::new)
    }

    async fn report_failure(
        &self,
        request: Request<ReportFailureRequest>,
    ) -> Result<Response<ReportFailureResponse>, Status> {
        let caller = Caller::of(&request);
        self.foreign.report(request.into_inner(), &caller).await.map(Response::new)
    }
}

const fn is_over(state: JobState) -> bool {
    matches!(state, JobState::Done | JobState::Failed | JobState::Cancelled)
}

/// Cuts what was read to a page; one more than fits says that there is another.
fn page<T>(mut rows: Vec<T>, size: i64, token: impl Fn(&T) -> String) -> (Vec<T>, String) {
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if rows.len() <= size {
        return (rows, String::new());
    }
    rows.truncate(size);
    let token = rows.last().map(token).unwrap_or_default();
    (rows, token)
}

fn page_size(requested: i32) -> Result<i64, Status> {
    match i64::from(requested) {
        0 => Ok(DEFAULT_PAGE),
        size @ 1..=MAX_PAGE => Ok(size),
        size => {
            let description = format!("is {size}: must be 0 (the default, {DEFAULT_PAGE}) to {MAX_PAGE}");
            Err(status::invalid_argument("page_size", description))
        }
    }
}

/// A token is the id that the page before ended with: it holds nothing that its owner was not given.
fn page_token(token: &str) -> Result<Uuid, Status> {
    if token.is_empty() {
        return Ok(Uuid::nil());
    }
    Uuid::try_parse(token).map_err(|_| no_token())
}

/// Jobs come by their time: it is in the token too.
fn job_token(token: &str) -> Result<Option<(chrono::DateTime<chrono::Utc>, JobId)>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    let read = token.split_once('.').and_then(|(micros, id)| {
        let at = chrono::DateTime::from_timestamp_micros(i64::from_str_radix(micros, 16).ok()?)?;
        Some((at, JobId::from_uuid(Uuid::try_parse(id).ok()?)))
    });
    read.map(Some).ok_or_else(no_token)
}

fn no_token() -> Status {
    let description = "is not a token of this listing: pass next_page_token of the page before, or nothing";
    status::invalid_argument("page_token", description)
}

/// Checks an id that may be left out.
fn optional_uuid(field: &str, text: &str) -> Result<Option<Uuid>, Status> {
    if text.is_empty() { Ok(None) } else { uuid(field, text).map(Some) }
}

fn uuid(field: &str, text: &str) -> Result<Uuid, Status> {
    Uuid::try_parse(text).map_err(|_| {
        let shown: String = text.chars().take(80).collect();
        status::invalid_argument(field, format!("{shown:?} is no UUID: pass an id as it was handed out"))
    })
}

fn storage(error: &StorageError) -> Status {
    match error.class() {
        ErrorClass::Permanent => status::internal(error),
        class => {
            tracing::warn!(%error, class = class.as_str(), "storage is unavailable");
            status::from_class(class, "the database is unavailable or busy: try again", Some(RETRY_AFTER))
        }
    }
}

fn timestamp(at: chrono::DateTime<chrono::Utc>) -> Timestamp {
    Timestamp { seconds: at.timestamp(), nanos: i32::try_from(at.timestamp_subsec_nanos()).unwrap_or(0) }
}

fn job_to_proto(job: &Job) -> proto::Job {
    let state = match job.state {
        JobState::Queued => proto::JobState::Queued,
        JobState::Running => proto::JobState::Running,
        JobState::Done => proto::JobState::Done,
        JobState::Failed => proto::JobState::Failed,
        JobState::Cancelled => proto::JobState::Cancelled,
    };
    proto::Job {
        id: job.id.to_string(),
        state: state.into(),
        pending_count: job.counts.pending,
        queued_count: job.counts.queued,
        running_count: job.counts.running,
        done_count: job.counts.done,
        dead_count: job.counts.dead,
        cancelled_count: job.counts.cancelled,
        fact_count: job.facts,
        dropped_fact_count: job.facts_dropped,
        prompt_tokens: job.prompt_tokens,
        completion_tokens: job.completion_tokens,
        cost: job.cost,
        create_time: Some(timestamp(job.created_at)),
        entities_none_count: job.entities.none,
        entities_partial_count: job.entities.partial,
        entities_complete_count: job.entities.complete,
    }
}

fn entity_to_proto(entity: Entity) -> proto::Entity {
    proto::Entity {
        id: entity.id.to_string(),
        r#type: entity.kind,
        canonical_name: entity.canonical,
        aliases: entity.aliases,
        fact_count: entity.facts,
    }
}
