//! What became of each passage.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;
use waybill_domain::{JobId, ProjectId};

use crate::{Db, Result, StorageError};

/// Where a request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestState {
    /// Waits for the relay.
    Pending,
    /// With Redis.
    Queued,
    /// With a worker.
    Running,
    /// Answered, and the answer is stored.
    Done,
    /// Given up.
    Dead,
    /// Cancelled before an answer.
    Cancelled,
}

/// What became of the entities that an answer named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EntitiesState {
    /// None is stored: there is no answer yet, it named none, or all were dropped.
    #[default]
    None,
    /// Some are stored and some were dropped.
    Partial,
    /// All are stored.
    Complete,
}

/// How many requests are where with their entities.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EntityCounts {
    /// None is stored.
    pub none: i64,
    /// Some are stored and some were dropped.
    pub partial: i64,
    /// All are stored.
    pub complete: i64,
}

/// A request as it is now.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Its id.
    pub id: Uuid,
    /// What it was made for.
    pub job_id: JobId,
    /// The passage.
    pub chunk_id: Uuid,
    /// The uri of the passage's source.
    pub source_uri: String,
    /// Where it stands.
    pub state: RequestState,
    /// Calls that failed and count.
    pub attempts: i32,
    /// Why the last call failed, if one did.
    pub last_error: Option<String>,
    /// What that means for a retry.
    pub last_error_class: Option<String>,
    /// The model that answered.
    pub model: Option<String>,
    /// Tokens of all prompts, of failed calls too.
    pub prompt_tokens: i64,
    /// Tokens of all answers, of failed calls too.
    pub completion_tokens: i64,
    /// By the prices that were configured.
    pub cost: f64,
    /// Facts of the passage that this job made and that are still there.
    pub facts: i64,
    /// Facts that were not kept, by reason.
    pub facts_dropped: BTreeMap<String, i64>,
    /// What became of the entities.
    pub entities_state: EntitiesState,
    /// Entities that were not kept, by reason.
    pub entities_dropped: BTreeMap<String, i64>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
}

/// Which requests a listing is about. Without a job or a chunk it is about none: a project has
/// a request for each passage and job, and nobody reads those in one list.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RequestFilter {
    /// Whose requests.
    pub project_id: ProjectId,
    /// Only those of this job.
    pub job_id: Option<JobId>,
    /// Only those of this chunk.
    pub chunk_id: Option<Uuid>,
    /// Only those that stand here.
    pub state: Option<RequestState>,
}

impl RequestState {
    /// Every state, in the order of a request's life.
    pub const ALL: [Self; 6] = [Self::Pending, Self::Queued, Self::Running, Self::Done, Self::Dead, Self::Cancelled];

    /// Returns the name used in SQL.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Done => "done",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
        }
    }
}

impl EntitiesState {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::None, Self::Partial, Self::Complete];

    /// Says what became of the entities of an answer.
    #[must_use]
    pub const fn of(stored: usize, dropped: i64) -> Self {
        match (stored, dropped) {
            (0, _) => Self::None,
            (_, 0) => Self::Complete,
            _ => Self::Partial,
        }
    }

    /// Returns the name used in SQL.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Partial => "partial",
            Self::Complete => "complete",
        }
    }
}

/// Lists requests by id, from after `after`.
///
/// # Errors
/// If Postgres is away or the statement fails.
pub async fn list(db: &Db, filter: RequestFilter, after: Uuid, limit: i64) -> Result<Vec<Request>> {
    let rows = sqlx::query!(
        r#"SELECT r.id, r.job_id, r.chunk_id, s.uri, r.state, r.attempts, r.last_error, r.last_error_class, r.model,
                  r.prompt_tokens, r.completion_tokens, r.cost, r.entities_state, r.entities_dropped,
                  r.facts_dropped_by, r.created_at, r.updated_at,
                  (SELECT count(*) FROM extraction e
                   WHERE e.chunk_id = r.chunk_id AND e.job_id = r.job_id) AS "facts!"
           FROM llm_request r JOIN chunk c ON c.id = r.chunk_id JOIN source s ON s.id = c.source_id
           WHERE r.project_id = $1 AND r.id > $2
             AND (r.job_id = $3 OR $3::uuid IS NULL AND $4::uuid IS NOT NULL)
             AND ($4::uuid IS NULL OR r.chunk_id = $4)
             AND ($5::text IS NULL OR r.state = $5)
           ORDER BY r.id LIMIT $6"#,
        filter.project_id.as_uuid(),
        after,
        filter.job_id.map(JobId::as_uuid),
        filter.chunk_id,
        filter.state.map(RequestState::as_str),
        limit
    )
    .fetch_all(db.pool())
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Request {
                id: row.id,
                job_id: JobId::from_uuid(row.job_id),
                chunk_id: row.chunk_id,
                source_uri: row.uri,
                state: known(RequestState::ALL, RequestState::as_str, &row.state)?,
                attempts: row.attempts,
                last_error: row.last_error,
                last_error_class: row.last_error_class,
                model: row.model,
                prompt_tokens: row.prompt_tokens,
                completion_tokens: row.completion_tokens,
                cost: row.cost,
                facts: row.facts,
                facts_dropped: reasons(row.facts_dropped_by),
                entities_state: known(EntitiesState::ALL, EntitiesState::as_str, &row.entities_state)?,
                entities_dropped: reasons(row.entities_dropped),
                created_at: row.created_at,
                updated_at: row.updated_at,
            })
        })
        .collect()
}

fn known<T: Copy, const N: usize>(all: [T; N], name: fn(T) -> &'static str, value: &str) -> Result<T> {
    let corrupt = || StorageError::Corrupt(format!("a request in the state {value:?}"));
    all.into_iter().find(|state| name(*state) == value).ok_or_else(corrupt)
}

fn reasons(counts: Option<Value>) -> BTreeMap<String, i64> {
    let Some(Value::Object(counts)) = counts else { return BTreeMap::new() };
    counts.into_iter().filter_map(|(reason, count)| Some((reason, count.as_i64()?))).collect()
}
