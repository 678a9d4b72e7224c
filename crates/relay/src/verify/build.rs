//! Changing the model: a collection is built beside the live one, and takes its place when it is
//! equal to Postgres.
//!
//! From the moment the build stands in Postgres, each delivery that begins goes to both. A walk
//! then has every key delivered once more. Whatever was under way at the start is covered by its
//! key's row of the walk. So the new collection gets equal, and stays so; a comparison says when.

use std::time::Duration;

use tokio::time::sleep;
use uuid::Uuid;
use waybill_domain::CrashPoint;
use waybill_storage::{
    index::{self, Build},
    outbox,
};

use super::{
    Pass, SINK, Verifier, VerifyError,
    reindex::{Reindexing, Scope},
    report::Report,
};
use crate::embedder::Model;

/// How long both are written to after the alias was moved. Searches know its old target for 5 s.
const BOTH_AFTER_MOVE: Duration = Duration::from_secs(15);
/// Between two looks at how far delivery is.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A change of the model, step by step. Any relay can go on with it.
#[derive(Debug)]
pub(crate) struct Rebuild {
    build: Build,
    model: Model,
    at: At,
}

#[derive(Debug)]
enum At {
    Queueing(Box<Reindexing>),
    /// Until everything at or below `upto` is settled; it began at `from`.
    Delivering {
        from: i64,
        upto: i64,
    },
    Comparing(Box<Pass>),
    Moved,
    End,
}

/// What a rebuild is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Queueing,
    Delivering,
    Comparing,
    Moved,
}

/// Why a build can't begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildError {
    #[error(transparent)]
    Verify(#[from] VerifyError),
    #[error("a collection is being built for the model {0:?}: let that end, or cancel it")]
    Other(String),
    #[error("the alias is not there: nothing was delivered yet, and nothing has to be changed")]
    NothingLive,
    #[error("the collection is in use: change to another model instead")]
    InUse,
    #[error("no collection is being built")]
    None,
}

impl From<waybill_storage::StorageError> for BuildError {
    fn from(error: waybill_storage::StorageError) -> Self {
        Self::Verify(error.into())
    }
}

impl From<waybill_vectors::VectorError> for BuildError {
    fn from(error: waybill_vectors::VectorError) -> Self {
        Self::Verify(error.into())
    }
}

impl Rebuild {
    pub(crate) fn phase(&self) -> Phase {
        match &self.at {
            At::Queueing(_) => Phase::Queueing,
            At::Delivering { .. } => Phase::Delivering,
            At::Comparing(_) => Phase::Comparing,
            At::Moved | At::End => Phase::Moved,
        }
    }

    pub(crate) fn keys(&self) -> u64 {
        match &self.at {
            At::Queueing(work) => work.keys,
            _ => self.build.keys.unsigned_abs(),
        }
    }
}

impl Verifier {
    /// Begins to change to `model`, or goes on with it. `None` if it is the live one already.
    ///
    /// # Errors
    /// If another change is under way, or a peer does not answer.
    pub(crate) async fn begin_build(&self, model: &str) -> Result<Option<Rebuild>, BuildError> {
        let models = self.sink.models().await.map_err(VerifyError::from)?;
        let model = models.named(model).map_err(VerifyError::from)?;
        self.delete_leftover().await?;
        let live = self.vectors.alias_target(&self.alias).await?.ok_or(BuildError::NothingLive)?;
        let known = index::read(&self.db).await?.build;
        if live == model.collection.name && known.is_none() {
            return Ok(None);
        }
        if known.is_none() {
            // What an earlier build left, which was cancelled, would have to be compared away.
            self.vectors.delete_collection(&model.collection.name).await?;
        }
        let build = index::begin_build(&self.db, &model.name).await?.ok_or(BuildError::None)?;
        if build.model != model.name {
            return Err(BuildError::Other(build.model));
        }
        tracing::info!(model = model.name, position = %build.position, "a collection is built for another model");
        let at = if live == model.collection.name {
            At::Moved
        } else {
            let work = self.go_on_reindexing(Scope::All, build.position, build.keys.unsigned_abs());
            At::Queueing(Box::new(work))
        };
        Ok(Some(Rebuild { build, model, at }))
    }

