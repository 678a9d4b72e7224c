//! What Postgres says of LLM requests, for comparing the queue with it.

use uuid::Uuid;
use waybill_domain::{ProjectId, SinkName};

use crate::{Db, Result, requests::QueuedRequest, verify};

/// A request whose answer is still to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenRequest {
    /// Its id.
    pub id: Uuid,
    /// The tenant.
    pub project_id: ProjectId,
    /// `high`, `normal` or `low`.
    pub priority: String,
    /// The message that Redis confirmed; `None` while the request waits to be sent.
    pub stream_id: Option<String>,
}

impl OpenRequest {
    /// Returns the request as Redis should know it; `None` while it waits to be sent.
    #[must_use]
    pub fn queued(&self) -> Option<QueuedRequest> {
        let stream_id = self.stream_id.clone()?;
        Some(QueuedRequest { id: self.id, priority: self.priority.clone(), stream_id })
    }
}

/// Lists requests that are pending, queued or running, by id, from `from` on (inclusive), at
/// most `limit`.
///
/// # Errors
/// If the statement fails.
pub async fn open(db: &Db, project: Option<ProjectId>, from: Uuid, limit: i64) -> Result<Vec<OpenRequest>> {
    let rows = sqlx::query!(
        r#"SELECT id, project_id, priority, CASE WHEN state <> 'pending' THEN stream_id END AS stream_id FROM llm_request
           WHERE state IN ('pending', 'queued', 'running') AND (state = 'pending' OR stream_id IS NOT NULL)
             AND id >= $1 AND ($2::uuid IS NULL OR project_id = $2)
           ORDER BY id LIMIT $3"#,
        from,
        project.map(ProjectId::as_uuid),
        limit
    )
    .fetch_all(db.pool())
    .await?;
    let open = |id, project_id, priority, stream_id| OpenRequest { id, project_id, priority, stream_id };
    Ok(rows
        .into_iter()
        .map(|row| open(row.id, ProjectId::from_uuid(row.project_id), row.priority, row.stream_id))
        .collect())
}

/// Keeps those of `requests` that are still as they were read: of those that wait to be sent,
/// the ones of which no delivery is to come.
///
/// # Errors
/// If a statement fails.
pub async fn unchanged(db: &Db, requests: Vec<OpenRequest>) -> Result<Vec<OpenRequest>> {
    let ids: Vec<Uuid> = requests.iter().map(|request| request.id).collect();
    let mut tx = db.pool().begin().await?;
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY").execute(&mut *tx).await?;
    let now = sqlx::query!(
        r#"SELECT id, state = 'pending' AS "is_pending!", stream_id FROM llm_request
           WHERE id = ANY($1) AND state IN ('pending', 'queued', 'running')"#,
        &ids
    )
    .fetch_all(&mut *tx)
    .await?;
    let waiting: Vec<Uuid> = now.iter().filter(|row| row.is_pending).map(|row| row.id).collect();
    let pending = if waiting.is_empty() {
        std::collections::HashSet::new()
    } else {
        verify::pending(&mut tx, SinkName::Llm, &waiting).await?
    };
    tx.commit().await?;
    Ok(requests
        .into_iter()
        .filter(|request| {
            now.iter().find(|row| row.id == request.id).is_some_and(|row| match &request.stream_id {
                Some(stream_id) => !row.is_pending && row.stream_id.as_ref() == Some(stream_id),
                None => row.is_pending && !pending.contains(&row.id),
            })
        })
        .collect())
}
