//! The `qdrant.Points` service.

use std::sync::Arc;

use qdrant_client::qdrant as proto;
use qdrant_client::qdrant::points_selector::PointsSelectorOneOf;
use qdrant_client::qdrant::points_server::Points;
use qdrant_client::qdrant::points_update_operation::Operation;
use qdrant_edge::{
    ConditionalInsertOperation, CountRequest, CreateIndex, FieldIndexOperations, Filter, PayloadFieldSchema,
    PointInsertOperations, PointOperations, ScrollRequest, UpdateMode, UpdateOperation,
};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use crate::catalog::Catalog;
use crate::convert::{collection, filter, json_path, payload, point, refuse_if, vector};
use crate::error::Error;
use crate::manifest::CollectionSpec;
use crate::query::{DEFAULT_LIMIT, MAX_LIMIT, Plan, checked_limit};
use crate::store::blocking;
use crate::unimplemented::unimplemented_rpcs;

/// Queries one batch may hold: each is a scan, and they run one after another.
const MAX_BATCH_QUERIES: usize = 64;

/// Operations one batch update may hold: they are applied without letting
/// another writer in.
const MAX_BATCH_OPERATIONS: usize = 1_024;

/// Serves points.
#[derive(Debug, Clone)]
pub(crate) struct PointsService {
    catalog: Arc<Catalog>,
    /// Held over a change of an index and its note in the manifest, so that
    /// the two see changes in the same order.
    index_changes: Arc<Mutex<()>>,
}

impl PointsService {
    /// Serves the points of `catalog`.
    pub(crate) fn new(catalog: Arc<Catalog>) -> Self {
        Self { catalog, index_changes: Arc::default() }
    }

    /// Creates (with a schema) or deletes a payload index.
    async fn change_index(
        &self,
        collection: String,
        key: String,
        schema: Option<PayloadFieldSchema>,
    ) -> Result<proto::UpdateResult, Error> {
        let field_name = json_path(&key)?;
        let change = match &schema {
            Some(_) => FieldIndexOperations::CreateIndex(CreateIndex { field_name, field_schema: schema.clone() }),
            None => FieldIndexOperations::DeleteIndex(field_name),
        };
        let operation = UpdateOperation::FieldIndexOperation(change);
        let _guard = self.index_changes.lock().await;
        let result = self.update(&collection, |_| Ok(vec![operation])).await?;
        let catalog = Arc::clone(&self.catalog);
        blocking(move || catalog.record_index(&collection, key, schema)).await?;
        Ok(result)
    }

    /// Applies operations and answers when they are on disk, whether or not
    /// the request asks to wait: this server has no other promise to give.
    async fn update(
        &self,
        collection: &str,
        operations: impl FnOnce(&CollectionSpec) -> Result<Vec<UpdateOperation>, Error>,
    ) -> Result<proto::UpdateResult, Error> {
        let store = self.catalog.resolve(collection)?;
        let operations = operations(&store.spec)?;
        let operation_id = store.write(operations).await?;
        Ok(proto::UpdateResult { operation_id: Some(operation_id), status: proto::UpdateStatus::Completed.into() })
    }
}

#[tonic::async_trait]
impl Points for PointsService {
    async fn upsert(
        &self,
        request: Request<proto::UpsertPoints>,
    ) -> Result<Response<proto::PointsOperationResponse>, Status> {
        let start = Instant::now();
        let request = request.into_inner();
        refuse_if(request.shard_key_selector.is_some(), "UpsertPoints.shard_key_selector")?;
        let list = proto::points_update_operation::PointStructList {
            points: request.points,
            shard_key_selector: None,
            update_filter: request.update_filter,
            update_mode: request.update_mode,
        };
        let result = self.update(&request.collection_name, |spec| Ok(vec![upsert(spec, list)?])).await?;
        Ok(updated(result, start))
    }

    async fn delete(
        &self,
        request: Request<proto::DeletePoints>,
    ) -> Result<Response<proto::PointsOperationResponse>, Status> {
        let start = Instant::now();
        let request = request.into_inner();
        refuse_if(request.shard_key_selector.is_some(), "DeletePoints.shard_key_selector")?;
        let result = self.update(&request.collection_name, |_| Ok(vec![delete(request.points)?])).await?;
        Ok(updated(result, start))
    }

