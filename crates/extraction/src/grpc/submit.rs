//! Workers in other processes and languages: what they are given to read, and what they hand in.
//!
//! They claim messages from Redis themselves, and are believed as far as Redis bears them out:
//! what they write to Postgres goes through here, and only while they hold the message.

use std::{collections::BTreeSet, time::Duration};

use tonic::Status;
use uuid::Uuid;
use waybill_api::extraction::v1::{
    self as proto, BeginRequestRequest, BeginRequestResponse, DroppedFacts, FailureClass, PromptMessage,
    ReportFailureRequest, ReportFailureResponse, SubmitResponseRequest, SubmitResponseResponse,
};
use waybill_domain::{ErrorClass, ExtractionId};
use waybill_llm::{
    Answer, Extraction, PROMPT_VERSION, Usage, answer_schema, limits::MAX_ANSWER_BYTES, prompt_messages,
    read_extraction,
};
use waybill_llm_queue::{Claimed, Hold, LlmQueue, QueueError, check_worker_name, is_message_id};
use waybill_runtime::{auth::Caller, status, trace};
use waybill_storage::{
    Bell, Db,
    extractions::{self, Outcome},
    requests::{self, Failure, Spent},
};

use super::{RETRY_AFTER, outbox_headers, storage, uuid};
use crate::{
    Deps,
    config::Config,
    provider::Provider,
    worker::{outcome_of, retry_wait, spent, task_of},
};

const MAX_MODEL_BYTES: usize = 256;
const MAX_PROMPT_VERSION_BYTES: usize = 64;
/// Enough for a stack of causes; a traceback belongs into the worker's log.
const MAX_FAILURE_BYTES: usize = 2 << 10;
/// Of one request. A thousand times what a model reads at once, and sums stay far from overflowing.
const MAX_TOKENS: i64 = 1_000_000_000;
/// How much of another worker's name is shown.
const MAX_NAME_CHARS: usize = 128;

/// Answers the calls of workers in other processes.
pub(crate) struct ForeignWorkers {
    config: Config,
    db: Db,
    queue: LlmQueue,
    provider: Provider,
    bell: Bell,
}

/// Who calls about which message of which request, checked for form.
struct Claim {
    request_id: Uuid,
    message_id: String,
    worker: String,
}

impl Claim {
    fn new(request_id: &str, message_id: String, worker: String) -> Result<Self, Status> {
        let request_id = uuid("request_id", request_id)?;
        if !is_message_id(&message_id) {
            let description = "is no id of a message: pass it as Redis handed it out, such as \"1718000000000-0\"";
            return Err(status::invalid_argument("message_id", description));
        }
        check_worker_name(&worker).map_err(|error| status::invalid_argument("worker", error.to_string()))?;
        Ok(Self { request_id, message_id, worker })
    }

    /// Says that the message is not the worker's, so that nothing is written.
    fn lost(&self, hold: &Hold) -> Status {
        let (message, request) = (&self.message_id, self.request_id);
        let description = match hold {
            Hold::Taken(other) => {
                let other: String = other.chars().take(MAX_NAME_CHARS).collect();
                format!("message {message} was taken over by worker {other:?}: drop the answer")
            }
            Hold::Free => {
                format!("message {message} is in nobody's hands: drop the answer, or claim the message again")
            }
            Hold::Gone | Hold::Ours(_) => {
                format!("there is no message {message} of request {request} any more: drop the answer")
            }
        };
        status::failed_precondition("LEASE_LOST", description)
    }
}

impl ForeignWorkers {
    pub(crate) fn new(config: Config, deps: Deps, provider: Provider, bell: Bell) -> Self {
        Self { config, db: deps.db, queue: deps.queue, provider, bell }
    }