    /// Does the next step; false if there is none left. One that has failed can be done again.
    ///
    /// # Errors
    /// If a peer does not answer, or the build was cancelled meanwhile.
    pub(crate) async fn step_build(&self, work: &mut Rebuild) -> Result<bool, BuildError> {
        match &mut work.at {
            At::Queueing(walk) => {
                if self.step_reindex(walk).await? {
                    let position = walk.position().unwrap_or(Uuid::max());
                    let keys = i64::try_from(walk.keys).unwrap_or(i64::MAX);
                    work.build.keys = keys;
                    if !index::advance_build(&self.db, &work.build, position, keys).await? {
                        return Err(BuildError::None);
                    }
                } else {
                    work.at = self.wait_for_delivery().await?;
                }
            }
            At::Delivering { upto, .. } => {
                if outbox::closed_seq(&self.db, SINK).await? >= *upto {
                    let mut pass = self.begin(None, true, Uuid::nil(), Report::default());
                    pass.collection.clone_from(&work.model.collection.name);
                    work.at = At::Comparing(Box::new(pass));
                } else {
                    sleep(LOOK_EVERY).await;
                }
            }
            At::Comparing(pass) => {
                if !self.step(pass).await? {
                    let tally = &pass.report.tally;
                    if tally.found() > 0 {
                        tracing::info!(findings = ?tally.findings, "the new collection is not equal yet");
                        work.at = self.wait_for_delivery().await?;
                    } else {
                        self.move_alias(work).await?;
                        work.at = At::Moved;
                    }
                }
            }
            At::Moved => {
                index::moved(&self.db, &work.build).await?;
                sleep(BOTH_AFTER_MOVE).await;
                index::end_build(&self.db, &work.build.model, false).await?;
                self.delete_leftover().await?;
                work.at = At::End;
            }
            At::End => return Ok(false),
        }
        Ok(true)
    }

    async fn wait_for_delivery(&self) -> Result<At, VerifyError> {
        let from = outbox::closed_seq(&self.db, SINK).await?;
        Ok(At::Delivering { from, upto: outbox::last_seq(&self.db).await? })
    }

    /// How much of its phase is done, 0 to 1.
    ///
    /// # Errors
    /// If Postgres does not answer.
    pub(crate) async fn build_share(&self, work: &Rebuild) -> Result<f64, VerifyError> {
        Ok(match &work.at {
            At::Queueing(walk) => walk.share(),
            At::Delivering { from, upto } => {
                let done = outbox::closed_seq(&self.db, SINK).await? - from;
                (done as f64 / (upto - from).max(1) as f64).clamp(0.0, 1.0)
            }
            At::Comparing(pass) => pass.share(),
            At::Moved => 0.0,
            At::End => 1.0,
        })
    }

    async fn move_alias(&self, work: &Rebuild) -> Result<(), BuildError> {
        // Before the alias is moved: afterwards nobody would know what the old one was.
        if let Some(live) = self.vectors.alias_target(&self.alias).await?
            && live != work.model.collection.name
        {
            index::leave_collection(&self.db, &work.build, &live).await?;
        }
        // It may have been cancelled: then its collection is not delivered to any more.
        let build = index::read(&self.db).await?.build;
        if build.is_none_or(|build| build.started_at != work.build.started_at) {
            return Err(BuildError::None);
        }
        self.vectors.point_alias(&self.alias, &work.model.collection.name).await?;
        CrashPoint::AliasMoved.hit();
        tracing::info!(model = work.model.name, "searches use the new collection");
        Ok(())
    }

    /// Ends a build and deletes its collection. Returns its model.
    ///
    /// # Errors
    /// If there is none, its alias was moved, or a peer does not answer.
    pub(crate) async fn cancel_build(&self) -> Result<String, BuildError> {
        let build = index::read(&self.db).await?.build.ok_or(BuildError::None)?;
        let models = self.sink.models().await.map_err(VerifyError::from)?;
        let model = models.named(&build.model).map_err(VerifyError::from)?;
        let live = self.vectors.alias_target(&self.alias).await?;
        if live.as_ref() == Some(&model.collection.name) || !index::end_build(&self.db, &build.model, true).await? {
            return Err(BuildError::InUse);
        }
        self.vectors.delete_collection(&model.collection.name).await?;
        tracing::info!(model = build.model, "the build was cancelled");
        Ok(build.model)
    }

    /// Deletes the collection that a finished build has replaced.
    async fn delete_leftover(&self) -> Result<(), BuildError> {
        let Some(leftover) = index::read(&self.db).await?.leftover else { return Ok(()) };
        if self.vectors.alias_target(&self.alias).await?.as_ref() != Some(&leftover) {
            self.vectors.delete_collection(&leftover).await?;
            tracing::info!(collection = leftover, "the collection of the earlier model is deleted");
        }
        index::forget_leftover(&self.db, &leftover).await?;
        Ok(())
    }
}
