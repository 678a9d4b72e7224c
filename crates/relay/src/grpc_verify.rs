//! Comparing, recovering and reindexing: proto to domain and back.

use std::{pin::Pin, sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::Instant,
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Response, Status};
use uuid::Uuid;
use waybill_api::relay::v1::{
    BuildStatus, RecoverRequest, ReindexPhase, ReindexRequest, ReindexResponse, ScrubStatus, VerifyConsistencyRequest,
    VerifyConsistencyResponse, VerifyProgress, reindex_request, verify_consistency_response::Step,
};
use waybill_domain::{ProjectId, ProjectName, SourceId};
use waybill_runtime::status as answers;
use waybill_storage::{StorageError, index, projects, scrub, sources};

use crate::{
    grpc::timestamp,
    verify::{
        Pass, Reindexing, Scope, Verifier, VerifyError,
        build::{BuildError, Phase, Rebuild},
        report::{Report, Tally},
        walk,
    },
};

/// Comparisons and reindexings that run for callers at once, each at its own pace.
const RUNNING_MAX: usize = 2;
/// The longest name of a model.
const MODEL_BYTES_MAX: usize = 256;
/// Between two words about progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);
/// When to try again while others are running.
const RETRY_AFTER: Duration = Duration::from_secs(10);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
pub(crate) type VerifyStream = Answers<VerifyConsistencyResponse>;
pub(crate) type ReindexStream = Answers<ReindexResponse>;

/// Answers these calls of `RelayService`.
pub(crate) struct VerifyGrpc {
    verifier: Verifier,
    running: Arc<Semaphore>,
    stopping: CancellationToken,
}

impl VerifyGrpc {
    pub(crate) fn new(verifier: Verifier, stopping: CancellationToken) -> Self {
        Self { verifier, running: Arc::new(Semaphore::new(RUNNING_MAX)), stopping }
    }

    pub(crate) async fn verify(&self, request: VerifyConsistencyRequest) -> Result<Response<VerifyStream>, Status> {
        let project =
            if request.project.is_empty() { None } else { Some(self.project("project", &request.project).await?) };
        self.compare(project, request.repair)
    }

    pub(crate) async fn recover(&self, request: RecoverRequest) -> Result<Response<VerifyStream>, Status> {
        let project = self.project("project", &request.project).await?;
        self.compare(Some(project), true)
    }