    /// Marks a request as running and says what to read.
    pub(super) async fn begin(
        &self,
        request: BeginRequestRequest,
        caller: &Caller,
    ) -> Result<BeginRequestResponse, Status> {
        let claim = Claim::new(&request.request_id, request.message_id, request.worker)?;
        self.check_project(&claim, caller).await?;
        let claimed = self.ours(&claim).await?;
        let Some(open) = self.open(&claim).await? else {
            self.finish(&claimed).await;
            return Ok(BeginRequestResponse::default());
        };
        let task = match task_of(&open) {
            Ok(task) => task,
            Err(error) => {
                let failure =
                    failure(&claimed, format!("the job's settings: {error}"), ErrorClass::Permanent, String::new());
                self.give_up(&claim, &claimed, &failure).await?;
                return Ok(BeginRequestResponse::default());
            }
        };
        let messages = prompt_messages(&task, self.config.openai.bounds())
            .into_iter()
            .map(|(role, content)| PromptMessage { role: role.to_owned(), content })
            .collect();
        Ok(BeginRequestResponse {
            wanted: true,
            project: open.project,
            messages,
            // Without bounds, which the worker's model may refuse.
            answer_schema: answer_schema(&task.settings, None).to_string(),
            title: task.title,
            headings: task.headings,
            text: task.text,
            settings: Some(proto::ExtractionSettings {
                instructions: task.settings.instructions,
                fact_types: task.settings.fact_types,
                entity_types: task.settings.entity_types,
                model: task.settings.model.unwrap_or_default(),
            }),
            attempt: open.attempts.saturating_add(1),
            attempts_max: self.config.attempts_max,
            lease: prost_types::Duration::try_from(self.config.reclaim_after()).ok(),
        })
    }

    /// Stores what a model answered.
    pub(super) async fn submit(
        &self,
        request: SubmitResponseRequest,
        caller: &Caller,
    ) -> Result<SubmitResponseResponse, Status> {
        let claim = Claim::new(&request.request_id, request.message_id, request.worker)?;
        self.check_project(&claim, caller).await?;
        check_line("model", &request.model, 1, MAX_MODEL_BYTES)?;
        check_line("prompt_version", &request.prompt_version, 0, MAX_PROMPT_VERSION_BYTES)?;
        if request.answer_json.len() > MAX_ANSWER_BYTES {
            let description = format!("has {} bytes: at most {MAX_ANSWER_BYTES}", request.answer_json.len());
            return Err(status::invalid_argument("answer_json", description));
        }
        let usage = Usage {
            prompt_tokens: tokens("prompt_tokens", request.prompt_tokens)?,
            completion_tokens: tokens("completion_tokens", request.completion_tokens)?,
        };

        let found = requests::find(&self.db, claim.request_id).await.map_err(|error| storage(&error))?;
        let wanted = match found {
            Some((true, open)) => Some(open),
            Some((false, _)) => None,
            None => {
                // Its message may be there still.
                self.remove_if_ours(&claim).await?;
                return Err(status::not_found("request", claim.request_id));
            }
        };
        let Some(open) = wanted else {
            // This may be the second try of a call whose first answer was lost.
            self.remove_if_ours(&claim).await?;
            return Ok(SubmitResponseResponse { already_done: true, ..SubmitResponseResponse::default() });
        };
        let claimed = self.ours(&claim).await?;
        let task = task_of(&open).map_err(status::internal)?;
        let extraction = read_extraction(&request.answer_json, &task.text, &task.settings).map_err(|problem| {
            let description = format!(
                "{problem}: answer with one JSON object by answer_schema. Ask the model again, or report a failure"
            );
            status::invalid_argument("answer_json", description)
        })?;
        let answer = Answer { extraction, usage, model: request.model, repaired: false };
        let mut outcome = outcome_of(&answer, spent(&self.provider, usage));
        if !request.prompt_version.is_empty() {
            outcome.prompt_version = request.prompt_version;
        }
        let stored = self.store(&claim, &claimed, &outcome).await?;
        self.finish(&claimed).await;
        if !stored {
            return Ok(SubmitResponseResponse { already_done: true, ..SubmitResponseResponse::default() });
        }
        self.bell.ring();
        Ok(SubmitResponseResponse {
            already_done: false,
            fact_count: stored_facts(open.chunk_id, &answer.extraction),
            dropped: Some(dropped(&answer.extraction)),
        })
    }

