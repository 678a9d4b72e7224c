//! Compares Qdrant and the queue with Postgres, and has what differs delivered again.
//!
//! The stores are walked in the order of ids, a page of each at a time. They are read one after
//! the other while everything goes on, so a difference is only a suspicion. A suspect is looked
//! at again: what Postgres says of it in one snapshot, then the point, then Postgres once more.
//! If that says the same, nothing has changed meanwhile, and the point is what it should not be.

pub(crate) mod build;
pub(crate) mod compare;
mod pace;
mod queue;
mod reindex;
pub(crate) mod report;
pub(crate) mod scrub;
#[cfg(test)]
mod tests;
pub(crate) mod walk;

use std::{collections::HashMap, sync::Arc};

use uuid::Uuid;
use waybill_domain::{ErrorClass, Kind, ProjectId, SinkName};
use waybill_llm_queue::{LlmQueue, QueueError};
use waybill_outbox::DeliveryError;
use waybill_storage::{
    Db, StorageError,
    repair::{self, Redelivery},
    verify::{self, Claim, KeyState, MirroredRow},
};
use waybill_vectors::{PLAUSIBLE_LEAD, StoredPoint, VectorError, Vectors};

pub(crate) use self::reindex::{Reindexing, Scope};
use self::{
    compare::{Verdict, agree, judge},
    pace::Pace,
    report::{Finding, FindingKind, Report},
    walk::{Keyed, Page, line_up, share},
};
use crate::{config::VerifyConfig, qdrant_sink::QdrantSink};

const SINK: SinkName = SinkName::Qdrant;

