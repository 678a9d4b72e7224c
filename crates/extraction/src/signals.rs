//! What the service says of itself: its calls, the queue, and how requests and jobs are.
//!
//! A background task reads Redis and Postgres; a scrape reads what it read.

use std::{collections::HashSet, sync::Arc, time::Duration};

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Histogram, Meter},
};
use tokio_util::sync::CancellationToken;
use tracing::Span;
use uuid::Uuid;
use waybill_domain::{Clock, SystemClock, bounds::LONG_SECONDS};
use waybill_llm::{Answer, LlmError, LlmProvider, Usage};
use waybill_llm_queue::{LlmQueue, StreamStats};
use waybill_runtime::{Sample, Signals};
use waybill_storage::{
    Db,
    gauges::{self, JobGauge, StateGauge},
};

use crate::{Deps, governor::Governor, provider::Provider};

/// How often Postgres and Redis are read: some milliseconds of their time.
const SAMPLE_EVERY: Duration = Duration::from_secs(10);

/// How often it is looked how the provider is.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// States that a job is counted in.
const JOB_STATES: [&str; 4] = ["open", "done", "failed", "cancelled"];

/// Counts calls, tokens and what they cost. Clones share the instruments.
#[derive(Debug, Clone)]
pub(crate) struct LlmMeter {
    provider: KeyValue,
    calls: Histogram<f64>,
    tokens: Counter<u64>,
    cost: Counter<f64>,
    stages: Histogram<f64>,
    orphaned: Counter<u64>,
}

impl LlmMeter {
    pub(crate) fn new(meter: &Meter, provider: &'static str) -> Self {
        let measured = Self {
            provider: KeyValue::new("provider", provider),
            calls: meter
                .f64_histogram("waybill_llm_call_duration_seconds")
                .with_description("How long calls to the provider took, and how they ended")
                .with_boundaries(LONG_SECONDS.to_vec())
                .build(),
            tokens: meter
                .u64_counter("waybill_llm_tokens_total")
                .with_description("Tokens that were sent and written, as the provider counts them")
                .build(),
            cost: meter
                .f64_counter("waybill_llm_cost_usd_total")
                .with_description("What tokens cost by the configured prices; 0 if there are none")
                .build(),
            stages: meter
                .f64_histogram("waybill_llm_stage_duration_seconds")
                .with_description("How long a request waited in the queue, was with the provider, and was stored")
                .with_boundaries(LONG_SECONDS.to_vec())
                .build(),
            orphaned: meter
                .u64_counter("waybill_llm_requests_orphaned_total")
                .with_description("Requests that were sent again because Redis had lost them")
                .build(),
        };
        measured.orphaned(0);
        measured.spent(Usage::default(), 0.0);
        measured
    }

    pub(crate) fn orphaned(&self, requests: u64) {
        self.orphaned.add(requests, &[]);
    }

    /// Counts the wait of a message, from when it got its id till now.
    pub(crate) fn waited(&self, message_id: &str) {
        let sent_ms = message_id.split('-').next().and_then(|ms| ms.parse::<i64>().ok());
        if let Some(sent_ms) = sent_ms {
            let waited_ms = SystemClock.now().timestamp_millis().saturating_sub(sent_ms).max(0);
            self.stage("queue", Duration::from_millis(waited_ms.unsigned_abs()));
        }
    }

    pub(crate) fn called(&self, elapsed: Duration, result: &Result<Answer, LlmError>, provider: &Provider) {
        let (outcome, usage) = match result {
            Ok(answer) => ("ok", answer.usage),
            Err(error) => (error.class().as_str(), error.usage()),
        };
        let labels = [self.provider.clone(), KeyValue::new("outcome", outcome)];
        self.calls.record(elapsed.as_secs_f64(), &labels);
        self.stage("call", elapsed);
        self.spent(usage, provider.cost(usage));
    }

    pub(crate) fn stored(&self, elapsed: Duration) {
        self.stage("store", elapsed);
    }

    fn stage(&self, stage: &'static str, elapsed: Duration) {
        self.stages.record(elapsed.as_secs_f64(), &[KeyValue::new("stage", stage)]);
    }

