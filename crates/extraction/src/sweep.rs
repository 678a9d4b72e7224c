//! Finds requests that Redis should know and doesn't, and has the relay send them again.

use std::{collections::BTreeMap, time::Duration};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use waybill_llm_queue::{LlmQueue, Priority};
use waybill_storage::{
    Bell, Db,
    requests::{self, QueuedRequest},
};

use crate::{config::Config, signals::LlmMeter};

/// Requests asked for at a time.
const PAGE: i64 = 1_000;

pub(crate) async fn run(
    db: Db,
    queue: LlmQueue,
    config: Config,
    bell: Bell,
    meter: LlmMeter,
    stopping: CancellationToken,
) -> anyhow::Result<()> {
    let every = Duration::from_millis(config.sweep_every_ms);
    while stopping.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
        match stopping.run_until_cancelled(sweep(&db, &queue, config.sweep_age_ms)).await {
            None => break,
            Some(Ok(0)) => {}
            Some(Ok(lost)) => {
                meter.orphaned(lost);
                tracing::warn!(lost, "redis has lost requests, they are sent again");
                bell.ring();
            }
            Some(Err(error)) => tracing::warn!(%error, "not looked for requests that redis has lost"),
        }
    }
    Ok(())
}

/// Looks through all requests that are with Redis. Returns how many it had lost.
async fn sweep(db: &Db, queue: &LlmQueue, age_ms: u64) -> anyhow::Result<u64> {
    let age_s = age_ms as f64 / 1_000.0;
    let mut after = Uuid::nil();
    let mut lost = 0;
    loop {
        let page = requests::with_redis(db, age_s, after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(lost) };
        after = last.id;
        let mut by_priority: BTreeMap<Priority, Vec<QueuedRequest>> = BTreeMap::new();
        for request in page {
            by_priority.entry(request.priority.parse().unwrap_or(Priority::Normal)).or_default().push(request);
        }
        for (priority, requests) in by_priority {
            lost += send_again(db, queue, priority, requests).await?;
        }
    }
}

async fn send_again(
    db: &Db,
    queue: &LlmQueue,
    priority: Priority,
    requests: Vec<QueuedRequest>,
) -> anyhow::Result<u64> {
    let ids: Vec<Uuid> = requests.iter().map(|request| request.id).collect();
    let known = queue.knows(priority, &ids).await?;
    let unknown: Vec<QueuedRequest> =
        requests.into_iter().zip(known).filter(|(_, known)| !known).map(|(request, _)| request).collect();
    if unknown.is_empty() {
        return Ok(0);
    }
    // A worker may have finished some of them since they were read: then Redis is right not to
    // know them, and the update passes them by. What it forgets of those is of no use any more.
    let ids: Vec<Uuid> = unknown.iter().map(|request| request.id).collect();
    queue.forget(priority, &ids).await?;
    Ok(requests::lost(db, &unknown).await?)
}