    async fn get(&self, request: Request<proto::GetPoints>) -> Result<Response<proto::GetResponse>, Status> {
        let start = Instant::now();
        let request = request.into_inner();
        refuse_if(request.shard_key_selector.is_some(), "GetPoints.shard_key_selector")?;
        if request.ids.len() as u64 > MAX_LIMIT {
            return Err(Error::invalid(format!("{} ids, at most {MAX_LIMIT} are allowed", request.ids.len())).into());
        }
        let store = self.catalog.resolve(&request.collection_name)?;
        let ids = request.ids.into_iter().map(point::id_to_engine);
        let ids = ids.collect::<Result<Vec<_>, _>>()?;
        let with_payload = payload::selector(request.with_payload)?;
        let with_vector = vector::selector(&store.spec, request.with_vectors)?;
        let records = store.read(move |shard| shard.retrieve(&ids, Some(with_payload), Some(with_vector))).await?;
        Ok(Response::new(proto::GetResponse {
            result: records.into_iter().map(point::record_to_proto).collect(),
            time: start.elapsed().as_secs_f64(),
            usage: None,
        }))
    }

    async fn scroll(&self, request: Request<proto::ScrollPoints>) -> Result<Response<proto::ScrollResponse>, Status> {
        let start = Instant::now();
        let request = request.into_inner();
        refuse_if(request.order_by.is_some(), "ScrollPoints.order_by")?;
        refuse_if(request.shard_key_selector.is_some(), "ScrollPoints.shard_key_selector")?;
        let store = self.catalog.resolve(&request.collection_name)?;
        let limit = request.limit.map_or(DEFAULT_LIMIT, u64::from);
        let scroll = ScrollRequest {
            offset: request.offset.map(point::id_to_engine).transpose()?,
            limit: Some(checked_limit(limit)?),
            filter: filter::optional(request.filter)?,
            with_payload: Some(payload::selector(request.with_payload)?),
            with_vector: vector::selector(&store.spec, request.with_vectors)?,
            order_by: None,
        };
        let (records, next) = store.read(move |shard| shard.scroll(scroll)).await?;
        Ok(Response::new(proto::ScrollResponse {
            next_page_offset: next.map(point::id_to_proto),
            result: records.into_iter().map(point::record_to_proto).collect(),
            time: start.elapsed().as_secs_f64(),
            usage: None,
        }))
    }

    async fn count(&self, request: Request<proto::CountPoints>) -> Result<Response<proto::CountResponse>, Status> {
        let start = Instant::now();
        let request = request.into_inner();
        refuse_if(request.shard_key_selector.is_some(), "CountPoints.shard_key_selector")?;
        let store = self.catalog.resolve(&request.collection_name)?;
        let count = CountRequest { filter: filter::optional(request.filter)?, exact: request.exact.unwrap_or(true) };
        let count = store.read(move |shard| shard.count(count)).await?;
        Ok(Response::new(proto::CountResponse {
            result: Some(proto::CountResult { count: count as u64 }),
            time: start.elapsed().as_secs_f64(),
            usage: None,
        }))
    }

    async fn query(&self, request: Request<proto::QueryPoints>) -> Result<Response<proto::QueryResponse>, Status> {
        let start = Instant::now();
        let query = request.into_inner();
        let store = self.catalog.resolve(&query.collection_name)?;
        let plan = Plan::new(&store.spec, query)?;
        let points = store.read(move |shard| plan.run(shard)).await?;
        Ok(Response::new(proto::QueryResponse {
            result: points.into_iter().map(point::scored_to_proto).collect(),
            time: start.elapsed().as_secs_f64(),
            usage: None,
        }))
    }

