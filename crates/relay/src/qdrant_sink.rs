//! The sink that keeps the vector store equal to Postgres.

use std::{collections::HashSet, sync::Arc};

use async_trait::async_trait;
use serde_json::Value;
use tracing::Span;
use uuid::Uuid;
use waybill_domain::{CrashPoint, Kind, ProjectId, SinkName};
use waybill_outbox::{DeliveryError, Key, Permit, Sink};
use waybill_storage::{
    Db,
    points::{self, PointRow},
    settle::Confirmed,
};
use waybill_vectors::{PointWrite, Vectors};

use crate::{
    embedder::{Embedder, Model, Models},
    signals::delivery_span,
    target::{Target, Targets, database},
};

/// Delivers chunks, facts and entities to Qdrant.
pub(crate) struct QdrantSink {
    db: Db,
    vectors: Vectors,
    embedder: Embedder,
    targets: Targets,
}

impl QdrantSink {
    pub(crate) fn new(db: Db, vectors: Vectors, embedder: Embedder, alias: String) -> Self {
        let targets = Targets::new(db.clone(), vectors.clone(), embedder.clone(), alias);
        Self { db, vectors, embedder, targets }
    }

    /// Has the next delivery make sure that the collection and its alias are there.
    pub(crate) fn forget_target(&self) {
        self.targets.forget();
    }

    /// Asks which models embed.
    pub(crate) async fn models(&self) -> Result<Models, DeliveryError> {
        self.embedder.models().await
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
        for model in &target.models {
            let time_left = permit.time_left()?;
            self.vectors
                .delete(&model.collection.name, &ids, bound, time_left)
                .await
                .map_err(|error| self.targets.failure(&error))?;
        }
        Ok(rows)
    }

    async fn upsert(&self, model: &Model, rows: &[PointRow], permit: &Permit) -> Result<(), DeliveryError> {
        if rows.is_empty() {
            return Ok(());
        }
        let texts = rows.iter().map(|row| row.text.clone()).collect();
        let embedded = match self.embedder.embed(&model.name, model.collection.dimensions, texts).await {
            Ok(embedded) => embedded,
            Err(error) => {
                // The service may have come back with another model: ask again.
                self.targets.forget();
                return Err(error);
            }
        };
        CrashPoint::Embed.hit();
        let writes = rows
            .iter()
            .zip(embedded)
            .map(|(row, embedded)| PointWrite {
                id: row.id,
                project_id: row.project_id,
                kind: row.kind,
                source_id: row.source_id,
                version: row.version,
                metadata: match &row.metadata {
                    Value::Object(metadata) => metadata.clone(),
                    _ => serde_json::Map::new(),
                },
                dense: embedded.dense,
                sparse: embedded.sparse,
            })
            .collect();
        let time_left = permit.time_left()?;
        let written = self.vectors.upsert(&model.collection.name, writes, time_left).await;
        written.map_err(|error| self.targets.failure(&error))
    }
}

#[async_trait]
impl Sink for QdrantSink {
    fn name(&self) -> SinkName {
        SinkName::Qdrant
    }

    fn span(&self, keys: &[Key], origins: &[Arc<str>]) -> Span {
        delivery_span(SinkName::Qdrant, keys, origins)
    }

    async fn deliver(&self, keys: &[Key], permit: &Permit) -> Result<Vec<Confirmed>, DeliveryError> {
        let target = self.targets.get().await?;
        let generation = target.index.generation;
        let ids: Vec<(Kind, Uuid)> = keys.iter().map(|key| (key.kind, key.id)).collect();
        let rows = self.load_or_delete(&target, &ids, permit).await?;
        let present = rows.iter().map(|row| (row.kind, row.id, Some(row.version)));
        let gone = absent(&ids, &rows).into_iter().map(|(kind, key)| (kind, key, None));
        let confirmed = present
            .chain(gone)
            .map(|(kind, key, version)| Confirmed { kind, key, version, reference: None, generation })
            .collect();
        for model in &target.models {
            self.upsert(model, &rows, permit).await?;
        }
        Ok(confirmed)
    }

    async fn probe(&self) -> Result<(), DeliveryError> {
        // Whatever a delivery goes through: the embedding service and its provider, with a text
        // that no cache has, and the collection.
        self.targets.forget();
        let target = self.targets.get().await?;
        for Model { name, collection } in &target.models {
            let text = format!("waybill probe {}", Uuid::now_v7());
            self.embedder.embed(name, collection.dimensions, vec![text]).await?;
            self.vectors
                .count(&collection.name, Some(ProjectId::from_uuid(Uuid::nil())))
                .await
                .map_err(|error| self.targets.failure(&error))?;
        }
        Ok(())
    }
}

fn absent(keys: &[(Kind, Uuid)], rows: &[PointRow]) -> Vec<(Kind, Uuid)> {
    let present: HashSet<(Kind, Uuid)> = rows.iter().map(|row| (row.kind, row.id)).collect();
    keys.iter().copied().filter(|key| !present.contains(key)).collect()
}
