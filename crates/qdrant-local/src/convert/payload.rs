//! Payloads: JSON objects that stand beside the vectors.

use std::collections::HashMap;

use qdrant_client::qdrant::value::Kind;
use qdrant_client::qdrant::{ListValue, NullValue, Struct, Value};
use qdrant_client::qdrant::{WithPayloadSelector, with_payload_selector::SelectorOptions};
use qdrant_edge::external::serde_json::{self, Map, Number};
use qdrant_edge::{Payload, PayloadSelector, PayloadSelectorExclude, PayloadSelectorInclude, WithPayloadInterface};

use super::json_path;
use crate::error::Error;

/// Converts a payload of a request. Fails on a number JSON can't hold.
pub(crate) fn to_engine(fields: HashMap<String, Value>) -> Result<Payload, Error> {
    Ok(Payload(object_to_json(fields)?))
}

/// Converts a payload of the engine.
pub(crate) fn to_proto(payload: Payload) -> HashMap<String, Value> {
    object_to_proto(payload.0)
}

/// Converts a payload selector; `None` and an empty one mean the API's default,
/// which is to send no payload.
pub(crate) fn selector(selector: Option<WithPayloadSelector>) -> Result<WithPayloadInterface, Error> {
    let paths = |fields: Vec<String>| {
        let paths = fields.iter().map(|field| json_path(field));
        paths.collect::<Result<Vec<_>, _>>()
    };
    Ok(match selector.and_then(|selector| selector.selector_options) {
        None => WithPayloadInterface::Bool(false),
        Some(SelectorOptions::Enable(enable)) => WithPayloadInterface::Bool(enable),
        Some(SelectorOptions::Include(include)) => {
            let include = paths(include.fields)?;
            WithPayloadInterface::Selector(PayloadSelector::Include(PayloadSelectorInclude { include }))
        }
        Some(SelectorOptions::Exclude(exclude)) => {
            let exclude = paths(exclude.fields)?;
            WithPayloadInterface::Selector(PayloadSelector::Exclude(PayloadSelectorExclude { exclude }))
        }
    })
}

fn object_to_json(fields: HashMap<String, Value>) -> Result<Map<String, serde_json::Value>, Error> {
    fields.into_iter().map(|(key, value)| Ok((key, value_to_json(value)?))).collect()
}

fn value_to_json(value: Value) -> Result<serde_json::Value, Error> {
    Ok(match value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(value)) => serde_json::Value::Bool(value),
        Some(Kind::IntegerValue(value)) => serde_json::Value::Number(value.into()),
        Some(Kind::DoubleValue(value)) => Number::from_f64(value)
            .map(serde_json::Value::Number)
            .ok_or_else(|| Error::invalid(format!("payload holds {value}, which JSON can't")))?,
        Some(Kind::StringValue(value)) => serde_json::Value::String(value),
        Some(Kind::StructValue(value)) => serde_json::Value::Object(object_to_json(value.fields)?),
        Some(Kind::ListValue(list)) => {
            let values = list.values.into_iter().map(value_to_json);
            serde_json::Value::Array(values.collect::<Result<_, _>>()?)
        }
    })
}

fn object_to_proto(fields: Map<String, serde_json::Value>) -> HashMap<String, Value> {
    fields.into_iter().map(|(key, value)| (key, value_to_proto(value))).collect()
}

fn value_to_proto(value: serde_json::Value) -> Value {
    let kind = match value {
        serde_json::Value::Null => Kind::NullValue(NullValue::NullValue.into()),
        serde_json::Value::Bool(value) => Kind::BoolValue(value),
        // A whole number beyond i64 has no integer form in the API.
        serde_json::Value::Number(value) => match value.as_i64() {
            Some(integer) => Kind::IntegerValue(integer),
            None => Kind::DoubleValue(value.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(value) => Kind::StringValue(value),
        serde_json::Value::Array(values) => {
            Kind::ListValue(ListValue { values: values.into_iter().map(value_to_proto).collect() })
        }
        serde_json::Value::Object(fields) => Kind::StructValue(Struct { fields: object_to_proto(fields) }),
    };
    Value { kind: Some(kind) }
}