    async fn query_batch(
        &self,
        request: Request<proto::QueryBatchPoints>,
    ) -> Result<Response<proto::QueryBatchResponse>, Status> {
        let start = Instant::now();
        let request = request.into_inner();
        check_batch(request.query_points.len(), MAX_BATCH_QUERIES)?;
        let store = self.catalog.resolve(&request.collection_name)?;
        let plans = request.query_points.into_iter();
        let plans = plans.map(|query| Plan::new(&store.spec, query)).collect::<Result<Vec<_>, _>>()?;
        let answers = store.read(move |shard| plans.into_iter().map(|plan| plan.run(shard)).collect()).await?;
        let answers: Vec<Vec<_>> = answers;
        let answers = answers
            .into_iter()
            .map(|points| proto::BatchResult { result: points.into_iter().map(point::scored_to_proto).collect() });
        Ok(Response::new(proto::QueryBatchResponse {
            result: answers.collect(),
            time: start.elapsed().as_secs_f64(),
            usage: None,
        }))
    }

    async fn update_batch(
        &self,
        request: Request<proto::UpdateBatchPoints>,
    ) -> Result<Response<proto::UpdateBatchResponse>, Status> {
        let start = Instant::now();
        let request = request.into_inner();
        let count = request.operations.len();
        check_batch(count, MAX_BATCH_OPERATIONS)?;
        let result = self
            .update(&request.collection_name, |spec| {
                let operations = request.operations.into_iter();
                operations.map(|update| operation(spec, update)).collect()
            })
            .await?;
        Ok(Response::new(proto::UpdateBatchResponse {
            result: vec![result; count],
            time: start.elapsed().as_secs_f64(),
            usage: None,
        }))
    }

    async fn create_field_index(
        &self,
        request: Request<proto::CreateFieldIndexCollection>,
    ) -> Result<Response<proto::PointsOperationResponse>, Status> {
        let start = Instant::now();
        let request = request.into_inner();
        let schema = collection::field_schema(request.field_type, request.field_index_params)?;
        let result = self.change_index(request.collection_name, request.field_name, Some(schema)).await?;
        Ok(updated(result, start))
    }

    async fn delete_field_index(
        &self,
        request: Request<proto::DeleteFieldIndexCollection>,
    ) -> Result<Response<proto::PointsOperationResponse>, Status> {
        let start = Instant::now();
        let request = request.into_inner();
        let result = self.change_index(request.collection_name, request.field_name, None).await?;
        Ok(updated(result, start))
    }

    unimplemented_rpcs! { "qdrant.Points":
        update_vectors "UpdateVectors"
            (proto::UpdatePointVectors) -> proto::PointsOperationResponse;
        delete_vectors "DeleteVectors"
            (proto::DeletePointVectors) -> proto::PointsOperationResponse;
        set_payload "SetPayload" (proto::SetPayloadPoints) -> proto::PointsOperationResponse;
        overwrite_payload "OverwritePayload"
            (proto::SetPayloadPoints) -> proto::PointsOperationResponse;
        delete_payload "DeletePayload"
            (proto::DeletePayloadPoints) -> proto::PointsOperationResponse;
        clear_payload "ClearPayload"
            (proto::ClearPayloadPoints) -> proto::PointsOperationResponse;
        create_vector_name "CreateVectorName"
            (proto::CreateVectorNameRequest) -> proto::PointsOperationResponse;
        delete_vector_name "DeleteVectorName"
            (proto::DeleteVectorNameRequest) -> proto::PointsOperationResponse;
        search "Search" (proto::SearchPoints) -> proto::SearchResponse;
        search_batch "SearchBatch" (proto::SearchBatchPoints) -> proto::SearchBatchResponse;
        search_groups "SearchGroups" (proto::SearchPointGroups) -> proto::SearchGroupsResponse;
        recommend "Recommend" (proto::RecommendPoints) -> proto::RecommendResponse;
        recommend_batch "RecommendBatch"
            (proto::RecommendBatchPoints) -> proto::RecommendBatchResponse;
        recommend_groups "RecommendGroups"
            (proto::RecommendPointGroups) -> proto::RecommendGroupsResponse;
        discover "Discover" (proto::DiscoverPoints) -> proto::DiscoverResponse;
        discover_batch "DiscoverBatch"
            (proto::DiscoverBatchPoints) -> proto::DiscoverBatchResponse;
        query_groups "QueryGroups" (proto::QueryPointGroups) -> proto::QueryGroupsResponse;
        facet "Facet" (proto::FacetCounts) -> proto::FacetResponse;
        search_matrix_pairs "SearchMatrixPairs"
            (proto::SearchMatrixPoints) -> proto::SearchMatrixPairsResponse;
        search_matrix_offsets "SearchMatrixOffsets"
            (proto::SearchMatrixPoints) -> proto::SearchMatrixOffsetsResponse;
    }
}