    /// Notes a failure, and gives the message back or the request up.
    pub(super) async fn report(
        &self,
        request: ReportFailureRequest,
        caller: &Caller,
    ) -> Result<ReportFailureResponse, Status> {
        let claim = Claim::new(&request.request_id, request.message_id, request.worker)?;
        self.check_project(&claim, caller).await?;
        let class = match FailureClass::try_from(request.class) {
            Ok(FailureClass::Transient) => ErrorClass::Transient,
            Ok(FailureClass::Throttled) => ErrorClass::Throttled,
            Ok(FailureClass::Permanent) => ErrorClass::Permanent,
            Ok(FailureClass::Unspecified) | Err(_) => {
                let description = format!("is {}: 1 (transient), 2 (throttled) or 3 (permanent)", request.class);
                return Err(status::invalid_argument("class", description));
            }
        };
        check_line("model", &request.model, 0, MAX_MODEL_BYTES)?;
        check_text("message", &request.message, 1, MAX_FAILURE_BYTES)?;
        let retry_after = request
            .retry_after
            .map(|wait| {
                let invalid = |_| status::invalid_argument("retry_after", "is negative or no duration: send 0 or more");
                Duration::try_from(wait).map_err(invalid)
            })
            .transpose()?;
        let claimed = self.ours(&claim).await?;
        // It may not have been begun, and only what runs can fail.
        let (id, failure) = (claim.request_id, failure(&claimed, request.message, class, request.model));
        let noted = match self.open(&claim).await? {
            Some(_) => requests::failed(&self.db, id, &failure, class != ErrorClass::Throttled)
                .await
                .map_err(|error| storage(&error))?,
            None => None,
        };
        let Some(attempts) = noted else {
            self.finish(&claimed).await;
            return Ok(ReportFailureResponse::default());
        };
        let Some(wait) = retry_wait(&self.config, class, attempts) else {
            let given_up = self.give_up(&claim, &claimed, &failure).await?;
            return Ok(ReportFailureResponse { attempts, given_up });
        };
        let wait = retry_after.unwrap_or(wait);
        if let Err(error) = self.queue.postpone(&claimed, wait, self.config.reclaim_after()).await {
            // The failure is noted, and must not be noted twice.
            tracing::warn!(%error, "message not given back, others take it over later");
        }
        Ok(ReportFailureResponse { attempts, given_up: false })
    }

    /// Refuses a request of a project that the caller's key is not good for as one that isn't there.
    async fn check_project(&self, claim: &Claim, caller: &Caller) -> Result<(), Status> {
        if caller.projects().is_none() {
            return Ok(());
        }
        let found = requests::find(&self.db, claim.request_id).await.map_err(|error| storage(&error))?;
        match found {
            Some((_, request)) if caller.may_see(&request.project) => Ok(()),
            _ => Err(status::not_found("request", claim.request_id)),
        }
    }

    /// Returns the message if it is the worker's, and renews its time.
    async fn ours(&self, claim: &Claim) -> Result<Claimed, Status> {
        match self.hold(claim).await? {
            Hold::Ours(claimed) => Ok(claimed),
            lost => Err(claim.lost(&lost)),
        }
    }

    async fn hold(&self, claim: &Claim) -> Result<Hold, Status> {
        self.queue.hold(&claim.worker, claim.request_id, &claim.message_id).await.map_err(|error| queue(&error))
    }

    async fn remove_if_ours(&self, claim: &Claim) -> Result<(), Status> {
        if let Hold::Ours(claimed) = self.hold(claim).await? {
            self.finish(&claimed).await;
        }
        Ok(())
    }

    async fn open(&self, claim: &Claim) -> Result<Option<requests::OpenRequest>, Status> {
        requests::open(&self.db, claim.request_id, &claim.message_id).await.map_err(|error| storage(&error))
    }

