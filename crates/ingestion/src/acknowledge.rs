//! When a put answers: at once, when it is indexed, or when it is indexed or taken back.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tonic::{Code, Status};
use waybill_api::ingestion::v1::{Acknowledge as Proto, PutSourceRequest};
use waybill_domain::{ErrorClass, FreshnessToken, ProjectId};
use waybill_runtime::status;
use waybill_storage::{
    StorageError,
    freshness::{self, Awaited},
    sources::{self, Provisional, PutResult, TakeBack, Traces},
};

use crate::{Config, errors, grpc::Grpc, validate::Violations};

/// The pause before something is tried again that Postgres could not do.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// How long Postgres may be away when a source is to be taken back, before that is left to the
/// sweeper.
const TAKE_BACK_TIMEOUT: Duration = Duration::from_secs(5);

/// The share of a call's time that is kept for taking back: a third.
const TAKE_BACK_SHARE: u32 = 3;

/// When a put answers. The durations: how long the vector store may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Acknowledge {
    Accepted,
    Indexed(Duration),
    AllOrNothing(Duration),
}

/// How long waits may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waits {
    default: Duration,
    max: Duration,
}

impl Waits {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            default: Duration::from_millis(config.index_timeout_ms),
            max: Duration::from_millis(config.index_timeout_max_ms),
        }
    }
}

impl Acknowledge {
    /// Reads the mode and its timeout. Without `waits`, nothing may wait.
    pub(crate) fn read(
        request: &PutSourceRequest,
        prefix: &str,
        waits: Option<Waits>,
        violations: &mut Violations,
    ) -> Option<Self> {
        let field = format!("{prefix}acknowledge");
        let Ok(mode) = Proto::try_from(request.acknowledge) else {
            violations.add(
                &field,
                format!(
                    "is {}: must be ACKNOWLEDGE_ACCEPTED (1), ACKNOWLEDGE_INDEXED (2) or ACKNOWLEDGE_ALL_OR_NOTHING (3)",
                    request.acknowledge
                ),
            );
            return None;
        };
        let timeout = match (mode, waits) {
            (Proto::Unspecified | Proto::Accepted, _) => {
                if request.index_timeout.is_some() {
                    violations.add(
                        &format!("{prefix}index_timeout"),
                        "is for ACKNOWLEDGE_INDEXED and ACKNOWLEDGE_ALL_OR_NOTHING: leave it out",
                    );
                }
                return Some(Self::Accepted);
            }
            (Proto::Indexed | Proto::AllOrNothing, None) => {
                violations.add(
                    &field,
                    format!(
                        "is {}: a stream takes ACKNOWLEDGE_ACCEPTED only, use PutSource or UploadSource",
                        mode.as_str_name()
                    ),
                );
                return None;
            }
            (Proto::Indexed | Proto::AllOrNothing, Some(waits)) => match request.index_timeout {
                None => waits.default,
                Some(timeout) => match Duration::try_from(timeout) {
                    Ok(timeout) if !timeout.is_zero() && timeout <= waits.max => timeout,
                    _ => {
                        let (seconds, nanos, max) = (timeout.seconds, timeout.nanos, waits.max.as_millis());
                        violations.add(
                            &format!("{prefix}index_timeout"),
                            format!("is {seconds} s and {nanos} ns: must be above 0 and at most {max} ms (ingestion.index_timeout_max_ms)"),
                        );
                        return None;
                    }
                },
            },
        };
        Some(if mode == Proto::Indexed { Self::Indexed(timeout) } else { Self::AllOrNothing(timeout) })
    }

    /// Shortens the wait to what a call has left that is to be answered by `answer_by`.
    pub(crate) fn within(self, answer_by: Option<Instant>) -> Self {
        let left = answer_by.map_or(Duration::MAX, |by| by.saturating_duration_since(Instant::now()));
        match self {
            Self::Accepted => self,
            Self::Indexed(timeout) => Self::Indexed(timeout.min(left)),
            Self::AllOrNothing(timeout) => Self::AllOrNothing(timeout.min(left - left / TAKE_BACK_SHARE)),
        }
    }
}

/// A put that Postgres has committed, and what its caller waits for.
#[derive(Debug)]
pub(crate) struct Committed {
    pub(crate) uri: String,
    pub(crate) acknowledge: Acknowledge,
    pub(crate) source: Provisional,
    /// When the put began: from here its time counts.
    pub(crate) begun: Instant,
    pub(crate) answer_by: Option<Instant>,
}

/// Makes the token of a put.
pub(crate) fn token(project: ProjectId, put: &PutResult) -> FreshnessToken {
    FreshnessToken { project, source: put.source_id, version: put.version, deleted: false }
}

impl Committed {
    /// Waits as the caller asked, and returns what to answer.
    pub(crate) async fn acknowledge(self, grpc: &Grpc) -> Result<PutResult, Status> {
        match self.acknowledge {
            Acknowledge::Accepted => Ok(self.source.put),
            // A retry of a put that was confirmed, and answered, before.
            Acknowledge::AllOrNothing(_) if !self.source.put.provisional => Ok(self.source.put),
            Acknowledge::Indexed(timeout) => self.indexed(grpc, timeout).await,
            Acknowledge::AllOrNothing(timeout) => self.all_or_nothing(grpc, timeout).await,
        }
    }