fn updated(result: proto::UpdateResult, start: Instant) -> Response<proto::PointsOperationResponse> {
    Response::new(proto::PointsOperationResponse {
        result: Some(result),
        time: start.elapsed().as_secs_f64(),
        usage: None,
    })
}

fn check_batch(length: usize, limit: usize) -> Result<(), Error> {
    if length > limit {
        return Err(Error::invalid(format!("a batch of {length}, at most {limit} are allowed")));
    }
    Ok(())
}

fn operation(spec: &CollectionSpec, update: proto::PointsUpdateOperation) -> Result<UpdateOperation, Error> {
    let operation = update.operation.ok_or_else(|| Error::invalid("operation is missing"))?;
    let refused = match operation {
        Operation::Upsert(list) => return upsert(spec, list),
        Operation::DeletePoints(request) => {
            refuse_if(request.shard_key_selector.is_some(), "DeletePoints.shard_key_selector")?;
            return delete(request.points);
        }
        Operation::SetPayload(_) => "set_payload",
        Operation::OverwritePayload(_) => "overwrite_payload",
        Operation::DeletePayload(_) => "delete_payload",
        Operation::UpdateVectors(_) => "update_vectors",
        Operation::DeleteVectors(_) => "delete_vectors",
        Operation::ClearPayload(_) => "clear_payload",
        // Forms from before the last two got shard keys.
        _ => "the deprecated delete or clear_payload",
    };
    Err(Error::unimplemented(format!("PointsUpdateOperation.{refused}")))
}

/// Converts an upsert. With a filter, a point that exists is only overwritten
/// if the stored one matches it; the engine looks and writes under one lock.
fn upsert(
    spec: &CollectionSpec,
    list: proto::points_update_operation::PointStructList,
) -> Result<UpdateOperation, Error> {
    refuse_if(list.shard_key_selector.is_some(), "PointStructList.shard_key_selector")?;
    let points = list.points.into_iter();
    let points = points.map(|point| point::to_engine(spec, point)).collect::<Result<Vec<_>, _>>()?;
    let points = PointInsertOperations::PointsList(points);
    let mode = list.update_mode.map(update_mode).transpose()?;
    let condition = filter::optional(list.update_filter)?;
    let operation = match (condition, mode) {
        (None, None | Some(UpdateMode::Upsert)) => PointOperations::UpsertPoints(points),
        (condition, update_mode) => PointOperations::UpsertPointsConditional(ConditionalInsertOperation {
            points_op: points,
            condition: condition.unwrap_or_else(everything),
            update_mode,
        }),
    };
    Ok(UpdateOperation::PointOperation(operation))
}

fn update_mode(mode: i32) -> Result<UpdateMode, Error> {
    match proto::UpdateMode::try_from(mode) {
        Ok(proto::UpdateMode::Upsert) => Ok(UpdateMode::Upsert),
        Ok(proto::UpdateMode::InsertOnly) => Ok(UpdateMode::InsertOnly),
        Ok(proto::UpdateMode::UpdateOnly) => Ok(UpdateMode::UpdateOnly),
        Err(_) => Err(Error::invalid(format!("unknown update_mode {mode}"))),
    }
}

/// A filter without conditions matches every point.
fn everything() -> Filter {
    Filter { should: None, min_should: None, must: None, must_not: None }
}

fn delete(selector: Option<proto::PointsSelector>) -> Result<UpdateOperation, Error> {
    let selector = selector
        .and_then(|selector| selector.points_selector_one_of)
        .ok_or_else(|| Error::invalid("PointsSelector is missing"))?;
    let operation = match selector {
        PointsSelectorOneOf::Points(list) => {
            let ids = list.ids.into_iter().map(point::id_to_engine);
            PointOperations::DeletePoints { ids: ids.collect::<Result<_, _>>()? }
        }
        PointsSelectorOneOf::Filter(filter) => PointOperations::DeletePointsByFilter(filter::to_engine(filter)?),
    };
    Ok(UpdateOperation::PointOperation(operation))
}
