//! The sink that keeps a message in Redis for each request that waits for a language model.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use async_trait::async_trait;
use tokio::time::timeout;
use tracing::Span;
use uuid::Uuid;
use waybill_domain::{ErrorClass, Kind, SinkName};
use waybill_llm_queue::{LlmQueue, Message, Priority, QueueError, Sent};
use waybill_outbox::{DeliveryError, Key, Permit, Sink};
use waybill_storage::{
    Db,
    requests::{self, PendingRequest},
    settle::Confirmed,
};

use crate::signals::delivery_span;

/// How long a full stream is left alone: workers take some messages a second at best.
const FULL_WAIT: std::time::Duration = std::time::Duration::from_secs(1);

/// Delivers LLM requests to the queue.
pub(crate) struct LlmSink {
    db: Db,
    queue: LlmQueue,
}

impl LlmSink {
    pub(crate) const fn new(db: Db, queue: LlmQueue) -> Self {
        Self { db, queue }
    }

    /// Sends the requests of one priority; each has its message when this returns.
    async fn send(
        &self,
        priority: Priority,
        rows: &[PendingRequest],
        permit: &Permit,
        sent: &mut HashMap<Uuid, String>,
    ) -> Result<(), DeliveryError> {
        let messages: Vec<Message> = rows
            .iter()
            .map(|row| Message {
                request_id: row.id,
                project_id: row.project_id.as_uuid(),
                job_id: Some(row.job_id.as_uuid()),
                headers: row.headers.clone(),
            })
            .collect();
        // Should a message arrive after the lease has ended, it is a second message of a
        // request that has one: the queue drops it, and a worker would.
        let answers = match timeout(permit.time_left()?, self.queue.send(priority, &messages)).await {
            Ok(answers) => answers.map_err(|error| failure(&error))?,
            Err(_) => return Err(DeliveryError::new(ErrorClass::Unknown, "redis did not answer within the lease")),
        };
        let mut is_full = answers.len() < rows.len();
        for (row, answer) in rows.iter().zip(answers) {
            match answer {
                Sent::Added(id) | Sent::Known(id) => {
                    sent.insert(row.id, id);
                }
                Sent::Full => is_full = true,
            }
        }
        if is_full {
            let mut error = DeliveryError::new(
                ErrorClass::Throttled,
                format!("the stream of priority {priority} is full: it takes more as workers answer what it holds"),
            );
            error.retry_after = Some(FULL_WAIT);
            return Err(error);
        }
        Ok(())
    }
}

#[async_trait]
impl Sink for LlmSink {
    fn name(&self) -> SinkName {
        SinkName::Llm
    }

    fn span(&self, keys: &[Key], origins: &[Arc<str>]) -> Span {
        delivery_span(SinkName::Llm, keys, origins)
    }

    async fn deliver(&self, keys: &[Key], permit: &Permit) -> Result<Vec<Confirmed>, DeliveryError> {
        let ids: Vec<Uuid> = keys.iter().map(|key| key.id).collect();
        let rows = requests::pending(&self.db, &ids)
            .await
            .map_err(|error| DeliveryError::new(ErrorClass::Transient, format!("load the requests: {error}")))?;
        let versions: HashMap<Uuid, i64> = rows.iter().map(|row| (row.id, row.version)).collect();
        let mut by_priority: BTreeMap<Priority, Vec<PendingRequest>> = BTreeMap::new();
        for row in rows {
            // The schema allows these names and no others.
            let priority = row.priority.parse().unwrap_or(Priority::Normal);
            by_priority.entry(priority).or_default().push(row);
        }
        let mut sent = HashMap::new();
        for (priority, rows) in by_priority {
            self.send(priority, &rows, permit, &mut sent).await?;
        }
        Ok(ids
            .into_iter()
            .map(|key| Confirmed {
                kind: Kind::LlmRequest,
                key,
                version: versions.get(&key).copied(),
                reference: sent.remove(&key),
                generation: 0,
            })
            .collect())
    }

    async fn probe(&self) -> Result<(), DeliveryError> {
        self.queue.stats().await.map(drop).map_err(|error| failure(&error))
    }
}

fn failure(error: &QueueError) -> DeliveryError {
    // A key is never at fault: messages differ in their ids alone.
    let class = match error.class() {
        ErrorClass::Permanent => ErrorClass::Transient,
        class => class,
    };
    DeliveryError::new(class, error.to_string())
}
