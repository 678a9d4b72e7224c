//! JSON and Qdrant's own values.

use std::collections::HashMap;

use qdrant_client::qdrant::{ListValue, NullValue, PointId, Struct, Value, point_id::PointIdOptions, value::Kind};
use uuid::Uuid;

use crate::key;

/// A point's payload.
pub(crate) type Payload = HashMap<String, Value>;

pub(crate) fn string(text: impl Into<String>) -> Value {
    Value { kind: Some(Kind::StringValue(text.into())) }
}

pub(crate) const fn integer(number: i64) -> Value {
    Value { kind: Some(Kind::IntegerValue(number)) }
}

pub(crate) fn object(map: serde_json::Map<String, serde_json::Value>) -> Value {
    let fields = map.into_iter().map(|(name, value)| (name, from_json(value))).collect();
    Value { kind: Some(Kind::StructValue(Struct { fields })) }
}

/// Converts JSON. Its depth is bounded by whoever parsed it.
fn from_json(value: serde_json::Value) -> Value {
    let kind = match value {
        serde_json::Value::Null => Kind::NullValue(NullValue::NullValue.into()),
        serde_json::Value::Bool(value) => Kind::BoolValue(value),
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(integer) => Kind::IntegerValue(integer),
            None => Kind::DoubleValue(number.as_f64().unwrap_or_default()),
        },
        serde_json::Value::String(text) => Kind::StringValue(text),
        serde_json::Value::Array(values) => {
            Kind::ListValue(ListValue { values: values.into_iter().map(from_json).collect() })
        }
        serde_json::Value::Object(map) => return object(map),
    };
    Value { kind: Some(kind) }
}

/// Reads the metadata back; empty where there is none, or no object.
pub(crate) fn metadata(payload: &Payload) -> serde_json::Map<String, serde_json::Value> {
    match payload.get(key::METADATA).and_then(|value| value.kind.as_ref()) {
        Some(Kind::StructValue(fields)) => to_object(fields),
        _ => serde_json::Map::new(),
    }
}

fn to_object(fields: &Struct) -> serde_json::Map<String, serde_json::Value> {
    fields.fields.iter().map(|(name, value)| (name.clone(), to_json(value))).collect()
}

fn to_json(value: &Value) -> serde_json::Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(value)) => (*value).into(),
        Some(Kind::IntegerValue(value)) => (*value).into(),
        Some(Kind::DoubleValue(value)) => (*value).into(),
        Some(Kind::StringValue(value)) => value.clone().into(),
        Some(Kind::ListValue(list)) => list.values.iter().map(to_json).collect(),
        Some(Kind::StructValue(fields)) => to_object(fields).into(),
    }
}

/// Reads the version; 0, which no row has, where there is none.
pub(crate) fn version(payload: &Payload) -> i64 {
    match payload.get(key::VERSION).and_then(|value| value.kind.as_ref()) {
        Some(Kind::IntegerValue(version)) => *version,
        _ => 0,
    }
}

pub(crate) fn text<'a>(payload: &'a Payload, name: &str) -> Option<&'a str> {
    match payload.get(name)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text),
        _ => None,
    }
}

pub(crate) fn point_id(id: Uuid) -> PointId {
    PointId { point_id_options: Some(PointIdOptions::Uuid(id.to_string())) }
}

/// Reads a point's id; `None` for a numbered point, which isn't ours.
pub(crate) fn uuid_of(id: Option<PointId>) -> Option<Uuid> {
    match id?.point_id_options? {
        PointIdOptions::Uuid(text) => Uuid::parse_str(&text).ok(),
        PointIdOptions::Num(_) => None,
    }
}