    fn compare(&self, project: Option<ProjectId>, repair: bool) -> Result<Response<VerifyStream>, Status> {
        let slot = self.slot()?;
        let (sender, receiver) = mpsc::channel(1);
        let pass = self.verifier.begin(project, repair, Uuid::nil(), Report::default());
        let (verifier, stopping) = (self.verifier.clone(), self.stopping.clone());
        tokio::spawn(async move {
            stream(sender, stopping, |sender| async move { compare(&verifier, pass, &sender).await }).await;
            drop(slot);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    pub(crate) async fn reindex(&self, request: ReindexRequest) -> Result<Response<ReindexStream>, Status> {
        let scope = match request.scope {
            Some(reindex_request::Scope::Project(name)) => Scope::Project(self.project("project", &name).await?),
            Some(reindex_request::Scope::Source(source)) => {
                let project = self.project("source.project", &source.project).await?;
                let id = SourceId::derive(project, &source.uri);
                let found = sources::get(&self.verifier.db, id, false).await.map_err(|error| storage(&error))?;
                Scope::Source(found.map(|_| id).ok_or_else(|| answers::not_found("source", &source.uri))?)
            }
            Some(reindex_request::Scope::All(true)) if !request.model.is_empty() => {
                return self.rebuild(request.model).await;
            }
            Some(reindex_request::Scope::All(true)) => Scope::All,
            Some(reindex_request::Scope::CancelBuild(true)) => {
                self.verifier.cancel_build().await.map_err(|error| refused(&error))?;
                let done = ReindexResponse { done: true, ..ReindexResponse::default() };
                return Ok(Response::new(Box::pin(tokio_stream::once(Ok(done)))));
            }
            Some(reindex_request::Scope::All(false) | reindex_request::Scope::CancelBuild(false)) | None => {
                return Err(answers::invalid_argument("scope", "name a project or a source, or set all"));
            }
        };
        if !request.model.is_empty() {
            return Err(answers::invalid_argument("model", "goes with all only: there is one model for everything"));
        }
        let slot = self.slot()?;
        let (sender, receiver) = mpsc::channel(1);
        let work = self.verifier.begin_reindex(scope);
        let (verifier, stopping) = (self.verifier.clone(), self.stopping.clone());
        tokio::spawn(async move {
            stream(sender, stopping, |sender| async move { reindex(&verifier, work, &sender).await }).await;
            drop(slot);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    /// Changes the model of everything.
    async fn rebuild(&self, model: String) -> Result<Response<ReindexStream>, Status> {
        if model.len() > MODEL_BYTES_MAX {
            let message = format!("has {} bytes: at most {MODEL_BYTES_MAX}", model.len());
            return Err(answers::invalid_argument("model", message));
        }
        let slot = self.slot()?;
        let work = self.verifier.begin_build(&model).await.map_err(|error| refused(&error))?;
        let Some(work) = work else {
            let done = ReindexResponse { done: true, share: 1.0, ..ReindexResponse::default() };
            return Ok(Response::new(Box::pin(tokio_stream::once(Ok(done)))));
        };
        let (sender, receiver) = mpsc::channel(1);
        let (verifier, stopping) = (self.verifier.clone(), self.stopping.clone());
        tokio::spawn(async move {
            let rebuilt = |sender| async move { rebuild(&verifier, work, &sender).await };
            stream(sender, stopping, rebuilt).await;
            drop(slot);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    pub(crate) async fn build_status(&self) -> Result<Option<BuildStatus>, Status> {
        let state = index::read(&self.verifier.db).await.map_err(|error| storage(&error))?;
        Ok(state.build.map(|build| BuildStatus {
            model: build.model,
            start_time: Some(timestamp(build.started_at)),
            keys: build.keys,
            moved: build.moved_at.is_some(),
        }))
    }

    pub(crate) async fn scrub_status(&self) -> Result<ScrubStatus, Status> {
        let status = scrub::status(&self.verifier.db).await.map_err(|error| storage(&error))?;
        let last = status
            .last
            .map(|(_, ended, tally)| (timestamp(ended), serde_json::from_value::<Tally>(tally).unwrap_or_default()));
        Ok(ScrubStatus {
            start_time: status.started_at.map(timestamp),
            share: if status.started_at.is_some() { walk::share(status.position) } else { 0.0 },
            last_end_time: last.as_ref().map(|(ended, _)| *ended),
            last_counts: last.as_ref().map(|(_, tally)| tally.counts()),
            last_by_kind: last.map(|(_, tally)| tally.by_kind()).unwrap_or_default(),
        })
    }

    fn slot(&self) -> Result<OwnedSemaphorePermit, Status> {
        Arc::clone(&self.running).try_acquire_owned().map_err(|_| {
            let message = format!("{RUNNING_MAX} comparisons or reindexings are running already");
            answers::resource_exhausted("TOO_MANY_COMPARISONS", message, Some(RETRY_AFTER))
        })
    }

    async fn project(&self, field: &str, name: &str) -> Result<ProjectId, Status> {
        let valid: ProjectName = name
            .parse()
            .map_err(|error: waybill_domain::InvalidName| answers::invalid_argument(field, error.to_string()))?;
        let found = projects::find(&self.verifier.db, &valid).await.map_err(|error| storage(&error))?;
        found.ok_or_else(|| answers::not_found("project", name))
    }
}

/// Why a build can't begin or go on, for the caller.
fn refused(error: &BuildError) -> Status {
    match error {
        BuildError::Verify(error) => {
            tracing::warn!(%error, class = %error.class(), "collection not built");
            answers::from_class(error.class(), error.to_string(), None)
        }
        BuildError::Other(_) => answers::failed_precondition("BUILDING_ANOTHER", error.to_string()),
        BuildError::NothingLive => answers::failed_precondition("NOTHING_LIVE", error.to_string()),
        BuildError::InUse => answers::failed_precondition("COLLECTION_IN_USE", error.to_string()),
        BuildError::None => answers::failed_precondition("NO_BUILD", error.to_string()),
    }
}

impl From<VerifyError> for Refusal {
    fn from(error: VerifyError) -> Self {
        tracing::warn!(%error, class = %error.class(), "comparison given up");
        Self(answers::from_class(error.class(), format!("{} doesn't answer as it should", error.store()), None))
    }
}

impl From<BuildError> for Refusal {
    fn from(error: BuildError) -> Self {
        Self(refused(&error))
    }
}

/// What a stream ends with that did not get to its end.
struct Refusal(Status);

/// Runs `work` until it ends, nobody listens any more, or the relay stops.
async fn stream<T, E: Into<Refusal>, W: Future<Output = Result<(), E>>>(
    sender: mpsc::Sender<Result<T, Status>>,
    stopping: CancellationToken,
    work: impl FnOnce(mpsc::Sender<Result<T, Status>>) -> W,
) {
    let answered = tokio::select! {
        answered = work(sender.clone()) => answered.map_err(|error| error.into().0),
        () = stopping.cancelled() => Err(answers::unavailable("STOPPING", "the relay is stopping: ask again", None)),
        () = sender.closed() => return,
    };
    if let Err(status) = answered {
        let _gone = sender.send(Err(status)).await;
    }
}

type Verified = mpsc::Sender<Result<VerifyConsistencyResponse, Status>>;

async fn compare(verifier: &Verifier, mut pass: Pass, sender: &Verified) -> Result<(), VerifyError> {
    let begun = Instant::now();
    let mut said_at = begun;
    while verifier.step(&mut pass).await? {
        if said_at.elapsed() >= PROGRESS_EVERY {
            said_at = Instant::now();
            let progress = VerifyProgress { share: pass.share(), counts: Some(pass.report.tally.counts()) };
            // A caller who doesn't read must not hold the comparison up.
            let _full = sender.try_send(Ok(VerifyConsistencyResponse { step: Some(Step::Progress(progress)) }));
        }
    }
    let report = pass.report.to_proto(begun.elapsed());
    let _gone = sender.send(Ok(VerifyConsistencyResponse { step: Some(Step::Report(report)) })).await;
    Ok(())
}

async fn reindex(
    verifier: &Verifier,
    mut work: Reindexing,
    sender: &mpsc::Sender<Result<ReindexResponse, Status>>,
) -> Result<(), VerifyError> {
    let answer = |work: &Reindexing, done| {
        let keys = i64::try_from(work.keys).unwrap_or(i64::MAX);
        Ok(ReindexResponse { keys, share: work.share(), done, phase: ReindexPhase::Queueing.into() })
    };
    let mut said_at = Instant::now();
    while verifier.step_reindex(&mut work).await? {
        if said_at.elapsed() >= PROGRESS_EVERY {
            said_at = Instant::now();
            let _full = sender.try_send(answer(&work, false));
        }
    }
    let _gone = sender.send(answer(&work, true)).await;
    Ok(())
}

async fn rebuild(
    verifier: &Verifier,
    mut work: Rebuild,
    sender: &mpsc::Sender<Result<ReindexResponse, Status>>,
) -> Result<(), BuildError> {
    let answer = |work: &Rebuild, share, done| {
        let phase = match work.phase() {
            Phase::Queueing => ReindexPhase::Queueing,
            Phase::Delivering => ReindexPhase::Delivering,
            Phase::Comparing => ReindexPhase::Comparing,
            Phase::Moved => ReindexPhase::Moved,
        };
        let keys = i64::try_from(work.keys()).unwrap_or(i64::MAX);
        Ok(ReindexResponse { keys, share, done, phase: phase.into() })
    };
    let mut said: Option<(Instant, Phase)> = None;
    while verifier.step_build(&mut work).await? {
        if said.is_none_or(|(at, phase)| phase != work.phase() || at.elapsed() >= PROGRESS_EVERY) {
            said = Some((Instant::now(), work.phase()));
            let share = verifier.build_share(&work).await?;
            let _full = sender.try_send(answer(&work, share, false));
        }
    }
    let _gone = sender.send(answer(&work, 1.0, true)).await;
    Ok(())
}

fn storage(error: &StorageError) -> Status {
    tracing::warn!(%error, class = %error.class(), "call failed in postgres");
    answers::from_class(error.class(), "postgres doesn't answer", None)
}
