//! How collections are built and described, and their payload indexes.
//!
//! Settings that only trade speed for memory (graph, optimizer, log and
//! placement options) are accepted and have no effect: this server searches
//! exhaustively, so it meets every such promise. Settings that would change
//! what is stored or answered are refused by name.

use std::collections::{BTreeMap, HashMap};

use qdrant_client::qdrant as proto;
use qdrant_client::qdrant::payload_index_params::IndexParams;
use qdrant_client::qdrant::vectors_config::Config;
use qdrant_edge::{
    BoolIndexParams, DEFAULT_VECTOR_NAME, DatetimeIndexParams, Distance, FloatIndexParams, IntegerIndexParams,
    KeywordIndexParams, PayloadFieldSchema, PayloadIndexInfo, PayloadSchemaParams, PayloadSchemaType, ShardInfo,
    UuidIndexParams,
};

use super::refuse_if;
use crate::error::Error;
use crate::manifest::{CollectionSpec, DenseSpec, SparseSpec};

/// Dimensions a dense vector may have; a real server's limit.
const MAX_DIMENSIONS: u64 = 65_536;

/// Converts a request to create a collection.
pub(crate) fn spec(request: proto::CreateCollection) -> Result<CollectionSpec, Error> {
    refuse_if(request.shard_number.is_some_and(|shards| shards > 1), "CreateCollection.shard_number above 1")?;
    refuse_if(
        request.replication_factor.is_some_and(|factor| factor > 1),
        "CreateCollection.replication_factor above 1",
    )?;
    refuse_if(
        request.sharding_method == Some(proto::ShardingMethod::Custom.into()),
        "CreateCollection.sharding_method custom",
    )?;
    refuse_if(request.quantization_config.is_some(), "CreateCollection.quantization_config")?;
    refuse_if(request.strict_mode_config.is_some(), "CreateCollection.strict_mode_config")?;
    refuse_if(!request.metadata.is_empty(), "CreateCollection.metadata")?;

    let mut spec = CollectionSpec::default();
    let dense = match request.vectors_config.and_then(|vectors| vectors.config) {
        None => HashMap::new(),
        Some(Config::Params(params)) => HashMap::from([(DEFAULT_VECTOR_NAME.to_owned(), params)]),
        Some(Config::ParamsMap(named)) => named.map,
    };
    for (name, params) in dense {
        spec.dense.insert(name, dense_spec(params)?);
    }
    let sparse = request.sparse_vectors_config.unwrap_or_default().map;
    for (name, params) in sparse {
        if spec.dense.contains_key(&name) {
            return Err(Error::invalid(format!("vector name `{name}` is given twice, dense and sparse")));
        }
        spec.sparse.insert(name, sparse_spec(&params)?);
    }
    Ok(spec)
}

#[expect(deprecated, reason = "clients still say on_disk, which newer servers call memory")]
fn dense_spec(params: proto::VectorParams) -> Result<DenseSpec, Error> {
    refuse_if(params.quantization_config.is_some(), "VectorParams.quantization_config")?;
    refuse_if(params.multivector_config.is_some(), "VectorParams.multivector_config")?;
    refuse_datatype(params.datatype, "VectorParams.datatype")?;
    if params.size == 0 || params.size > MAX_DIMENSIONS {
        return Err(Error::invalid(format!("vector size {} is not between 1 and {MAX_DIMENSIONS}", params.size)));
    }
    let distance = match params.distance() {
        proto::Distance::Cosine => Distance::Cosine,
        proto::Distance::Euclid => Distance::Euclid,
        proto::Distance::Dot => Distance::Dot,
        proto::Distance::Manhattan => Distance::Manhattan,
        proto::Distance::UnknownDistance => {
            return Err(Error::invalid("vector distance is missing or unknown"));
        }
    };
    Ok(DenseSpec {
        size: usize::try_from(params.size).map_err(|error| Error::invalid(error.to_string()))?,
        distance,
        on_disk: params.on_disk.unwrap_or(false),
    })
}

fn sparse_spec(params: &proto::SparseVectorParams) -> Result<SparseSpec, Error> {
    let datatype = params.index.as_ref().and_then(|index| index.datatype);
    refuse_datatype(datatype, "SparseIndexConfig.datatype")?;
    Ok(SparseSpec { idf: params.modifier() == proto::Modifier::Idf })
}

fn refuse_datatype(datatype: Option<i32>, feature: &str) -> Result<(), Error> {
    let plain = [i32::from(proto::Datatype::Default), i32::from(proto::Datatype::Float32)];
    refuse_if(datatype.is_some_and(|datatype| !plain.contains(&datatype)), feature)
}

/// Reads what can be changed of a collection: the indexing threshold, in KiB.
pub(crate) fn indexing_threshold(request: proto::UpdateCollection) -> Result<Option<u64>, Error> {
    refuse_if(request.params.is_some(), "UpdateCollection.params")?;
    refuse_if(request.vectors_config.is_some(), "UpdateCollection.vectors_config")?;
    refuse_if(request.quantization_config.is_some(), "UpdateCollection.quantization_config")?;
    refuse_if(request.sparse_vectors_config.is_some(), "UpdateCollection.sparse_vectors_config")?;
    Ok(request.optimizers_config.and_then(|optimizers| optimizers.indexing_threshold))
}