/// Why a comparison did not get on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerifyError {
    #[error("read or write postgres: {0}")]
    Storage(#[from] StorageError),
    #[error("read qdrant: {0}")]
    Vectors(#[from] VectorError),
    #[error("ask the queue: {0}")]
    Queue(#[from] QueueError),
    #[error("ask the embedding service: {0}")]
    Embedding(#[from] DeliveryError),
}

impl VerifyError {
    pub(crate) fn class(&self) -> ErrorClass {
        match self {
            Self::Storage(error) => error.class(),
            Self::Vectors(error) => error.class(),
            Self::Queue(error) => error.class(),
            Self::Embedding(error) => error.class,
        }
    }

    /// Names the store that is at fault, for callers.
    pub(crate) const fn store(&self) -> &'static str {
        match self {
            Self::Storage(_) => "postgres",
            Self::Vectors(_) => "qdrant",
            Self::Queue(_) => "redis",
            Self::Embedding(_) => "the embedding service",
        }
    }
}

/// What is compared, and with what.
#[derive(Clone)]
pub(crate) struct Verifier {
    pub(crate) db: Db,
    pub(crate) vectors: Vectors,
    pub(crate) queue: LlmQueue,
    /// The alias of the live collection.
    pub(crate) alias: String,
    pub(crate) sink: Arc<QdrantSink>,
    pub(crate) config: VerifyConfig,
}

/// One comparison, step by step.
#[derive(Debug)]
pub(crate) struct Pass {
    /// Everything, if there is none.
    project: Option<ProjectId>,
    repair: bool,
    /// The collection, or its alias.
    collection: String,
    at: At,
    pub(crate) report: Report,
    pace: Pace,
}

/// Where a pass is. Both go by id, from the one given on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Points(Uuid),
    Queue(Uuid),
    End,
}

impl Pass {
    /// How much is done, 0 to 1. The queue is short.
    pub(crate) fn share(&self) -> f64 {
        match self.at {
            At::Points(from) => share(from),
            At::Queue(_) | At::End => 1.0,
        }
    }

    /// Leaves out what is still to come.
    pub(crate) const fn end(&mut self) {
        self.at = At::End;
    }

    /// Where another relay can go on with it.
    pub(crate) fn position(&self) -> Uuid {
        match self.at {
            At::Points(from) => from,
            At::Queue(_) | At::End => Uuid::max(),
        }
    }
}

impl Verifier {
    /// Begins a comparison at `position`, with what was counted before.
    pub(crate) fn begin(&self, project: Option<ProjectId>, repair: bool, position: Uuid, report: Report) -> Pass {
        let (collection, pace) = (self.alias.clone(), Pace::new(self.config.rows_per_second));
        Pass { project, repair, collection, at: At::Points(position), report, pace }
    }

    /// Compares the next range of keys; false if there is none left. A pass whose step has failed
    /// or was dropped can be gone on with.
    ///
    /// # Errors
    /// If a store does not answer.
    pub(crate) async fn step(&self, pass: &mut Pass) -> Result<bool, VerifyError> {
        let looked = match pass.at {
            At::Points(from) => self.step_points(pass, from).await?,
            At::Queue(from) => self.step_queue(pass, from).await?,
            At::End => return Ok(false),
        };
        pass.pace.wait(looked).await;
        Ok(true)
    }

    async fn step_points(&self, pass: &mut Pass, from: Uuid) -> Result<usize, VerifyError> {
        let limit = self.config.page_keys_max;
        let points = self.points(&pass.collection, pass.project, from, limit).await?;
        let rows = verify::rows(&self.db, pass.project, from, limit.into()).await?;
        let rows = Page::limited(rows, limit as usize);
        let claims = match pass.project {
            None => Page::limited(verify::claims(&self.db, SINK, from, limit.into()).await?, limit as usize),
            // Claims don't say of which project they are.
            Some(_) => {
                let ids = points.entries.iter().map(Keyed::id).chain(rows.entries.iter().map(Keyed::id));
                let ids: Vec<Uuid> = ids.collect();
                Page { entries: verify::claims_of(&self.db, SINK, &ids).await?, next: None }
            }
        };
        let looked = points.entries.len() + rows.entries.len();
        let (keys, next) = line_up(points, rows, claims);
        let tally = &mut pass.report.tally;
        tally.points += keys.values().filter(|lined| lined.point.is_some()).count() as u64;
        tally.rows += keys.values().filter(|lined| lined.row.is_some()).count() as u64;
        let suspects: Vec<Uuid> = keys
            .into_iter()
            .filter(|(_, lined)| !agree(lined.point.as_ref(), lined.row.as_ref(), lined.claim.as_ref()))
            .map(|(id, _)| id)
            .collect();
        for suspects in suspects.chunks(limit as usize) {
            let (drifted, undelivered) = self.confirm(&pass.collection, suspects).await?;
            pass.report.tally.undelivered += undelivered;
            for (finding, _) in &drifted {
                pass.report.add(finding);
            }
            if pass.repair && !drifted.is_empty() {
                self.repair(&drifted).await?;
                pass.report.tally.repaired += drifted.len() as u64;
            }
        }
        pass.at = next.map_or(At::Queue(Uuid::nil()), At::Points);
        Ok(looked)
    }

    /// Reads points. A collection that isn't there is empty.
    async fn points(
        &self,
        collection: &str,
        project: Option<ProjectId>,
        from: Uuid,
        limit: u32,
    ) -> Result<Page<StoredPoint>, VerifyError> {
        match self.vectors.scroll_points(collection, project, from, limit).await {
            Ok(page) if page.next.is_some_and(|next| next <= from) => {
                Err(VectorError::BadAnswer("a page that begins where the one before did").into())
            }
            Ok(page) => Ok(Page { entries: page.points, next: page.next }),
            Err(VectorError::CollectionMissing(_)) => Ok(Page::default()),
            Err(error) => Err(error.into()),
        }
    }

    /// Looks at suspects again. Returns those that differ, and counts those with changes that are
    /// still to be delivered.
    pub(crate) async fn confirm(
        &self,
        collection: &str,
        suspects: &[Uuid],
    ) -> Result<(Vec<(Finding, KeyState)>, u64), VerifyError> {
        let states = verify::examine(&self.db, SINK, suspects).await?;
        let points = match self.vectors.get_points(collection, suspects).await {
            Ok(points) => points,
            Err(VectorError::CollectionMissing(_)) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let points: HashMap<Uuid, StoredPoint> = points.into_iter().map(|point| (point.id, point)).collect();
        let mut undelivered = 0;
        let mut drifted = Vec::new();
        for state in states {
            let point = points.get(&state.id);
            match judge(&state, point) {
                Verdict::Equal => {}
                Verdict::Undelivered => undelivered += 1,
                Verdict::Drift(kind) => drifted.push((finding(kind, &state, point), state)),
            }
        }
        if drifted.is_empty() {
            return Ok((drifted, undelivered));
        }
        let ids: Vec<Uuid> = drifted.iter().map(|(_, state)| state.id).collect();
        let again = verify::examine(&self.db, SINK, &ids).await?;
        let before = drifted.len();
        // In the same order. What has changed is on its way.
        let still = drifted.into_iter().zip(again).filter(|((_, state), now)| state == now);
        let drifted: Vec<_> = still.map(|(drift, _)| drift).collect();
        undelivered += (before - drifted.len()) as u64;
        Ok((drifted, undelivered))
    }

    async fn repair(&self, drifted: &[(Finding, KeyState)]) -> Result<(), VerifyError> {
        // If the alias is gone, each delivery goes to the collection it knew, and nobody finds it.
        if self.vectors.alias_target(&self.alias).await?.is_none() {
            self.sink.forget_target();
        }
        let ahead = |finding: &Finding| match finding.kind {
            FindingKind::Ahead | FindingKind::Orphan => finding.point_version,
            _ => None,
        };
        let seen: Vec<i64> = drifted.iter().filter_map(|(finding, _)| ahead(finding)).collect();
        if !seen.is_empty() {
            repair::pass_versions(&self.db, &seen, PLAUSIBLE_LEAD).await?;
        }
        let keys: Vec<Redelivery> = drifted
            .iter()
            .map(|(finding, state)| Redelivery {
                kind: finding.key_kind,
                key: finding.id,
                project_id: finding.project_id.unwrap_or_else(|| ProjectId::from_uuid(Uuid::nil())),
                claim: state.claim,
                ahead: if finding.kind == FindingKind::Ahead { finding.point_version } else { None },
            })
            .collect();
        repair::redeliver(&self.db, SINK, &keys).await?;
        Ok(())
    }
}

fn finding(kind: FindingKind, state: &KeyState, point: Option<&StoredPoint>) -> Finding {
    let row = state.row.as_ref();
    // A delivery under another kind than the row's would delete the point; without a row, any
    // will do.
    let of_point = point.and_then(|point| point.kind).filter(|kind| *kind != Kind::LlmRequest);
    let key_kind = row.map(|row| row.kind).or(state.claim.map(|claim| claim.kind)).or(of_point).unwrap_or(Kind::Chunk);
    Finding {
        kind,
        key_kind,
        id: state.id,
        project_id: row.map(|row| row.project_id).or(point.and_then(|point| point.project_id)),
        row_version: row.map(|row| row.version),
        point_version: point.map(|point| point.version),
    }
}

impl Keyed for StoredPoint {
    fn id(&self) -> Uuid {
        self.id
    }
}

impl Keyed for MirroredRow {
    fn id(&self) -> Uuid {
        self.id
    }
}

impl Keyed for Claim {
    fn id(&self) -> Uuid {
        self.key
    }
}
