//! From a query of the API to a query of the engine.

use qdrant_client::qdrant as proto;
use qdrant_client::qdrant::query::Variant;
use qdrant_edge::external::ordered_float::OrderedFloat;
use qdrant_edge::{
    DEFAULT_VECTOR_NAME, EdgeShard, Fusion, NamedQuery, OperationResult, Prefetch, QueryEnum, QueryRequest, Sample,
    ScoredPoint, ScoringQuery, SearchParams,
};

use crate::convert::{filter, payload, refuse_if, vector};
use crate::error::Error;
use crate::manifest::CollectionSpec;

/// Points one answer may hold, offset included. Payloads and vectors of that
/// many points stay well below the largest message.
pub(crate) const MAX_LIMIT: u64 = 10_000;

/// Points in an answer if the request doesn't say; the API's default.
pub(crate) const DEFAULT_LIMIT: u64 = 10;

/// Sources that one query may fuse on one level.
const MAX_PREFETCHES: usize = 16;

/// Constant of reciprocal rank fusion if the request doesn't say; the API's default.
const DEFAULT_RRF_K: usize = 2;

/// A query, ready to run.
#[derive(Debug)]
pub(crate) struct Plan {
    request: QueryRequest,
    offset: usize,
}

impl Plan {
    /// Checks and converts a request against the collection it is for.
    pub(crate) fn new(spec: &CollectionSpec, query: proto::QueryPoints) -> Result<Self, Error> {
        refuse_if(query.lookup_from.is_some(), "QueryPoints.lookup_from")?;
        refuse_if(query.shard_key_selector.is_some(), "QueryPoints.shard_key_selector")?;
        let limit = query.limit.unwrap_or(DEFAULT_LIMIT);
        let offset = query.offset.unwrap_or(0);
        // The engine collects offset + limit points but leaves it to its
        // caller to drop the first ones.
        let limit = checked_limit(limit.saturating_add(offset))?;
        let offset = usize::try_from(offset).unwrap_or(limit);
        let prefetches = prefetches(spec, query.prefetch)?;
        let scoring = scoring(spec, query.query, query.using, query.params.as_ref(), prefetches.len())?;
        let request = QueryRequest {
            prefetches,
            query: scoring,
            filter: filter::optional(query.filter)?,
            score_threshold: query.score_threshold.map(OrderedFloat),
            limit,
            offset: 0,
            params: query.params.map(params).transpose()?,
            with_vector: vector::selector(spec, query.with_vectors)?,
            with_payload: payload::selector(query.with_payload)?,
        };
        Ok(Self { request, offset })
    }

    /// Runs the query. Blocks.
    pub(crate) fn run(self, shard: &EdgeShard) -> OperationResult<Vec<ScoredPoint>> {
        let mut points = shard.query(self.request)?;
        points.drain(..self.offset.min(points.len()));
        Ok(points)
    }
}

/// Checks a limit of a request.
pub(crate) fn checked_limit(limit: u64) -> Result<usize, Error> {
    if limit == 0 || limit > MAX_LIMIT {
        return Err(Error::invalid(format!("limit {limit} (offset included) is not between 1 and {MAX_LIMIT}")));
    }
    usize::try_from(limit).map_err(|error| Error::invalid(error.to_string()))
}

fn prefetches(spec: &CollectionSpec, list: Vec<proto::PrefetchQuery>) -> Result<Vec<Prefetch>, Error> {
    if list.len() > MAX_PREFETCHES {
        return Err(Error::invalid(format!("{} prefetches, at most {MAX_PREFETCHES} are allowed", list.len())));
    }
    list.into_iter().map(|query| prefetch(spec, query)).collect()
}

fn prefetch(spec: &CollectionSpec, query: proto::PrefetchQuery) -> Result<Prefetch, Error> {
    refuse_if(query.lookup_from.is_some(), "PrefetchQuery.lookup_from")?;
    let prefetches = prefetches(spec, query.prefetch)?;
    let scoring = scoring(spec, query.query, query.using, query.params.as_ref(), prefetches.len())?;
    Ok(Prefetch {
        prefetches,
        query: scoring,
        limit: checked_limit(query.limit.unwrap_or(DEFAULT_LIMIT))?,
        params: query.params.map(params).transpose()?,
        filter: filter::optional(query.filter)?,
        score_threshold: query.score_threshold.map(OrderedFloat),
    })
}

