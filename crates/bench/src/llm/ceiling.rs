//! The same messages, sent straight.

use std::time::Duration;

use anyhow::Context as _;
use futures::future::try_join_all;
use tokio::time::Instant;
use uuid::Uuid;
use waybill_llm_queue::Message;

use super::resp::{Connection, Pipeline};

/// A stream that no worker reads.
const STREAM: &str = "waybill-bench-ceiling";

/// Messages written before their answers are read: as many as the queue sends at once.
const BATCH: usize = 500;

/// How many connections are tried; the best of them is the ceiling. One waits for its answers
/// while the server waits for it. Redis takes one command at a time, so a third adds nothing.
pub(super) const CONNECTIONS: [usize; 2] = [1, 2];

/// Adds the messages to a stream of their own, and returns the time that took.
pub(super) async fn send(url: &str, messages: &[Message], connections: usize) -> anyhow::Result<Duration> {
    let pipelines: Vec<Pipeline> = messages.chunks(BATCH).map(pipeline).collect();
    let mut open = Vec::with_capacity(connections);
    for _ in 0..connections {
        open.push(Connection::open(url).await?);
    }
    let began = Instant::now();
    try_join_all(open.iter_mut().enumerate().map(async |(number, connection)| {
        for pipeline in pipelines.iter().skip(number).step_by(connections) {
            connection.call(pipeline).await?;
        }
        anyhow::Ok(())
    }))
    .await
    .context("send the messages")?;
    Ok(began.elapsed())
}

/// Writes messages with the fields that the queue gives them.
fn pipeline(messages: &[Message]) -> Pipeline {
    let mut pipeline = Pipeline::default();
    for message in messages {
        let (request, project) = (message.request_id.to_string(), message.project_id.to_string());
        let job = message.job_id.as_ref().map(Uuid::to_string);
        let mut words = vec!["XADD", STREAM, "*", "request_id", &request, "project_id", &project];
        if let Some(job) = &job {
            words.extend(["job_id", job]);
        }
        pipeline.push(&words);
    }
    pipeline
}
