//! Works off the queue: claims messages, has the provider read their chunks, stores what it found.
//!
//! A message goes when its request is finished in Postgres, not before: a worker that dies
//! between the two has its message taken over by another, who finds nothing left to do.

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use futures::FutureExt;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use uuid::Uuid;
use waybill_domain::{Backoff, ErrorClass};
use waybill_llm::{Answer, ExtractionSettings, ExtractionTask, LlmError, PROMPT_VERSION, Usage};
use waybill_llm_queue::{Claimed, LlmQueue, Priority};
use waybill_runtime::{Shutdown, trace};
use waybill_storage::{
    Bell, Db, StorageError,
    extractions::{self, NewEntity, NewFact, Outcome},
    requests::{self, Failure, OpenRequest, Spent},
};

use crate::{
    Deps,
    config::Config,
    governor::{Governor, Turn},
    provider::Provider,
    signals::{LlmMeter, call_span},
};

/// Of so many looks into the queue, one begins with the lowest priority.
const LOW_FIRST_EVERY: u64 = 8;

/// What is kept of the time until the hard stop for handing back messages.
const HAND_BACK_TIME: Duration = Duration::from_secs(2);

/// A wait after Redis or Postgres failed, so that a store that is down is not hammered.
const STORE_RETRY: Backoff = Backoff { base: Duration::from_millis(100), max: Duration::from_secs(5) };

/// Characters of a token, about: for the rate limit, which the answer's own count corrects.
const BYTES_PER_TOKEN: usize = 4;

/// The messages of requests that are being handled. A request has more than one if Redis had
/// lost the first and it was sent again meanwhile.
type Held = Arc<Mutex<HashMap<Uuid, Vec<Claimed>>>>;

pub(crate) struct Worker {
    config: Config,
    name: String,
    work: Arc<Work>,
    held: Held,
}

/// What the handling of one message needs.
struct Work {
    config: Config,
    db: Db,
    queue: LlmQueue,
    provider: Provider,
    governor: Arc<Governor>,
    bell: Bell,
    meter: LlmMeter,
}

/// What is handled: a request, and the trace of the transaction that made it.
struct Passage {
    id: Uuid,
    trace_id: Option<String>,
}

/// How the handling of a message ended.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// Nothing is left to do: the message can go.
    Finished,
    /// The worker is stopping, or the message is somebody else's now.
    LeftAlone,
}

impl Worker {
    pub(crate) fn new(
        config: Config,
        deps: Deps,
        provider: Provider,
        governor: Arc<Governor>,
        bell: Bell,
        meter: LlmMeter,
    ) -> Self {
        let work = Work { config: config.clone(), db: deps.db, queue: deps.queue, provider, governor, bell, meter };
        Self { config, name: format!("worker-{}", Uuid::now_v7()), work: Arc::new(work), held: Held::default() }
    }

