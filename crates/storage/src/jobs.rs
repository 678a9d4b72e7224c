//! Jobs: what somebody asked to have extracted, and how far it is.

use chrono::{DateTime, Utc};
use serde_json::Value;
use waybill_domain::{JobId, JobState, ProjectId};

use crate::{Db, Result, requests::EntityCounts, sources::begin};

/// What a job is about.
#[derive(Debug, Clone, PartialEq)]
pub struct NewJob {
    /// The id; a job that exists under it is left as it is.
    pub id: JobId,
    /// Whose chunks are read.
    pub project_id: ProjectId,
    /// Only chunks of sources whose uris begin so.
    pub uri_prefix: String,
    /// `high`, `normal` or `low`.
    pub priority: String,
    /// The settings of the extraction, a JSON object.
    pub settings: Value,
    /// Whether chunks that come later are read too, until the job is cancelled or another
    /// one of the project follows.
    pub follow: bool,
}

/// How many requests of a job are where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JobCounts {
    /// Waiting for the relay.
    pub pending: i64,
    /// With Redis.
    pub queued: i64,
    /// With a worker.
    pub running: i64,
    /// Answered, and the answer stored.
    pub done: i64,
    /// Given up.
    pub dead: i64,
    /// Cancelled before an answer.
    pub cancelled: i64,
}

/// A job as it is now.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// Whose chunks are read.
    pub project_id: ProjectId,
    /// The settings of the extraction, a JSON object.
    pub settings: Value,
    /// When it was started.
    pub created_at: DateTime<Utc>,
    /// Derived from the requests.
    pub state: JobState,
    /// Its requests. Those whose chunk has been deleted are gone.
    pub counts: JobCounts,
    /// The same requests, by what became of their entities.
    pub entities: EntityCounts,
    /// Facts that came of it and are still there.
    pub facts: i64,
    /// Facts that broke a rule and were not stored.
    pub facts_dropped: i64,
    /// Tokens of all prompts, of failed calls too.
    pub prompt_tokens: i64,
    /// Tokens of all answers, of failed calls too.
    pub completion_tokens: i64,
    /// By the prices that were configured.
    pub cost: f64,
}

impl JobCounts {
    /// Returns the requests that are still to be answered.
    #[must_use]
    pub const fn open(&self) -> i64 {
        self.pending + self.queued + self.running
    }

    fn state(&self, cancelled: bool) -> JobState {
        if cancelled {
            JobState::Cancelled
        } else if self.open() > 0 && (self.running > 0 || self.done + self.dead > 0) {
            JobState::Running
        } else if self.open() > 0 {
            JobState::Queued
        } else if self.dead > 0 && self.done == 0 {
            JobState::Failed
        } else {
            JobState::Done
        }
    }
}

/// Makes a job and a request for each chunk, in one transaction. Returns whether it is new;
/// done twice, it changes nothing. `headers` go into the outbox rows.
///
/// # Errors
/// If Postgres is away or a statement fails; then there is no job.
pub async fn start(db: &Db, job: &NewJob, headers: Option<&str>) -> Result<bool> {
    let mut tx = begin(db, headers).await?;
    if job.follow {
        // Writers of chunks share this lock: what they have not committed yet is waited for,
        // and read below; what they write afterwards makes its requests itself.
        sqlx::query!("SELECT id FROM project WHERE id = $1 FOR UPDATE", job.project_id.as_uuid())
            .fetch_optional(&mut *tx)
            .await?;
    }
    let made = sqlx::query!(
        "INSERT INTO job (id, project_id, settings) VALUES ($1, $2, $3) ON CONFLICT (id) DO NOTHING",
        job.id.as_uuid(),
        job.project_id.as_uuid(),
        job.settings
    )
    .execute(&mut *tx)
    .await?
    .rows_affected();
    if made == 1 {
        sqlx::query!(
            "INSERT INTO llm_request (id, project_id, chunk_id, job_id, priority)
             SELECT derived_id($1, c.id::text), c.project_id, c.id, $1, $4
             FROM source s JOIN chunk c ON c.source_id = s.id
             WHERE s.project_id = $2 AND starts_with(s.uri, $3) AND s.provisional_until IS NULL
             -- A share lock: a chunk that is being deleted is waited for, not read.
             FOR KEY SHARE OF c",
            job.id.as_uuid(),
            job.project_id.as_uuid(),
            job.uri_prefix,
            job.priority
        )
        .execute(&mut *tx)
        .await?;
        if job.follow {
            sqlx::query!(
                "UPDATE project
                 SET settings = settings || jsonb_build_object(
                     'extraction', jsonb_build_object('job_id', $2::uuid, 'uri_prefix', $3::text))
                 WHERE id = $1",
                job.project_id.as_uuid(),
                job.id.as_uuid(),
                job.uri_prefix
            )
            .execute(&mut *tx)
            .await?;
        }
    }
    tx.commit().await?;
    Ok(made == 1)
}

/// Returns a job, counted now.
///
/// # Errors
/// If Postgres is away or the statement fails.
pub async fn get(db: &Db, id: JobId) -> Result<Option<Job>> {
    Ok(read(db, None, Some(id), None, 1).await?.pop())
}