    fn spent(&self, usage: Usage, cost: f64) {
        for (direction, tokens) in [("prompt", usage.prompt_tokens), ("completion", usage.completion_tokens)] {
            self.tokens.add(tokens, &[self.provider.clone(), KeyValue::new("direction", direction)]);
        }
        self.cost.add(cost, std::slice::from_ref(&self.provider));
    }
}

/// Makes the span of a call. It names the model and holds nothing of what is read.
pub(crate) fn call_span(provider: &dyn LlmProvider, model: Option<&str>) -> Span {
    tracing::info_span!(
        "llm_call",
        otel.kind = "client",
        otel.status_code = tracing::field::Empty,
        provider = provider.name(),
        model = model.unwrap_or_else(|| provider.model()),
    )
}

/// Reads and shows what others know.
pub(crate) struct Monitor {
    db: Db,
    queue: LlmQueue,
    signals: Signals,
    governor: Arc<Governor>,
    provider: &'static str,
    streams: Sample<Vec<StreamStats>>,
    requests: Sample<Vec<StateGauge>>,
    jobs: Sample<Vec<JobGauge>>,
    job_duration: Histogram<f64>,
}

impl Monitor {
    pub(crate) fn new(deps: &Deps, governor: Arc<Governor>, provider: &'static str) -> Self {
        let meter = &deps.signals.meter;
        let job_duration = meter
            .f64_histogram("waybill_job_duration_seconds")
            .with_description("From the start of a job till nothing of it was open, as each extraction process saw it")
            .with_boundaries(LONG_SECONDS.to_vec())
            .build();
        let monitor = Self {
            db: deps.db.clone(),
            queue: deps.queue.clone(),
            signals: deps.signals.clone(),
            governor,
            provider,
            streams: Sample::default(),
            requests: Sample::default(),
            jobs: Sample::default(),
            job_duration,
        };
        monitor.observe_worker(meter);
        monitor.observe_queue(meter);
        monitor.observe_work(meter);
        monitor
    }