    fn awaited(&self) -> Awaited {
        Awaited { source: self.source.put.source_id, version: self.source.put.version }
    }

    /// Waits until the vector store shows the source; `false` if it does not until `until`, or
    /// the service stops. Postgres may be away meanwhile.
    async fn shown(&self, grpc: &Grpc, until: Instant) -> bool {
        let awaited = [self.awaited()];
        let waiting = async {
            loop {
                match freshness::wait(grpc.ingestion.db(), &awaited, until).await {
                    Ok(missing) => return missing.is_empty(),
                    Err(error) => {
                        if !pause_after(&error, until).await {
                            return false;
                        }
                    }
                }
            }
        };
        grpc.shutdown.soft().run_until_cancelled(waiting).await.unwrap_or(false)
    }

    async fn indexed(self, grpc: &Grpc, timeout: Duration) -> Result<PutResult, Status> {
        if self.shown(grpc, self.begun + timeout).await {
            return Ok(self.source.put);
        }
        let token = token(self.source.project_id, &self.source.put);
        let message = format!(
            "{:?} was not searchable within {} ms. The write is durable and will be indexed: search with the freshness_token of the error's details, or put it again with ACKNOWLEDGE_INDEXED, to go on waiting",
            self.uri,
            self.begun.elapsed().as_millis()
        );
        let metadata = [("freshness_token", token.to_string()), ("source_id", token.source.to_string())];
        let code = if grpc.shutdown.is_stopping() { Code::Unavailable } else { Code::DeadlineExceeded };
        Err(status::with_metadata(code, "NOT_INDEXED_IN_TIME", message, metadata))
    }

    async fn all_or_nothing(self, grpc: &Grpc, timeout: Duration) -> Result<PutResult, Status> {
        let until = self.begun + timeout;
        let db = grpc.ingestion.db();
        let mut unknown = false;
        while self.shown(grpc, until).await {
            match sources::confirm(db, &self.source).await {
                Ok(Some(put)) => {
                    // Its requests for extraction are in the outbox now.
                    grpc.ingestion.ring();
                    return Ok(put);
                }
                // Shown, but too late, or not there any more.
                Ok(None) => break,
                Err(error) => {
                    unknown = true;
                    if !pause_after(&error, until).await {
                        break;
                    }
                }
            }
        }
        self.take_back(grpc, unknown).await
    }

    /// Takes the source back. `unknown` says that a confirmation may have been committed.
    async fn take_back(self, grpc: &Grpc, unknown: bool) -> Result<PutResult, Status> {
        let until = Instant::now() + TAKE_BACK_TIMEOUT;
        let headers = errors::outbox_headers();
        let taken = loop {
            match sources::take_back(grpc.ingestion.db(), &self.source, headers.as_deref()).await {
                Ok(taken) => break taken,
                Err(error) => {
                    if !pause_after(&error, until).await {
                        tracing::warn!(%error, "a provisional source is left to the sweeper");
                        let message = format!(
                            "{:?} could not be confirmed, nor taken back yet: the database is unavailable. It stays hidden from every read, and is taken back when the database answers again",
                            self.uri
                        );
                        return Err(status::unavailable("TAKING_BACK", message, None));
                    }
                }
            }
        };
        match taken {
            TakeBack::Taken(traces) => {
                grpc.ingestion.ring();
                Err(self.taken_back(grpc, &traces).await)
            }
            TakeBack::Confirmed(version) if unknown => Ok(PutResult { version, provisional: false, ..self.source.put }),
            TakeBack::Confirmed(_) | TakeBack::Gone => {
                let message = format!(
                    "{:?} was taken back before it was confirmed, by another call (DeleteSource, DeleteProject) or the sweeper. It is gone from Postgres and was never visible; its points go as the relay delivers",
                    self.uri
                );
                Err(status::unavailable("TAKEN_BACK_UNCONFIRMED", message, None))
            }
        }
    }

    /// Says what is left of a source that is gone from Postgres.
    async fn taken_back(&self, grpc: &Grpc, traces: &Traces) -> Status {
        let mut until = Instant::now() + Duration::from_millis(grpc.config.take_back_wait_ms);
        if let Some(answer_by) = self.answer_by {
            until = until.min(answer_by);
        }
        let waiting = sources::wait_until_gone(grpc.ingestion.db(), traces, until);
        let gone = grpc.shutdown.soft().run_until_cancelled(waiting).await;
        if matches!(gone, Some(Ok(true))) {
            let message = format!(
                "{:?} was not confirmed in time and was taken back: nothing of it is left in Postgres or in the vector store. Put it again, or with a longer index_timeout",
                self.uri
            );
            return status::aborted("TAKEN_BACK", message, None);
        }
        let message = format!(
            "{:?} was not confirmed in time. It was taken back in Postgres and is hidden everywhere; its points go when the vector store is back",
            self.uri
        );
        status::unavailable("TAKEN_BACK_UNCONFIRMED", message, None)
    }
}

/// Waits a little after a failure of Postgres. Returns whether to try again before `until`.
async fn pause_after(error: &StorageError, until: Instant) -> bool {
    if error.class() == ErrorClass::Permanent {
        tracing::error!(%error, "a put can't be acknowledged");
        return false;
    }
    if Instant::now() + RETRY_PAUSE >= until {
        return false;
    }
    sleep(RETRY_PAUSE).await;
    true
}