fn scoring(
    spec: &CollectionSpec,
    query: Option<proto::Query>,
    using: Option<String>,
    params: Option<&proto::SearchParams>,
    sources: usize,
) -> Result<Option<ScoringQuery>, Error> {
    let Some(variant) = query.and_then(|query| query.variant) else {
        if sources > 0 {
            return Err(Error::invalid(
                "A query is needed to merge the prefetches. Can't have prefetches without defining a query.",
            ));
        }
        return Ok(None);
    };
    let corpus = params.and_then(|params| params.idf.as_ref());
    refuse_if(corpus.is_some(), "SearchParams.idf")?;
    let scoring = match variant {
        Variant::Nearest(input) => {
            let using = using.unwrap_or_else(|| DEFAULT_VECTOR_NAME.to_owned());
            let vector = vector::query(spec, &using, input)?;
            ScoringQuery::Vector(QueryEnum::Nearest(NamedQuery::new(vector, using)))
        }
        Variant::Fusion(fusion) => {
            let fusion = match proto::Fusion::try_from(fusion) {
                Ok(proto::Fusion::Rrf) => Fusion::Rrf { k: DEFAULT_RRF_K, weights: None },
                Ok(proto::Fusion::Dbsf) => Fusion::Dbsf,
                Err(_) => return Err(Error::invalid(format!("unknown fusion {fusion}"))),
            };
            fuse(fusion, sources)?
        }
        Variant::Rrf(rrf) => fuse(rrf_fusion(rrf, sources)?, sources)?,
        Variant::Sample(_) => ScoringQuery::Sample(Sample::Random),
        Variant::Recommend(_) => return Err(Error::unimplemented("Query.recommend")),
        Variant::Discover(_) => return Err(Error::unimplemented("Query.discover")),
        Variant::Context(_) => return Err(Error::unimplemented("Query.context")),
        Variant::OrderBy(_) => return Err(Error::unimplemented("Query.order_by")),
        Variant::Formula(_) => return Err(Error::unimplemented("Query.formula")),
        Variant::NearestWithMmr(_) => return Err(Error::unimplemented("Query.nearest_with_mmr")),
        Variant::RelevanceFeedback(_) => {
            return Err(Error::unimplemented("Query.relevance_feedback"));
        }
        Variant::Text(_) => return Err(Error::unimplemented("Query.text")),
    };
    Ok(Some(scoring))
}

fn fuse(fusion: Fusion, sources: usize) -> Result<ScoringQuery, Error> {
    if sources == 0 {
        return Err(Error::invalid("cannot do fusion without prefetches to fuse"));
    }
    Ok(ScoringQuery::Fusion(fusion))
}

fn rrf_fusion(rrf: proto::Rrf, sources: usize) -> Result<Fusion, Error> {
    if !rrf.weights.is_empty() && rrf.weights.len() != sources {
        return Err(Error::invalid(format!("{} RRF weights for {sources} prefetches", rrf.weights.len())));
    }
    let k = rrf.k.map_or(DEFAULT_RRF_K, |k| k as usize);
    if k == 0 {
        return Err(Error::invalid("RRF k must be at least 1"));
    }
    let weights = rrf.weights.into_iter().map(OrderedFloat);
    let weights = Some(weights.collect::<Vec<_>>()).filter(|weights| !weights.is_empty());
    Ok(Fusion::Rrf { k, weights })
}

fn params(params: proto::SearchParams) -> Result<SearchParams, Error> {
    refuse_if(params.quantization.is_some(), "SearchParams.quantization")?;
    // Every search is exhaustive: the options of approximate search are met.
    Ok(SearchParams { exact: params.exact.unwrap_or(false), ..SearchParams::default() })
}