/// Describes a collection and what it holds.
pub(crate) fn info(spec: &CollectionSpec, indexing_threshold: u64, shard: ShardInfo) -> proto::CollectionInfo {
    let payload_schema = shard.payload_schema.into_iter();
    proto::CollectionInfo {
        status: proto::CollectionStatus::Green.into(),
        optimizer_status: Some(proto::OptimizerStatus { ok: true, error: String::new() }),
        segments_count: shard.segments_count as u64,
        config: Some(proto::CollectionConfig {
            params: Some(params(spec)),
            hnsw_config: Some(proto::HnswConfigDiff::default()),
            optimizer_config: Some(proto::OptimizersConfigDiff {
                indexing_threshold: Some(indexing_threshold),
                ..proto::OptimizersConfigDiff::default()
            }),
            wal_config: Some(proto::WalConfigDiff::default()),
            ..proto::CollectionConfig::default()
        }),
        payload_schema: payload_schema.map(|(key, info)| (key.to_string(), schema_info(info))).collect(),
        points_count: Some(shard.points_count as u64),
        indexed_vectors_count: Some(shard.indexed_vectors_count as u64),
        ..proto::CollectionInfo::default()
    }
}

#[expect(deprecated, reason = "clients still read on_disk")]
fn params(spec: &CollectionSpec) -> proto::CollectionParams {
    proto::CollectionParams {
        shard_number: 1,
        on_disk_payload: true,
        vectors_config: vectors_config(&spec.dense),
        replication_factor: Some(1),
        write_consistency_factor: Some(1),
        sparse_vectors_config: sparse_config(&spec.sparse),
        ..proto::CollectionParams::default()
    }
}

fn vectors_config(dense: &BTreeMap<String, DenseSpec>) -> Option<proto::VectorsConfig> {
    let unnamed = dense.get(DEFAULT_VECTOR_NAME).filter(|_| dense.len() == 1);
    let config = match unnamed {
        Some(spec) => Config::Params(dense_params(spec)),
        None => Config::ParamsMap(proto::VectorParamsMap {
            map: dense.iter().map(|(name, spec)| (name.clone(), dense_params(spec))).collect(),
        }),
    };
    Some(proto::VectorsConfig { config: Some(config) })
}

#[expect(deprecated, reason = "clients still read on_disk")]
fn dense_params(spec: &DenseSpec) -> proto::VectorParams {
    let distance = match spec.distance {
        Distance::Cosine => proto::Distance::Cosine,
        Distance::Euclid => proto::Distance::Euclid,
        Distance::Dot => proto::Distance::Dot,
        Distance::Manhattan => proto::Distance::Manhattan,
    };
    proto::VectorParams {
        size: spec.size as u64,
        distance: distance.into(),
        on_disk: spec.on_disk.then_some(true),
        ..proto::VectorParams::default()
    }
}

fn sparse_config(sparse: &BTreeMap<String, SparseSpec>) -> Option<proto::SparseVectorConfig> {
    if sparse.is_empty() {
        return None;
    }
    let map = sparse.iter().map(|(name, spec)| {
        let params =
            proto::SparseVectorParams { index: None, modifier: spec.idf.then_some(proto::Modifier::Idf.into()) };
        (name.clone(), params)
    });
    Some(proto::SparseVectorConfig { map: map.collect() })
}

/// Converts the schema of a payload index.
pub(crate) fn field_schema(
    field_type: Option<i32>,
    params: Option<proto::PayloadIndexParams>,
) -> Result<PayloadFieldSchema, Error> {
    if let Some(params) = params.and_then(|params| params.index_params) {
        return Ok(PayloadFieldSchema::FieldParams(index_params(params)?));
    }
    let field_type = field_type.ok_or_else(|| Error::invalid("field_type of the payload index is missing"))?;
    let field_type = proto::FieldType::try_from(field_type)
        .map_err(|_| Error::invalid(format!("unknown field_type {field_type}")))?;
    Ok(PayloadFieldSchema::FieldType(match field_type {
        proto::FieldType::Keyword => PayloadSchemaType::Keyword,
        proto::FieldType::Integer => PayloadSchemaType::Integer,
        proto::FieldType::Float => PayloadSchemaType::Float,
        proto::FieldType::Geo => PayloadSchemaType::Geo,
        proto::FieldType::Text => PayloadSchemaType::Text,
        proto::FieldType::Bool => PayloadSchemaType::Bool,
        proto::FieldType::Datetime => PayloadSchemaType::Datetime,
        proto::FieldType::Uuid => PayloadSchemaType::Uuid,
    }))
}

