//! Where points go: the live collection, and one that is being built beside it.

use std::sync::{Arc, Mutex, PoisonError};

use waybill_domain::ErrorClass;
use waybill_outbox::DeliveryError;
use waybill_storage::{
    Db, StorageError,
    index::{self, IndexState},
    scrub,
};
use waybill_vectors::{VectorError, Vectors};

use crate::embedder::{Embedder, Model, Models};

/// The collections that a delivery writes to.
#[derive(Debug)]
pub(crate) struct Target {
    /// As it was when this was found out. Read before the rows of a delivery: whatever is lost
    /// afterwards has a higher generation.
    pub(crate) index: IndexState,
    /// The live collection's first.
    pub(crate) models: Vec<Model>,
}

/// Finds out where points go, and makes sure that it is there.
pub(crate) struct Targets {
    db: Db,
    vectors: Vectors,
    embedder: Embedder,
    alias: String,
    /// Forgotten when the store says otherwise.
    known: Mutex<Option<Arc<Target>>>,
}

impl Targets {
    pub(crate) fn new(db: Db, vectors: Vectors, embedder: Embedder, alias: String) -> Self {
        Self { db, vectors, embedder, alias, known: Mutex::new(None) }
    }

    /// Has the next delivery find it out anew.
    pub(crate) fn forget(&self) {
        self.remember(None);
    }

    fn remember(&self, target: Option<Arc<Target>>) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = target;
    }

    /// Returns where points go now. Two deliveries may find it out at once: it can be done twice.
    pub(crate) async fn get(&self) -> Result<Arc<Target>, DeliveryError> {
        let index = index::read(&self.db).await.map_err(|error| database(&error))?;
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(target) = known.filter(|target| is_same(&target.index, &index)) {
            return Ok(target);
        }
        let models = self.embedder.models().await?;
        let live = self.vectors.alias_target(&self.alias).await.map_err(|error| self.failure(&error))?;
        let first = match &live {
            Some(collection) => self.of_live(&models, collection)?,
            None => {
                let model = models.wanted()?;
                self.make(&model).await?;
                model
            }
        };
        // Again: the collection that is there now may have been made meanwhile, and its generation
        // is older than it.
        let index = index::read(&self.db).await.map_err(|error| database(&error))?;
        let mut targets = vec![first];
        if let Some(build) = &index.build {
            // Both, until nobody searches the old one any more.
            let from = build.from.as_deref().and_then(|from| models.of_collection(from));
            for model in [Some(models.named(&build.model)?), from].into_iter().flatten() {
                if !targets.contains(&model) {
                    self.vectors.ensure_made(&model.collection).await.map_err(|error| self.failure(&error))?;
                    targets.push(model);
                }
            }
        }
        let target = Arc::new(Target { index, models: targets });
        self.remember(Some(Arc::clone(&target)));
        Ok(target)
    }

    /// The alias says what is live; what is configured is for the first collection only.
    fn of_live(&self, models: &Models, collection: &str) -> Result<Model, DeliveryError> {
        models.of_collection(collection).ok_or_else(|| {
            let message = format!(
                "alias {:?} points to {collection:?}, and the embedding service serves {} only: add its model to embedding.more_models (`waybill reindex --all --model NAME` changes it)",
                self.alias,
                models.names()
            );
            DeliveryError::new(ErrorClass::Transient, message)
        })
    }

    /// Makes the live collection and its alias. What was claimed of one that was lost is void
    /// before there is an empty one in its place.
    async fn make(&self, model: &Model) -> Result<(), DeliveryError> {
        let name = &model.collection.name;
        if !self.vectors.collection_exists(name).await.map_err(|error| self.failure(&error))? {
            let renewal = index::renew(&self.db).await.map_err(|error| database(&error))?;
            // Before it is made: of this one, nothing can be claimed yet.
            let was_lost = index::has_claims(&self.db).await.map_err(|error| database(&error))?;
            let made = self.vectors.create_collection(&model.collection).await.map_err(|error| self.failure(&error))?;
            if !made {
                index::keep(&self.db, renewal).await.map_err(|error| database(&error))?;
            } else if was_lost {
                // Nothing that was delivered is in it.
                tracing::warn!(collection = name, "the collection was lost: everything is compared");
                scrub::want(&self.db).await.map_err(|error| database(&error))?;
            }
        }
        self.vectors.ensure_collection(&model.collection, &self.alias).await.map_err(|error| self.failure(&error))
    }

    /// Sorts what the vector store answered, and forgets the target if that is not there any more.
    pub(crate) fn failure(&self, error: &VectorError) -> DeliveryError {
        if matches!(error, VectorError::CollectionMissing(_) | VectorError::CollectionMismatch { .. }) {
            self.forget();
        }
        let mut failure = DeliveryError::new(error.class(), error.to_string());
        failure.retry_after = error.retry_after();
        failure
    }
}

/// Says whether both mean the same collections. How far a build is makes no difference.
fn is_same(one: &IndexState, other: &IndexState) -> bool {
    let build = |index: &IndexState| {
        index.build.as_ref().map(|build| (build.started_at, build.from.clone(), build.moved_at.is_some()))
    };
    one.generation == other.generation && build(one) == build(other)
}

pub(crate) fn database(error: &StorageError) -> DeliveryError {
    // Never the key's fault, whatever the class: Postgres doesn't know yet what it is for.
    DeliveryError::new(ErrorClass::Transient, format!("load the current rows: {error}"))
}