    pub(crate) fn provider_name(&self) -> &'static str {
        self.work.provider.llm.name()
    }

    pub(crate) fn model(&self) -> String {
        self.work.provider.llm.model().to_owned()
    }

    /// Works until `shutdown`.
    pub(crate) async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        tracing::info!(worker = %self.name, provider = self.provider_name(), "worker started");
        let soft = shutdown.soft();
        let heartbeat = tokio::spawn(self.heartbeat().beat());
        let mut running = JoinSet::new();
        let mut round: u64 = 0;
        let mut failures = 0;
        let mut next_reclaim = Instant::now();
        while !soft.is_cancelled() {
            while running.try_join_next().is_some() {}
            // As many as may be under way, and as many again that wait for their turn: so none
            // waits for the next look.
            let room = (self.work.governor.limit() * 2).saturating_sub(running.len());
            if room == 0 {
                tokio::select! {
                    _ = running.join_next() => {}
                    () = soft.cancelled() => {}
                }
                continue;
            }
            round += 1;
            let reclaim = Instant::now() >= next_reclaim;
            if reclaim {
                next_reclaim = Instant::now() + self.config.reclaim_after() / 3;
            }
            let claimed = match soft.run_until_cancelled(self.claim(round, room, reclaim)).await {
                None => break,
                Some(Ok(claimed)) => claimed,
                Some(Err(error)) => {
                    failures += 1;
                    if failures == 1 {
                        tracing::warn!(%error, "the queue doesn't answer, tried again");
                    }
                    let wait = STORE_RETRY.wait(failures, &mut rand::rng());
                    soft.run_until_cancelled(sleep(wait)).await;
                    continue;
                }
            };
            failures = 0;
            if claimed.is_empty() {
                tokio::select! {
                    () = sleep(self.config.poll()) => {}
                    Some(_) = running.join_next() => {}
                    () = soft.cancelled() => {}
                }
            }
            for claimed in claimed {
                self.start(&mut running, claimed, &soft);
            }
        }
        self.end(running, &shutdown).await;
        heartbeat.abort();
        tracing::info!(worker = %self.name, "worker stopped");
        Ok(())
    }

    /// Claims up to `count` messages: those of dead workers, then high before low, but now and
    /// then the other way around, so that low is not starved.
    async fn claim(
        &self,
        round: u64,
        count: usize,
        reclaim: bool,
    ) -> Result<Vec<Claimed>, waybill_llm_queue::QueueError> {
        let mut order = [Priority::High, Priority::Normal, Priority::Low];
        if round.is_multiple_of(LOW_FIRST_EVERY) {
            order.reverse();
        }
        let mut claimed = Vec::new();
        for priority in order {
            if reclaim && claimed.len() < count {
                let idle = self.config.reclaim_after();
                claimed.extend(self.work.queue.reclaim(&self.name, priority, idle, count - claimed.len()).await?);
            }
            if claimed.len() < count {
                claimed.extend(self.work.queue.claim(&self.name, priority, count - claimed.len(), None).await?);
            }
        }
        Ok(claimed)
    }

    fn start(&self, running: &mut JoinSet<()>, claimed: Claimed, soft: &CancellationToken) {
        let id = claimed.message.request_id;
        {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            let messages = held.entry(id).or_default();
            if messages.iter().all(|message| message.stream_id != claimed.stream_id) {
                messages.push(claimed.clone());
            }
            if messages.len() > 1 || messages.first().is_some_and(|first| first.stream_id != claimed.stream_id) {
                // Its first message is being handled, and this one ends with it.
                return;
            }
        }
        let (work, held, soft) = (Arc::clone(&self.work), Arc::clone(&self.held), soft.clone());
        let span = tracing::info_span!(parent: None, "llm_request", otel.kind = "consumer", llm_request = %id);
        let headers = claimed.message.headers.as_deref();
        trace::link(&span, headers);
        let trace_id = headers.and_then(trace::trace_id);
        running.spawn(async move {
            // What is left alone stays with what is held, and is handed back at the end.
            let passage = Passage { id, trace_id };
            if work.handle(&claimed, &passage, &soft).instrument(span).await == Ended::Finished {
                let messages = held.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                work.finish(&messages.unwrap_or_default()).await;
            }
        });
    }

    fn heartbeat(&self) -> Heartbeat {
        Heartbeat {
            name: self.name.clone(),
            every: self.config.heartbeat(),
            queue: self.work.queue.clone(),
            held: Arc::clone(&self.held),
        }
    }

    /// Waits for what is under way, as long as there is time, and hands back the rest.
    async fn end(&self, mut running: JoinSet<()>, shutdown: &Shutdown) {
        let patience = shutdown.deadline().saturating_sub(HAND_BACK_TIME);
        let all = async { while running.join_next().await.is_some() {} };
        tokio::select! {
            () = all => {}
            () = sleep(patience) => {}
            () = shutdown.hard().cancelled_owned() => {}
        }
        running.abort_all();
        let left: Vec<Claimed> = {
            let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            held.values().flatten().cloned().collect()
        };
        if left.is_empty() {
            return;
        }
        match self.work.queue.hand_back(&left).await {
            Ok(()) => tracing::info!(messages = left.len(), "messages handed back"),
            // Others take them when they have been silent long enough.
            Err(error) => tracing::warn!(%error, messages = left.len(), "messages not handed back"),
        }
    }
}