#[expect(deprecated, reason = "clients still say on_disk, which newer servers call memory")]
fn index_params(params: IndexParams) -> Result<PayloadSchemaParams, Error> {
    let refuse_nested = |nested: Option<String>| refuse_if(nested.is_some(), "nested in PayloadIndexParams");
    Ok(match params {
        IndexParams::KeywordIndexParams(params) => {
            refuse_nested(params.nested)?;
            refuse_if(params.prefix.is_some(), "KeywordIndexParams.prefix")?;
            PayloadSchemaParams::Keyword(KeywordIndexParams {
                is_tenant: params.is_tenant,
                on_disk: params.on_disk,
                enable_hnsw: params.enable_hnsw,
                ..KeywordIndexParams::default()
            })
        }
        IndexParams::IntegerIndexParams(params) => {
            refuse_nested(params.nested)?;
            PayloadSchemaParams::Integer(IntegerIndexParams {
                lookup: params.lookup,
                range: params.range,
                is_principal: params.is_principal,
                on_disk: params.on_disk,
                enable_hnsw: params.enable_hnsw,
                ..IntegerIndexParams::default()
            })
        }
        IndexParams::FloatIndexParams(params) => {
            refuse_nested(params.nested)?;
            PayloadSchemaParams::Float(FloatIndexParams {
                is_principal: params.is_principal,
                on_disk: params.on_disk,
                enable_hnsw: params.enable_hnsw,
                ..FloatIndexParams::default()
            })
        }
        IndexParams::BoolIndexParams(params) => {
            refuse_nested(params.nested)?;
            PayloadSchemaParams::Bool(BoolIndexParams {
                on_disk: params.on_disk,
                enable_hnsw: params.enable_hnsw,
                ..BoolIndexParams::default()
            })
        }
        IndexParams::DatetimeIndexParams(params) => {
            refuse_nested(params.nested)?;
            PayloadSchemaParams::Datetime(DatetimeIndexParams {
                is_principal: params.is_principal,
                on_disk: params.on_disk,
                enable_hnsw: params.enable_hnsw,
                ..DatetimeIndexParams::default()
            })
        }
        IndexParams::UuidIndexParams(params) => {
            refuse_nested(params.nested)?;
            PayloadSchemaParams::Uuid(UuidIndexParams {
                is_tenant: params.is_tenant,
                on_disk: params.on_disk,
                enable_hnsw: params.enable_hnsw,
                ..UuidIndexParams::default()
            })
        }
        IndexParams::GeoIndexParams(_) => {
            return Err(Error::unimplemented("PayloadIndexParams.geo_index_params"));
        }
        IndexParams::TextIndexParams(_) => {
            return Err(Error::unimplemented("PayloadIndexParams.text_index_params"));
        }
    })
}

fn schema_info(info: PayloadIndexInfo) -> proto::PayloadSchemaInfo {
    let data_type = match info.data_type {
        PayloadSchemaType::Keyword => proto::PayloadSchemaType::Keyword,
        PayloadSchemaType::Integer => proto::PayloadSchemaType::Integer,
        PayloadSchemaType::Float => proto::PayloadSchemaType::Float,
        PayloadSchemaType::Geo => proto::PayloadSchemaType::Geo,
        PayloadSchemaType::Text => proto::PayloadSchemaType::Text,
        PayloadSchemaType::Bool => proto::PayloadSchemaType::Bool,
        PayloadSchemaType::Datetime => proto::PayloadSchemaType::Datetime,
        PayloadSchemaType::Uuid => proto::PayloadSchemaType::Uuid,
    };
    proto::PayloadSchemaInfo {
        data_type: data_type.into(),
        params: info.params.and_then(params_to_proto),
        points: Some(info.points as u64),
    }
}

/// Echoes the parameters that say what an index is for; the rest is tuning.
fn params_to_proto(params: PayloadSchemaParams) -> Option<proto::PayloadIndexParams> {
    let params = match params {
        PayloadSchemaParams::Keyword(params) => IndexParams::KeywordIndexParams(proto::KeywordIndexParams {
            is_tenant: params.is_tenant,
            ..proto::KeywordIndexParams::default()
        }),
        PayloadSchemaParams::Integer(params) => IndexParams::IntegerIndexParams(proto::IntegerIndexParams {
            lookup: params.lookup,
            range: params.range,
            is_principal: params.is_principal,
            ..proto::IntegerIndexParams::default()
        }),
        PayloadSchemaParams::Float(params) => IndexParams::FloatIndexParams(proto::FloatIndexParams {
            is_principal: params.is_principal,
            ..proto::FloatIndexParams::default()
        }),
        PayloadSchemaParams::Uuid(params) => IndexParams::UuidIndexParams(proto::UuidIndexParams {
            is_tenant: params.is_tenant,
            ..proto::UuidIndexParams::default()
        }),
        PayloadSchemaParams::Bool(_)
        | PayloadSchemaParams::Datetime(_)
        | PayloadSchemaParams::Geo(_)
        | PayloadSchemaParams::Text(_) => return None,
    };
    Some(proto::PayloadIndexParams { index_params: Some(params) })
}