    /// Samples until `stopping`.
    pub(crate) async fn run(self, stopping: CancellationToken) -> anyhow::Result<()> {
        let sampling = async {
            let mut known = None;
            loop {
                // Statements have a limit that Postgres keeps; a network that swallows them keeps none.
                if tokio::time::timeout(SAMPLE_EVERY, self.sample(&mut known)).await.is_err() {
                    tracing::debug!("metrics of queue and requests not read in time");
                }
                tokio::time::sleep(SAMPLE_EVERY).await;
            }
        };
        let looking = async {
            loop {
                let state = match self.governor.breaker() {
                    "open" => Err(format!("{} fails every call, and is left alone for a while", self.provider)),
                    _ => Ok(self.provider.to_owned()),
                };
                self.signals.components.set_one("provider", "llm", state);
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let both = Box::pin(async { tokio::join!(sampling, looking) });
        stopping.run_until_cancelled(both).await;
        Ok(())
    }

    async fn sample(&self, known: &mut Option<Known>) {
        match self.queue.stats().await {
            Ok(streams) => self.streams.set(streams),
            Err(error) => tracing::debug!(%error, "metrics of the queue not read"),
        }
        let read = async {
            self.requests.set(gauges::requests(&self.db).await?);
            let jobs = gauges::jobs(&self.db).await?;
            for job in ended(known, &jobs) {
                self.job_duration.record(job.age_s, &[KeyValue::new("outcome", job.state.clone())]);
            }
            self.jobs.set(jobs);
            Ok::<_, waybill_storage::StorageError>(())
        };
        if let Err(error) = read.await {
            tracing::debug!(%error, "metrics of requests not read");
        }
    }

    fn observe_worker(&self, meter: &Meter) {
        let governor = Arc::clone(&self.governor);
        meter
            .u64_observable_gauge("waybill_llm_worker_calls_in_flight")
            .with_description("Calls to the provider that are under way")
            .with_callback(move |gauge| gauge.observe(governor.in_flight() as u64, &[]))
            .build();
        let governor = Arc::clone(&self.governor);
        meter
            .u64_observable_gauge("waybill_llm_worker_concurrency_target")
            .with_description("Calls that may be under way now: the limit adapts")
            .with_callback(move |gauge| gauge.observe(governor.limit() as u64, &[]))
            .build();
        let (governor, provider) = (Arc::clone(&self.governor), self.provider);
        meter
            .u64_observable_gauge("waybill_llm_breaker_state")
            .with_description("Whether the provider is asked: 0 closed (yes), 1 half open (once), 2 open (no)")
            .with_callback(move |gauge| gauge.observe(governor.breaker_level(), &[KeyValue::new("provider", provider)]))
            .build();
    }

    fn observe_queue(&self, meter: &Meter) {
        let streams = self.streams.clone();
        meter
            .u64_observable_gauge("waybill_llm_queue_depth_messages")
            .with_description("Messages in Redis, those with workers included")
            .with_callback(move |gauge| {
                for stream in streams.get().unwrap_or_default() {
                    gauge.observe(stream.length, &[KeyValue::new("priority", stream.priority.as_str())]);
                }
            })
            .build();
        let capacity = self.queue.stream_max();
        meter
            .u64_observable_gauge("waybill_llm_queue_capacity_messages")
            .with_description("The most messages of a priority; a full stream makes the relay wait")
            .with_callback(move |gauge| {
                for priority in waybill_llm_queue::Priority::ALL {
                    gauge.observe(capacity, &[KeyValue::new("priority", priority.as_str())]);
                }
            })
            .build();
    }

    fn observe_work(&self, meter: &Meter) {
        let requests = self.requests.clone();
        meter
            .u64_observable_gauge("waybill_llm_requests")
            .with_description("Requests of the newest jobs that are not done, by state")
            .with_callback(move |gauge| {
                for state in requests.get().unwrap_or_default() {
                    gauge.observe(state.count, &[KeyValue::new("state", state.state)]);
                }
            })
            .build();
        let requests = self.requests.clone();
        meter
            .f64_observable_gauge("waybill_llm_requests_oldest_age_seconds")
            .with_description("How long the oldest request has been in its state")
            .with_callback(move |gauge| {
                for state in requests.get().unwrap_or_default().into_iter().filter(|state| state.state != "dead") {
                    gauge.observe(state.oldest_s, &[KeyValue::new("state", state.state)]);
                }
            })
            .build();
        let jobs = self.jobs.clone();
        meter
            .u64_observable_gauge("waybill_jobs")
            .with_description("The newest jobs, by state")
            .with_callback(move |gauge| {
                let Some(jobs) = jobs.get() else { return };
                for state in JOB_STATES {
                    let count = jobs.iter().filter(|job| job.state == state).count();
                    gauge.observe(count as u64, &[KeyValue::new("state", state)]);
                }
            })
            .build();
    }
}

/// Jobs as they were when they were looked at last.
#[derive(Debug, Default)]
struct Known {
    open: HashSet<Uuid>,
    ended: HashSet<Uuid>,
}

/// Returns the jobs that have ended since this was asked before; none the first time.
fn ended<'a>(known: &mut Option<Known>, jobs: &'a [JobGauge]) -> Vec<&'a JobGauge> {
    let is_open = |job: &&JobGauge| job.state == "open";
    let mut now = Known::default();
    now.open.extend(jobs.iter().filter(is_open).map(|job| job.id));
    now.ended.extend(jobs.iter().filter(|job| !is_open(job)).map(|job| job.id));
    let Some(before) = known.replace(now) else { return Vec::new() };
    jobs.iter().filter(|job| !is_open(job) && !before.ended.contains(&job.id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_ends_once() {
        let job = |id: u128, state: &str| JobGauge { id: Uuid::from_u128(id), state: state.to_owned(), age_s: 1.0 };
        let mut known = None;
        assert!(ended(&mut known, &[job(1, "open"), job(2, "done")]).is_empty(), "it was done before");
        let jobs = [job(1, "failed"), job(2, "done"), job(3, "open"), job(4, "done")];
        assert_eq!(ended(&mut known, &jobs), [&jobs[0], &jobs[3]]);
        assert!(ended(&mut known, &jobs).is_empty());
    }
}