/// Says in time that the messages a worker has are not forgotten.
struct Heartbeat {
    name: String,
    every: Duration,
    queue: LlmQueue,
    held: Held,
}

impl Heartbeat {
    async fn beat(self) {
        loop {
            sleep(self.every).await;
            let claimed: Vec<Claimed> =
                self.held.lock().unwrap_or_else(PoisonError::into_inner).values().flatten().cloned().collect();
            if claimed.is_empty() {
                continue;
            }
            match self.queue.heartbeat(&self.name, &claimed).await {
                // What another worker has by now, or Redis has lost, goes on here all the same:
                // the first answer counts, and this one has cost something already.
                Ok(ours) => {
                    let lost = ours.iter().filter(|ours| !**ours).count();
                    if lost > 0 {
                        tracing::info!(lost, "messages are no longer ours");
                    }
                }
                Err(error) => tracing::warn!(%error, "heartbeat not sent"),
            }
        }
    }
}

impl Work {
    /// Handles one message until its request is finished.
    async fn handle(&self, claimed: &Claimed, passage: &Passage, soft: &CancellationToken) -> Ended {
        let id = passage.id;
        let mut waits = 0;
        let request = loop {
            match requests::open(&self.db, id, &claimed.stream_id).await {
                Ok(Some(request)) => break request,
                Ok(None) => return Ended::Finished,
                Err(error) => {
                    if !self.wait_for_store(&mut waits, &error, soft).await {
                        return Ended::LeftAlone;
                    }
                }
            }
        };
        let refused = |message| self.failure(passage, None, message);
        let task = match task_of(&request) {
            Ok(task) => task,
            Err(error) => return self.give_up(id, &refused(format!("the job's settings: {error}")), soft).await,
        };
        let model = task.settings.model.as_deref();
        if let Some(Err(problem)) = model.map(|model| self.config.check_model(model)) {
            return self
                .give_up(id, &self.failure(passage, model, format!("the job's settings: {problem}")), soft)
                .await;
        }
        let mut message_id = Some(&claimed.stream_id);
        loop {
            if !self.take_turn(&task, soft).await {
                return Ended::LeftAlone;
            }
            // A call that is made again has not waited in the queue again.
            if let Some(message_id) = message_id.take() {
                self.meter.waited(message_id);
            }
            let begun = Instant::now();
            let call = CallGuard(&self.governor, false);
            let span = call_span(&*self.provider.llm, model);
            let answer = self.provider.llm.extract(&task).instrument(span.clone());
            // A panic over one passage must not end the worker, nor go around for ever.
            let Ok(result) = AssertUnwindSafe(answer).catch_unwind().await else {
                tracing::error!(request = %id, "the provider panicked");
                let failure = self.failure(passage, model, "the provider panicked".to_owned());
                return self.give_up(id, &failure, soft).await;
            };
            call.ended(begun.elapsed(), &result);
            self.meter.called(begun.elapsed(), &result, &self.provider);
            if result.is_err() {
                span.record("otel.status_code", "ERROR");
            }
            match result {
                Ok(answer) => return self.store(passage, &answer, soft).await,
                Err(error) => {
                    let failure = self.failure_of(&error, passage, model);
                    if let Some(ended) = self.on_failure(id, &error, failure, soft).await {
                        return ended;
                    }
                }
            }
            // A store that does not answer now is waited for where something is written.
            if let Ok(false) = requests::is_open(&self.db, id).await {
                return Ended::Finished;
            }
        }
    }

    /// Waits until a call may go out. `false` if the worker stops first.
    async fn take_turn(&self, task: &ExtractionTask, soft: &CancellationToken) -> bool {
        let tokens = (task.text.len() / BYTES_PER_TOKEN).max(1) as u64;
        while !soft.is_cancelled() {
            match self.governor.turn(tokens) {
                Turn::Call => return true,
                Turn::Wait(wait) => tokio::select! {
                    () = sleep(wait.min(Duration::from_secs(1))) => {}
                    () = self.governor.freed() => {}
                    () = soft.cancelled() => {}
                },
            }
        }
        false
    }

