//! Point ids and whole points.

use qdrant_client::qdrant as proto;
use qdrant_client::qdrant::point_id::PointIdOptions;
use qdrant_edge::external::uuid::Uuid;
use qdrant_edge::{OrderValue, PointId, PointStructPersisted, Record, ScoredPoint};

use super::{payload, vector};
use crate::error::Error;
use crate::manifest::CollectionSpec;

/// Converts the id of a point, which must be there and, if text, be a UUID.
pub(crate) fn id_to_engine(id: proto::PointId) -> Result<PointId, Error> {
    match id.point_id_options {
        Some(PointIdOptions::Num(number)) => Ok(PointId::NumId(number)),
        Some(PointIdOptions::Uuid(text)) => Uuid::parse_str(&text)
            .map(PointId::Uuid)
            .map_err(|_| Error::invalid(format!("Unable to parse UUID: {text}"))),
        None => Err(Error::invalid("No ID options provided")),
    }
}

/// Converts the id of a stored point.
pub(crate) fn id_to_proto(id: PointId) -> proto::PointId {
    let options = match id {
        PointId::NumId(number) => PointIdOptions::Num(number),
        PointId::Uuid(uuid) => PointIdOptions::Uuid(uuid.to_string()),
    };
    proto::PointId { point_id_options: Some(options) }
}

/// Converts a point to be stored.
pub(crate) fn to_engine(spec: &CollectionSpec, point: proto::PointStruct) -> Result<PointStructPersisted, Error> {
    let id = point.id.ok_or_else(|| Error::invalid("Empty ID is not allowed"))?;
    Ok(PointStructPersisted {
        id: id_to_engine(id)?,
        vector: vector::to_engine(spec, point.vectors)?,
        payload: Some(payload::to_engine(point.payload)?),
    })
}

/// Converts a stored point.
pub(crate) fn record_to_proto(record: Record) -> proto::RetrievedPoint {
    proto::RetrievedPoint {
        id: Some(id_to_proto(record.id)),
        payload: record.payload.map(payload::to_proto).unwrap_or_default(),
        vectors: record.vector.map(vector::to_proto),
        shard_key: None,
        order_value: record.order_value.map(order_value),
    }
}

/// Converts a hit.
pub(crate) fn scored_to_proto(point: ScoredPoint) -> proto::ScoredPoint {
    proto::ScoredPoint {
        id: Some(id_to_proto(point.id)),
        payload: point.payload.map(payload::to_proto).unwrap_or_default(),
        score: point.score,
        version: point.version,
        vectors: point.vector.map(vector::to_proto),
        shard_key: None,
        order_value: point.order_value.map(order_value),
    }
}

fn order_value(value: OrderValue) -> proto::OrderValue {
    let variant = match value {
        OrderValue::Int(value) => proto::order_value::Variant::Int(value),
        OrderValue::Float(value) => proto::order_value::Variant::Float(value),
    };
    proto::OrderValue { variant: Some(variant) }
}
