//! Has everything delivered again, whether the sink shows it or not.

use uuid::Uuid;
use waybill_domain::{ProjectId, SourceId};
use waybill_storage::{
    repair::{self, Redelivery},
    verify,
};

use super::{
    SINK, Verifier, VerifyError,
    pace::Pace,
    walk::{share, successor},
};

/// What is to be delivered again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    All,
    Project(ProjectId),
    Source(SourceId),
}

/// A reindexing, step by step.
#[derive(Debug)]
pub(crate) struct Reindexing {
    scope: Scope,
    /// `None` at the end.
    from: Option<Uuid>,
    pub(crate) keys: u64,
    pace: Pace,
}

impl Reindexing {
    /// Where another can go on; `None` at the end.
    pub(crate) const fn position(&self) -> Option<Uuid> {
        self.from
    }

    /// How much is done, 0 to 1.
    pub(crate) fn share(&self) -> f64 {
        self.from.map_or(1.0, share)
    }
}

impl Verifier {
    pub(crate) fn begin_reindex(&self, scope: Scope) -> Reindexing {
        self.go_on_reindexing(scope, Uuid::nil(), 0)
    }

    /// As [`Verifier::begin_reindex`], where another left it.
    pub(crate) fn go_on_reindexing(&self, scope: Scope, from: Uuid, keys: u64) -> Reindexing {
        // At the last id of all, there is nothing left: no key has it.
        let from = (from != Uuid::max()).then_some(from);
        Reindexing { scope, from, keys, pace: Pace::new(self.config.rows_per_second) }
    }

    /// Makes outbox rows of the next range of keys; false if there is none left.
    ///
    /// # Errors
    /// If Postgres does not answer. The step can be done again.
    pub(crate) async fn step_reindex(&self, work: &mut Reindexing) -> Result<bool, VerifyError> {
        let Some(from) = work.from else { return Ok(false) };
        let limit = i64::from(self.config.page_keys_max);
        let rows = match work.scope {
            Scope::All => verify::rows(&self.db, None, from, limit).await?,
            Scope::Project(project) => verify::rows(&self.db, Some(project), from, limit).await?,
            Scope::Source(source) => verify::rows_of_source(&self.db, source, from, limit).await?,
        };
        let count = rows.len();
        let next =
            rows.last().filter(|_| count >= self.config.page_keys_max as usize).and_then(|last| successor(last.id));
        let keys: Vec<Redelivery> = rows
            .into_iter()
            .map(|row| Redelivery { kind: row.kind, key: row.id, project_id: row.project_id, claim: None, ahead: None })
            .collect();
        repair::redeliver(&self.db, SINK, &keys).await?;
        work.keys += count as u64;
        work.from = next;
        work.pace.wait(count).await;
        Ok(true)
    }
}
