use qdrant_client::qdrant::{
    Filter, Fusion, PayloadIncludeSelector, PrefetchQuery, Query, QueryPoints, VectorInput, WithPayloadSelector,
    query::Variant, vector_input, with_payload_selector::SelectorOptions,
};
use serde_json::{Map, Value};
use uuid::Uuid;
use waybill_domain::{Kind, ProjectId, SourceId};

use crate::{DENSE, Result, SPARSE, Vectors, filter, key, payload};

/// The most points one query returns: above it, searching turns into reading everything.
pub const MAX_QUERY_LIMIT: usize = 1_000;

/// The fewest candidates that each side of a hybrid query brings: fusion by rank needs
/// something to fuse even when the caller wants only a few.
const MIN_CANDIDATES: usize = 50;

/// How many candidates each side brings for each point that is wanted.
const CANDIDATES_PER_POINT: usize = 4;

/// How a query finds its points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// By meaning and by words, fused by reciprocal rank.
    Hybrid,
    /// By meaning only.
    Dense,
    /// By words only.
    Lexical,
}

/// A sparse vector: ascending indices, and as many values.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SparseVector {
    /// The places that are not zero.
    pub indices: Vec<u32>,
    /// What stands there.
    pub values: Vec<f32>,
}

/// Which points may be found.
#[derive(Debug, Clone)]
pub struct SearchFilter {
    /// Only this project's: there is no search across projects.
    pub project_id: ProjectId,
    /// Only these kinds; empty for all.
    pub kinds: Vec<Kind>,
    /// Only these sources'; empty for all.
    pub source_ids: Vec<SourceId>,
    /// Only those with each of these values: string, number or bool.
    pub metadata: Map<String, Value>,
}

/// A query.
#[derive(Debug, Clone)]
pub struct QuerySpec {
    /// How to find.
    pub mode: Mode,
    /// The query's embedding; not looked at in lexical mode.
    pub dense: Vec<f32>,
    /// The query's terms; not looked at in dense mode.
    pub sparse: SparseVector,
    /// Where to look.
    pub filter: SearchFilter,
    /// How many points to return; at most [`MAX_QUERY_LIMIT`].
    pub limit: usize,
    /// Points with a lower score are left out.
    pub score_threshold: Option<f32>,
}

/// A point that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredPoint {
    /// The row's id.
    pub id: Uuid,
    /// The score; comparable within one mode only.
    pub score: f32,
    /// The row's version when the point was written; 0 if the point has lost it.
    pub version: i64,
    /// What the row is; `None` if it is a kind of a newer program.
    pub kind: Option<Kind>,
    /// The source it belongs to.
    pub source_id: Option<SourceId>,
}

impl Vectors {
    /// Finds points in a collection, or the one behind an alias, best first.
    ///
    /// # Errors
    /// [`crate::VectorError::CollectionMissing`] if there is none;
    /// [`crate::VectorError::MetadataKey`] for a key that can't be filtered by.
    pub async fn query(&self, collection: &str, spec: QuerySpec) -> Result<Vec<ScoredPoint>> {
        if spec.mode == Mode::Lexical && spec.sparse.indices.is_empty() {
            // Stop words alone: nothing can match, and the store refuses empty vectors.
            return Ok(Vec::new());
        }
        let filter = filter::search(&spec.filter)?;
        let limit = spec.limit.min(MAX_QUERY_LIMIT);
        let request = QueryPoints {
            collection_name: collection.to_owned(),
            score_threshold: spec.score_threshold,
            limit: Some(limit as u64),
            with_payload: Some(include(&[key::VERSION, key::KIND, key::SOURCE])),
            ..match spec.mode {
                Mode::Dense => single(nearest_dense(spec.dense), DENSE, filter),
                Mode::Lexical => single(nearest_sparse(spec.sparse), SPARSE, filter),
                Mode::Hybrid => hybrid(spec.dense, spec.sparse, &filter, limit),
            }
        };
        let reply = self.call("query", collection, self.timeout(), Box::pin(self.points().query(request))).await?;
        Ok(reply
            .result
            .into_iter()
            .filter_map(|point| {
                Some(ScoredPoint {
                    id: payload::uuid_of(point.id)?,
                    score: point.score,
                    version: payload::version(&point.payload),
                    kind: payload::text(&point.payload, key::KIND).and_then(|kind| kind.parse().ok()),
                    source_id: payload::text(&point.payload, key::SOURCE)
                        .and_then(|id| Uuid::parse_str(id).ok())
                        .map(SourceId::from_uuid),
                })
            })
            .collect())
    }
}

fn single(query: Query, using: &str, filter: Filter) -> QueryPoints {
    QueryPoints { query: Some(query), using: Some(using.to_owned()), filter: Some(filter), ..QueryPoints::default() }
}

fn hybrid(dense: Vec<f32>, sparse: SparseVector, filter: &Filter, limit: usize) -> QueryPoints {
    let candidates = (limit * CANDIDATES_PER_POINT).max(MIN_CANDIDATES) as u64;
    let side = |query, using: &str| PrefetchQuery {
        query: Some(query),
        using: Some(using.to_owned()),
        // Each side is filtered on its own: filtering after the fusion would leave too few.
        filter: Some(filter.clone()),
        limit: Some(candidates),
        ..PrefetchQuery::default()
    };
    let mut prefetch = vec![side(nearest_dense(dense), DENSE)];
    if !sparse.indices.is_empty() {
        prefetch.push(side(nearest_sparse(sparse), SPARSE));
    }
    QueryPoints {
        prefetch,
        query: Some(Query { variant: Some(Variant::Fusion(Fusion::Rrf.into())) }),
        ..QueryPoints::default()
    }
}

fn nearest_dense(data: Vec<f32>) -> Query {
    nearest(vector_input::Variant::Dense(qdrant_client::qdrant::DenseVector { data }))
}

fn nearest_sparse(SparseVector { indices, values }: SparseVector) -> Query {
    nearest(vector_input::Variant::Sparse(qdrant_client::qdrant::SparseVector { values, indices }))
}

fn nearest(variant: vector_input::Variant) -> Query {
    Query { variant: Some(Variant::Nearest(VectorInput { variant: Some(variant) })) }
}

pub(crate) fn include(fields: &[&str]) -> WithPayloadSelector {
    let fields = fields.iter().map(|&field| field.to_owned()).collect();
    WithPayloadSelector { selector_options: Some(SelectorOptions::Include(PayloadIncludeSelector { fields })) }
}
