//! The sink that keeps the vector store equal to Postgres.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use serde_json::Value;
use uuid::Uuid;
use waybill_domain::{CrashPoint, ErrorClass, Kind, ProjectId, SinkName};
use waybill_outbox::{DeliveryError, Key, Permit, Sink};
use waybill_storage::{
    Db, StorageError,
    points::{self, PointRow},
    settle::Confirmed,
};
use waybill_vectors::{CollectionSpec, PointWrite, VectorError, Vectors};

use crate::embedder::Embedder;

/// Delivers chunks, facts and entities to Qdrant.
pub(crate) struct QdrantSink {
    db: Db,
    vectors: Vectors,
    embedder: Embedder,
    alias: String,
    /// What was ensured to be there; forgotten when the store says otherwise.
    target: Mutex<Option<Arc<Target>>>,
}

/// Where points go.
struct Target {
    model: String,
    collection: CollectionSpec,
}

impl QdrantSink {
    pub(crate) fn new(db: Db, vectors: Vectors, embedder: Embedder, alias: String) -> Self {
        Self { db, vectors, embedder, alias, target: Mutex::new(None) }
    }

    fn known_target(&self) -> Option<Arc<Target>> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has the next delivery make sure that the collection and its alias are there.
    pub(crate) fn forget_target(&self) {
        self.remember(None);
    }

    fn remember(&self, target: Option<Arc<Target>>) {
        *self.target.lock().unwrap_or_else(PoisonError::into_inner) = target;
    }

    /// Finds out where points go, and makes sure that it is there. Two deliveries may do so at
    /// once: it can be done twice.
    async fn target(&self) -> Result<Arc<Target>, DeliveryError> {
        if let Some(target) = self.known_target() {
            return Ok(target);
        }
        let (model, collection) = self.embedder.model().await?;
        self.vectors.ensure_collection(&collection, &self.alias).await.map_err(|error| self.failure(&error))?;
        let live = self.vectors.alias_target(&self.alias).await.map_err(|error| self.failure(&error))?;
        if live.as_ref() != Some(&collection.name) {
            // Every key is confirmed for the other collection: filling this one would take a
            // new start, and searching it before that would find next to nothing.
            let message = format!(
                "alias {:?} points to {live:?}, made by another model than {model:?}: configure that model, or delete the alias and its collection",
                self.alias
            );
            return Err(DeliveryError::new(ErrorClass::Transient, message));
        }
        let target = Arc::new(Target { model, collection });
        self.remember(Some(Arc::clone(&target)));
        Ok(target)
    }

    fn failure(&self, error: &VectorError) -> DeliveryError {
        if matches!(error, VectorError::CollectionMissing(_) | VectorError::CollectionMismatch { .. }) {
            self.remember(None);
        }
        let mut failure = DeliveryError::new(error.class(), error.to_string());
        failure.retry_after = error.retry_after();
        failure
    }

    /// Loads the rows that exist, and deletes the points of those that don't.
    async fn load_or_delete(
        &self,
        target: &Target,
        keys: &[(Kind, Uuid)],
        permit: &Permit,
    ) -> Result<Vec<PointRow>, DeliveryError> {
        let mut rows = points::load(&self.db, keys).await.map_err(|error| database(&error))?;
        let mut absent = absent(keys, &rows);
        if absent.is_empty() {
            return Ok(rows);
        }
        // The bound is read first, then the rows once more: one that takes its version after this
        // has it above the bound, so this delete can't touch its point however late it lands. (One
        // that had its version and was not committed yet is not covered by that; it is by the
        // request's deadline.)
        let bound = points::version_bound(&self.db).await.map_err(|error| database(&error))?;
        rows.extend(points::load(&self.db, &absent).await.map_err(|error| database(&error))?);
        absent = self::absent(keys, &rows);
        let ids: Vec<Uuid> = absent.iter().map(|key| key.1).collect();
        let time_left = permit.time_left()?;
        self.vectors
            .delete(&target.collection.name, &ids, bound, time_left)
            .await
            .map_err(|error| self.failure(&error))?;
        Ok(rows)
    }

    async fn upsert(&self, target: &Target, rows: Vec<PointRow>, permit: &Permit) -> Result<(), DeliveryError> {
        if rows.is_empty() {
            return Ok(());
        }
        let texts = rows.iter().map(|row| row.text.clone()).collect();
        let embedded = match self.embedder.embed(&target.model, target.collection.dimensions, texts).await {
            Ok(embedded) => embedded,
            Err(error) => {
                // The service may have come back with another model: ask again.
                self.remember(None);
                return Err(error);
            }
        };
        CrashPoint::Embed.hit();
        let writes = rows
            .into_iter()
            .zip(embedded)
            .map(|(row, embedded)| PointWrite {
                id: row.id,
                project_id: row.project_id,
                kind: row.kind,
                source_id: row.source_id,
                version: row.version,
                metadata: match row.metadata {
                    Value::Object(metadata) => metadata,
                    _ => serde_json::Map::new(),
                },
                dense: embedded.dense,
                sparse: embedded.sparse,
            })
            .collect();
        let time_left = permit.time_left()?;
        self.vectors.upsert(&target.collection.name, writes, time_left).await.map_err(|error| self.failure(&error))
    }
}

#[async_trait]
impl Sink for QdrantSink {
    fn name(&self) -> SinkName {
        SinkName::Qdrant
    }

    async fn deliver(&self, keys: &[Key], permit: &Permit) -> Result<Vec<Confirmed>, DeliveryError> {
        let target = self.target().await?;
        let ids: Vec<(Kind, Uuid)> = keys.iter().map(|key| (key.kind, key.id)).collect();
        let rows = self.load_or_delete(&target, &ids, permit).await?;
        let present = rows.iter().map(|row| (row.kind, row.id, Some(row.version)));
        let gone = absent(&ids, &rows).into_iter().map(|(kind, key)| (kind, key, None));
        let confirmed =
            present.chain(gone).map(|(kind, key, version)| Confirmed { kind, key, version, reference: None }).collect();
        self.upsert(&target, rows, permit).await?;
        Ok(confirmed)
    }

    async fn probe(&self) -> Result<(), DeliveryError> {
        // Whatever a delivery goes through: the embedding service and its provider, with a text
        // that no cache has, and the collection.
        self.remember(None);
        let target = self.target().await?;
        let text = format!("waybill probe {}", Uuid::now_v7());
        self.embedder.embed(&target.model, target.collection.dimensions, vec![text]).await?;
        self.vectors
            .count(&target.collection.name, Some(ProjectId::from_uuid(Uuid::nil())))
            .await
            .map_err(|error| self.failure(&error))?;
        Ok(())
    }
}

fn absent(keys: &[(Kind, Uuid)], rows: &[PointRow]) -> Vec<(Kind, Uuid)> {
    let present: HashSet<(Kind, Uuid)> = rows.iter().map(|row| (row.kind, row.id)).collect();
    keys.iter().copied().filter(|key| !present.contains(key)).collect()
}

fn database(error: &StorageError) -> DeliveryError {
    // Never the key's fault, whatever the class: Postgres doesn't know yet what it is for.
    DeliveryError::new(ErrorClass::Transient, format!("load the current rows: {error}"))
}