    /// Records a failed call and waits until the next. `Some` if there is none.
    async fn on_failure(
        &self,
        id: Uuid,
        error: &LlmError,
        mut failure: Failure,
        soft: &CancellationToken,
    ) -> Option<Ended> {
        let counts = error.class() != ErrorClass::Throttled;
        tracing::debug!(request = %id, %error, class = %error.class(), "call failed");
        let mut waits = 0;
        let attempts = loop {
            match requests::failed(&self.db, id, &failure, counts).await {
                Ok(Some(attempts)) => break attempts,
                // Cancelled, or sent anew: whoever has the newer message goes on.
                Ok(None) => return Some(Ended::Finished),
                Err(error) => {
                    if !self.wait_for_store(&mut waits, &error, soft).await {
                        return Some(Ended::LeftAlone);
                    }
                }
            }
        };
        // Noted, and not to be noted twice.
        failure.spent = Spent::default();
        let Some(wait) = retry_wait(&self.config, error.class(), attempts) else {
            return Some(self.give_up(id, &failure, soft).await);
        };
        if soft.run_until_cancelled(sleep(wait)).await.is_none() {
            return Some(Ended::LeftAlone);
        }
        None
    }

    async fn give_up(&self, id: Uuid, failure: &Failure, soft: &CancellationToken) -> Ended {
        let mut waits = 0;
        loop {
            match requests::bury(&self.db, id, failure).await {
                Ok(buried) => {
                    if buried {
                        tracing::warn!(request = %id, error = %failure.message, "request given up");
                    }
                    return Ended::Finished;
                }
                Err(error) => {
                    if !self.wait_for_store(&mut waits, &error, soft).await {
                        return Ended::LeftAlone;
                    }
                }
            }
        }
    }

    /// Stores an answer. One that came late is taken like any other, if it is still wanted.
    async fn store(&self, passage: &Passage, answer: &Answer, soft: &CancellationToken) -> Ended {
        let id = passage.id;
        let outcome = outcome_of(answer, spent(&self.provider, answer.usage));
        let headers = trace::headers_as_json();
        let begun = Instant::now();
        let mut waits = 0;
        loop {
            match extractions::complete(&self.db, id, &outcome, headers.as_deref()).await {
                Ok(stored) => {
                    self.meter.stored(begun.elapsed());
                    if stored {
                        self.governor.done.fetch_add(1, Ordering::Relaxed);
                        self.bell.ring();
                    }
                    return Ended::Finished;
                }
                Err(error) if error.class() == ErrorClass::Permanent => {
                    let message = format!("the answer can't be stored: {error}");
                    let failure = self.failure(passage, Some(&answer.model), message);
                    let failure = Failure { spent: spent(&self.provider, answer.usage), ..failure };
                    return self.give_up(id, &failure, soft).await;
                }
                Err(error) => {
                    if !self.wait_for_store(&mut waits, &error, soft).await {
                        return Ended::LeftAlone;
                    }
                }
            }
        }
    }

    /// Removes the messages of a request that is finished. If that fails, whoever takes them
    /// over finds nothing to do and removes them.
    async fn finish(&self, messages: &[Claimed]) {
        if let Err(error) = self.queue.finish(messages).await {
            tracing::warn!(%error, "message of a finished request not removed yet");
        }
    }

    /// A failure that no other call can mend. `model` as the task names it.
    fn failure(&self, passage: &Passage, model: Option<&str>, message: String) -> Failure {
        Failure {
            message,
            class: ErrorClass::Permanent,
            excerpt: None,
            model: model.unwrap_or_else(|| self.provider.llm.model()).to_owned(),
            prompt_version: PROMPT_VERSION.to_owned(),
            trace_id: passage.trace_id.clone(),
            spent: Spent::default(),
        }
    }