/// Lists a project's jobs, the newest first, from after the one that was made at `after`.
///
/// # Errors
/// If Postgres is away or the statement fails.
pub async fn list(db: &Db, project: ProjectId, after: Option<(DateTime<Utc>, JobId)>, limit: i64) -> Result<Vec<Job>> {
    read(db, Some(project), None, after, limit).await
}

async fn read(
    db: &Db,
    project: Option<ProjectId>,
    id: Option<JobId>,
    after: Option<(DateTime<Utc>, JobId)>,
    limit: i64,
) -> Result<Vec<Job>> {
    let rows = sqlx::query!(
        r#"SELECT j.id, j.project_id, j.settings, j.created_at, j.cancelled_at IS NOT NULL AS "cancelled!",
                  r.pending AS "pending!", r.queued AS "queued!", r.running AS "running!", r.done AS "done!",
                  r.dead AS "dead!", r.stopped AS "stopped!", r.dropped AS "dropped!", r.prompt AS "prompt!",
                  r.completion AS "completion!", r.cost AS "cost!", r.entities_none AS "entities_none!",
                  r.entities_partial AS "entities_partial!", r.entities_complete AS "entities_complete!",
                  (SELECT count(*) FROM extraction e WHERE e.job_id = j.id) AS "facts!"
           FROM (SELECT * FROM job
                 WHERE ($1::uuid IS NULL OR project_id = $1) AND ($2::uuid IS NULL OR id = $2)
                   AND ($3::timestamptz IS NULL OR (created_at, id) < ($3, $4))
                 ORDER BY created_at DESC, id DESC LIMIT $5) AS j
           CROSS JOIN LATERAL (
               SELECT count(*) FILTER (WHERE state = 'pending') AS pending,
                      count(*) FILTER (WHERE state = 'queued') AS queued,
                      count(*) FILTER (WHERE state = 'running') AS running,
                      count(*) FILTER (WHERE state = 'done') AS done,
                      count(*) FILTER (WHERE state = 'dead') AS dead,
                      count(*) FILTER (WHERE state = 'cancelled') AS stopped,
                      count(*) FILTER (WHERE entities_state = 'none') AS entities_none,
                      count(*) FILTER (WHERE entities_state = 'partial') AS entities_partial,
                      count(*) FILTER (WHERE entities_state = 'complete') AS entities_complete,
                      coalesce(sum(facts_dropped), 0)::bigint AS dropped,
                      coalesce(sum(prompt_tokens), 0)::bigint AS prompt,
                      coalesce(sum(completion_tokens), 0)::bigint AS completion,
                      coalesce(sum(cost), 0)::float8 AS cost
               FROM llm_request WHERE job_id = j.id) AS r
           ORDER BY j.created_at DESC, j.id DESC"#,
        project.map(ProjectId::as_uuid),
        id.map(JobId::as_uuid),
        after.map(|(at, _)| at),
        after.map(|(_, id)| id.as_uuid()),
        limit
    )
    .fetch_all(db.pool())
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let counts = JobCounts {
                pending: row.pending,
                queued: row.queued,
                running: row.running,
                done: row.done,
                dead: row.dead,
                cancelled: row.stopped,
            };
            Job {
                id: JobId::from_uuid(row.id),
                project_id: ProjectId::from_uuid(row.project_id),
                settings: row.settings,
                created_at: row.created_at,
                state: counts.state(row.cancelled),
                counts,
                entities: EntityCounts {
                    none: row.entities_none,
                    partial: row.entities_partial,
                    complete: row.entities_complete,
                },
                facts: row.facts,
                facts_dropped: row.dropped,
                prompt_tokens: row.prompt,
                completion_tokens: row.completion,
                cost: row.cost,
            }
        })
        .collect())
}

/// Cancels what is still open of a job. Returns whether there is such a job. What a worker
/// has under way ends without effect.
///
/// # Errors
/// If Postgres is away or a statement fails; then nothing is cancelled.
pub async fn cancel(db: &Db, id: JobId) -> Result<bool> {
    let mut tx = db.pool().begin().await?;
    let found = sqlx::query!("UPDATE job SET cancelled_at = coalesce(cancelled_at, now()) WHERE id = $1", id.as_uuid())
        .execute(&mut *tx)
        .await?
        .rows_affected();
    sqlx::query!(
        "UPDATE llm_request SET state = 'cancelled', updated_at = now()
         WHERE job_id = $1 AND state IN ('pending', 'queued', 'running')",
        id.as_uuid()
    )
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(found == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_says_what_the_requests_say() {
        let counts = |pending, running, done, dead| JobCounts { pending, running, done, dead, ..JobCounts::default() };
        assert_eq!(counts(2, 0, 0, 0).state(false), JobState::Queued);
        assert_eq!(counts(1, 0, 1, 0).state(false), JobState::Running);
        assert_eq!(counts(0, 1, 0, 0).state(false), JobState::Running);
        assert_eq!(counts(0, 0, 2, 1).state(false), JobState::Done);
        assert_eq!(counts(0, 0, 0, 1).state(false), JobState::Failed);
        assert_eq!(counts(0, 0, 0, 0).state(false), JobState::Done, "there was nothing to do");
        assert_eq!(counts(1, 0, 0, 0).state(true), JobState::Cancelled);
    }
}
