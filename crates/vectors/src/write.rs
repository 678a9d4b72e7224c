//! Writes, guarded by the versions that the store holds.
//!
//! The relay never lets two deliveries of a key overlap; the guards here are the second
//! line, for a delivery that was given up (its lease ran out, its connection broke) and
//! arrives after all. Two things must hold, for each point on its own:
//!
//! - a late write never replaces a newer state, and
//! - a newer write is never refused: a refusal is silent, and the key would be settled.
//!
//! An upsert takes one filter for the whole batch, and the versions of a batch all differ.
//! One bound can't do: `version < lowest of the batch` refuses a point whose stored version
//! lies between that and its own (it was delivered, the relay died before the settle, the
//! row changed), and `version < highest` lets late writes through. Hence one clause per
//! point: "not this id with a higher version". An equal one is written again: a version means
//! one content, so that changes nothing, unless somebody else changed the point. Qdrant tests the clauses only on
//! those points of the batch that exist, so filling a collection pays for their bytes alone;
//! where points exist, they are tested in groups, so that a batch of n costs about n * 2√n
//! tests and not n².

use std::{collections::HashMap, time::Duration};

use qdrant_client::qdrant::{
    Condition, DeletePoints, DenseVector, Filter, NamedVectors, PointStruct, PointsOperationResponse, PointsSelector,
    SparseVector, UpdateStatus, UpsertPoints, Vector, Vectors as PointVectors, points_selector::PointsSelectorOneOf,
    vector, vectors::VectorsOptions,
};
use serde_json::{Map, Value};
use uuid::Uuid;
use waybill_domain::{Kind, ProjectId, SourceId};

use crate::{
    DENSE, Result, SPARSE, VectorError, Vectors,
    filter::{all, has_id, version_above},
    key,
    payload::{Payload, integer, object, point_id, string},
};

/// How far a stored version can be above a row's and still be one that a row had: years of
/// writing. A point beyond that was written by somebody else, and no guard protects it: to
/// respect it would mean to hand out versions from there on.
pub const PLAUSIBLE_LEAD: i64 = 1 << 40;

/// A point as it should be.
#[derive(Debug, Clone)]
pub struct PointWrite {
    /// The row's id, and the point's.
    pub id: Uuid,
    /// The tenant.
    pub project_id: ProjectId,
    /// What the row is.
    pub kind: Kind,
    /// The source it belongs to, if it is one.
    pub source_id: Option<SourceId>,
    /// The row's version; a point with a higher one is kept.
    pub version: i64,
    /// The source's metadata, for filters.
    pub metadata: Map<String, Value>,
    /// The embedding: as many numbers as the collection has dimensions.
    pub dense: Vec<f32>,
    /// BM25 weights: ascending indices, and as many values. Both may be empty.
    pub sparse: (Vec<u32>, Vec<f32>),
}

impl Vectors {
    /// Writes points, each unless the store holds a higher version of it, and waits until
    /// they are applied. Ids must not repeat within a batch.
    ///
    /// # Errors
    /// [`VectorError::CollectionMissing`] if the collection was wiped. After an error of
    /// class `Unknown`, and in a batch that is [`VectorError::Rejected`], some points may
    /// have been written: do it again, it is harmless.
    pub async fn upsert(&self, collection: &str, points: Vec<PointWrite>, deadline: Duration) -> Result<()> {
        if points.is_empty() {
            return Ok(());
        }
        let guard = unless_newer(&points);
        let request = UpsertPoints {
            collection_name: collection.to_owned(),
            wait: Some(true),
            points: points.into_iter().map(point).collect(),
            update_filter: Some(guard),
            ..UpsertPoints::default()
        };
        confirmed(self.call("upsert", collection, deadline, Box::pin(self.points().upsert(request))).await?)
    }

    /// Deletes the points of `ids` whose version is `max_version` or lower, and waits until
    /// it is done. Points that aren't there are no error.
    ///
    /// `max_version` is what the relay knew when it found the rows gone; a row that came
    /// back under the same id since then has a higher version and keeps its point.
    ///
    /// # Errors
    /// As [`Vectors::upsert`].
    pub async fn delete(&self, collection: &str, ids: &[Uuid], max_version: i64, deadline: Duration) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let filter = Filter {
            must: vec![has_id(ids.iter().copied())],
            // Not "at most": a point that has lost its version must go too.
            must_not: vec![version_above(max_version)],
            ..Filter::default()
        };
        let request = DeletePoints {
            collection_name: collection.to_owned(),
            wait: Some(true),
            points: Some(PointsSelector { points_selector_one_of: Some(PointsSelectorOneOf::Filter(filter)) }),
            ..DeletePoints::default()
        };
        confirmed(self.call("delete", collection, deadline, Box::pin(self.points().delete(request))).await?)
    }
}

/// Builds the filter that an existing point must pass to be replaced.
fn unless_newer(points: &[PointWrite]) -> Filter {
    let group_size = points.len().isqrt().max(1);
    let must_not = points
        .chunks(group_size)
        .map(|group| {
            let mut clauses: Vec<Condition> =
                group.iter().map(|point| all(vec![has_id([point.id]), version_above(point.version)])).collect();
            if clauses.len() == 1 {
                return clauses.remove(0);
            }
            let newer = Filter::should(clauses);
            all(vec![has_id(group.iter().map(|point| point.id)), newer.into()])
        })
        .collect();
    Filter { must_not, ..Filter::default() }
}

fn point(point: PointWrite) -> PointStruct {
    let (indices, values) = point.sparse;
    let mut vectors = HashMap::with_capacity(2);
    vectors.insert(DENSE.to_owned(), vector::Vector::Dense(DenseVector { data: point.dense }));
    // A text of stop words alone has no terms; the store wants no empty vector for that.
    if !indices.is_empty() {
        vectors.insert(SPARSE.to_owned(), vector::Vector::Sparse(SparseVector { values, indices }));
    }
    let vectors = vectors
        .into_iter()
        .map(|(name, vector)| (name, Vector { vector: Some(vector), ..Vector::default() }))
        .collect();
    let mut payload = Payload::from([
        (key::PROJECT.to_owned(), string(point.project_id.as_uuid())),
        (key::KIND.to_owned(), string(point.kind.as_str())),
        (key::VERSION.to_owned(), integer(point.version)),
        (key::METADATA.to_owned(), object(point.metadata)),
    ]);
    if let Some(source_id) = point.source_id {
        payload.insert(key::SOURCE.to_owned(), string(source_id.as_uuid()));
    }
    PointStruct {
        id: Some(point_id(point.id)),
        payload,
        vectors: Some(PointVectors { vectors_options: Some(VectorsOptions::Vectors(NamedVectors { vectors })) }),
    }
}

/// Checks that a write was applied, not merely taken.
fn confirmed(response: PointsOperationResponse) -> Result<()> {
    let status = response.result.ok_or(VectorError::BadAnswer("write without a result"))?.status();
    match status {
        UpdateStatus::Completed => Ok(()),
        other => Err(VectorError::NotConfirmed(other.as_str_name())),
    }
}