    fn failure_of(&self, error: &LlmError, passage: &Passage, model: Option<&str>) -> Failure {
        Failure {
            class: error.class(),
            excerpt: error.excerpt().map(str::to_owned),
            spent: spent(&self.provider, error.usage()),
            ..self.failure(passage, model, error.to_string())
        }
    }

    /// Waits after a failure of Postgres. `false` if the worker stops.
    async fn wait_for_store(&self, waits: &mut u32, error: &StorageError, soft: &CancellationToken) -> bool {
        *waits += 1;
        if *waits == 1 {
            tracing::warn!(%error, "postgres doesn't answer, tried again");
        }
        let wait = STORE_RETRY.wait(*waits, &mut rand::rng());
        soft.run_until_cancelled(sleep(wait)).await.is_some()
    }
}

/// Returns how long to wait after a failure before the next attempt. `None`: there is none.
pub(crate) fn retry_wait(config: &Config, class: ErrorClass, attempts: i32) -> Option<Duration> {
    if class == ErrorClass::Permanent || attempts >= config.attempts_max {
        return None;
    }
    if class == ErrorClass::Throttled {
        return Some(Duration::ZERO);
    }
    let backoff =
        Backoff { base: Duration::from_millis(config.retry_base_ms), max: Duration::from_millis(config.retry_max_ms) };
    Some(backoff.wait(attempts.unsigned_abs(), &mut rand::rng()))
}

/// Tells the governor of a call that is dropped in the middle.
struct CallGuard<'a>(&'a Governor, bool);

impl CallGuard<'_> {
    fn ended(mut self, latency: Duration, result: &Result<Answer, LlmError>) {
        self.1 = true;
        self.0.ended(latency, result.as_ref().map(|_| ()));
    }
}

impl Drop for CallGuard<'_> {
    fn drop(&mut self) {
        if !self.1 {
            self.0.abandoned();
        }
    }
}

/// Returns what a request asks a model to read.
///
/// # Errors
/// If the job's settings are none.
pub(crate) fn task_of(request: &OpenRequest) -> Result<ExtractionTask, serde_json::Error> {
    let settings: ExtractionSettings = serde_json::from_value(request.settings.clone())?;
    Ok(ExtractionTask {
        text: request.text.clone(),
        headings: request.headings.clone(),
        title: request.title.clone(),
        settings,
    })
}

/// Prices what a call used.
pub(crate) fn spent(provider: &Provider, usage: Usage) -> Spent {
    let count = |tokens: u64| i64::try_from(tokens).unwrap_or(i64::MAX);
    Spent {
        prompt_tokens: count(usage.prompt_tokens),
        completion_tokens: count(usage.completion_tokens),
        cost: provider.cost(usage),
    }
}

/// Returns what is stored of an answer, whoever gave it.
pub(crate) fn outcome_of(answer: &Answer, spent: Spent) -> Outcome {
    let dropped = &answer.extraction.dropped;
    Outcome {
        facts: answer
            .extraction
            .facts
            .iter()
            .map(|fact| NewFact {
                kind: fact.kind.clone(),
                statement: fact.statement.clone(),
                subject: fact.subject.clone(),
                predicate: fact.predicate.clone(),
                object: fact.object.clone(),
                confidence: fact.confidence,
                quote: fact.quote.clone(),
                range: fact.start_byte..fact.end_byte,
                entities: fact
                    .entities
                    .iter()
                    .map(|entity| NewEntity {
                        kind: entity.kind.clone(),
                        canonical: entity.canonical.clone(),
                        name: entity.name.clone(),
                        role: entity.role.clone(),
                    })
                    .collect(),
            })
            .collect(),
        facts_dropped: dropped.fact_reasons().collect(),
        entities_dropped: dropped.entity_reasons().collect(),
        model: answer.model.clone(),
        prompt_version: PROMPT_VERSION.to_owned(),
        prompt_tokens: spent.prompt_tokens,
        completion_tokens: spent.completion_tokens,
        cost: spent.cost,
    }
}
