//! How soon a worker has a request, when nothing else is going on.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde::Serialize;
use tokio::time::{Instant, sleep, timeout};
use waybill_domain::JobId;
use waybill_llm_queue::Priority;
use waybill_storage::{Bell, jobs};

use super::stage::Stage;

/// Claimed before anything is measured, so that connections and scripts are there.
const WARM_UP_REQUESTS: usize = 20;

/// How often the worker looks. What is measured is too long by up to this and a timer's
/// millisecond, never too short.
const POLL: Duration = Duration::from_millis(1);

/// Before each request: the relay has recorded the last one by then, and is idle again.
const PAUSE: Duration = Duration::from_millis(30);

/// Longer than any wait that is worth looking at.
const ARRIVAL: Duration = Duration::from_secs(60);

/// The worker's name.
const WORKER: &str = "waybill-bench";

/// From a request's commit to its claim, in milliseconds.
#[derive(Debug, Serialize)]
pub(super) struct Latency {
    requests: usize,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

/// Makes requests one after another, and claims each.
pub(super) async fn measure(stage: &Stage, requests: usize) -> anyhow::Result<Latency> {
    let bell = Bell::start(stage.pool());
    let mut times = Vec::with_capacity(requests);
    for number in 0..WARM_UP_REQUESTS + requests {
        sleep(PAUSE).await;
        let took = one(stage, &bell).await?;
        if number >= WARM_UP_REQUESTS {
            times.push(took.as_secs_f64() * 1_000.0);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(Latency {
        requests,
        p50_ms: percentile(&times, 50),
        p99_ms: percentile(&times, 99),
        max_ms: percentile(&times, 100),
    })
}

/// Makes a request as the extraction service does, and returns the time from its commit to
/// the claim.
async fn one(stage: &Stage, bell: &Bell) -> anyhow::Result<Duration> {
    let job = stage.job_of_one_chunk();
    ensure!(jobs::start(stage.pool(), &job, None).await?, "a job of this id exists");
    let committed = Instant::now();
    bell.ring();
    let took = timeout(ARRIVAL, claim(stage, job.id, committed))
        .await
        .with_context(|| format!("no message of the request within {ARRIVAL:?}"))??;
    Ok(took)
}

async fn claim(stage: &Stage, job: JobId, committed: Instant) -> anyhow::Result<Duration> {
    loop {
        let claimed = stage.queue().claim(WORKER, Priority::Normal, 1, None).await?;
        let took = committed.elapsed();
        if let Some(first) = claimed.first() {
            if first.message.job_id != Some(job.as_uuid()) {
                bail!("a message of another request came: {:?}", first.message);
            }
            stage.queue().finish(&claimed).await?;
            return Ok(took);
        }
        sleep(POLL).await;
    }
}

/// Returns the least of the sorted values that `percent` of them don't exceed.
pub(crate) fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_value_that_was_measured() {
        let times: Vec<f64> = (1..=300).map(f64::from).collect();
        assert_eq!([50, 99, 100].map(|percent| percentile(&times, percent)), [150.0, 297.0, 300.0]);
        assert_eq!([50, 99].map(|percent| percentile(&[7.0], percent)), [7.0, 7.0]);
    }
}