    /// Stores an outcome. One that Postgres will never take ends its request.
    async fn store(&self, claim: &Claim, claimed: &Claimed, outcome: &Outcome) -> Result<bool, Status> {
        let headers = outbox_headers();
        match extractions::complete(&self.db, claim.request_id, outcome, headers.as_deref()).await {
            Ok(stored) => Ok(stored),
            Err(error) if error.class() == ErrorClass::Permanent => {
                let message = format!("the answer can't be stored: {error}");
                let failure = failure(claimed, message, ErrorClass::Permanent, outcome.model.clone());
                self.give_up(claim, claimed, &failure).await?;
                Err(status::internal(error))
            }
            Err(error) => Err(storage(&error)),
        }
    }

    /// Buries a request and removes its message. Returns whether it was still wanted.
    async fn give_up(&self, claim: &Claim, claimed: &Claimed, failure: &Failure) -> Result<bool, Status> {
        let buried = requests::bury(&self.db, claim.request_id, failure).await.map_err(|error| storage(&error))?;
        if buried {
            // Without the message: a worker may quote what it was to read. Its dead letter has it.
            tracing::warn!(request = %claim.request_id, worker = claim.worker, class = %failure.class, "request given up");
        }
        self.finish(claimed).await;
        Ok(buried)
    }

    /// Removes the message of a finished request. If that fails, whoever takes it over is told
    /// that nobody wants it.
    async fn finish(&self, claimed: &Claimed) {
        if let Err(error) = self.queue.finish(std::slice::from_ref(claimed)).await {
            tracing::warn!(%error, "message of a finished request not removed yet");
        }
    }
}

fn failure(claimed: &Claimed, message: String, class: ErrorClass, model: String) -> Failure {
    let prompt_version = PROMPT_VERSION.to_owned();
    let headers = claimed.message.headers.as_deref();
    let trace_id = headers.and_then(trace::trace_id);
    // What a foreign worker spent on a call that failed is not reported.
    Failure { message, class, excerpt: None, model, prompt_version, trace_id, spent: Spent::default() }
}

/// Counts facts as they are stored: the same statement twice is one.
fn stored_facts(chunk: Uuid, extraction: &Extraction) -> i32 {
    let ids: BTreeSet<ExtractionId> =
        extraction.facts.iter().map(|fact| ExtractionId::derive(chunk, &fact.kind, &fact.statement)).collect();
    i32::try_from(ids.len()).unwrap_or(i32::MAX)
}

fn dropped(extraction: &Extraction) -> DroppedFacts {
    let count = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
    let dropped = &extraction.dropped;
    DroppedFacts {
        quote_not_found: count(dropped.quote_not_found),
        too_many: count(dropped.too_many),
        too_long: count(dropped.too_long),
        malformed: count(dropped.malformed),
    }
}

fn tokens(field: &str, count: i64) -> Result<u64, Status> {
    let invalid = || status::invalid_argument(field, format!("is {count}: must be 0 to {MAX_TOKENS}"));
    u64::try_from(count).ok().filter(|_| count <= MAX_TOKENS).ok_or_else(invalid)
}

/// Checks a text of one line.
pub(super) fn check_line(field: &str, text: &str, least: usize, most: usize) -> Result<(), Status> {
    if text.chars().any(char::is_control) {
        return Err(status::invalid_argument(field, "has a control character: leave it out"));
    }
    check_text(field, text, least, most)
}

fn check_text(field: &str, text: &str, least: usize, most: usize) -> Result<(), Status> {
    if text.len() < least || text.len() > most {
        return Err(status::invalid_argument(field, format!("has {} bytes: send {least} to {most}", text.len())));
    }
    if text.contains('\0') {
        return Err(status::invalid_argument(field, "has a NUL: leave it out"));
    }
    Ok(())
}

fn queue(error: &QueueError) -> Status {
    match error.class() {
        ErrorClass::Permanent => status::internal(error),
        class => {
            tracing::warn!(%error, class = class.as_str(), "the queue is unavailable");
            status::from_class(class, "the queue in redis is unavailable or busy: try again", Some(RETRY_AFTER))
        }
    }
}
