//! JSON and protobuf's own form of it.

use prost_types::{ListValue, NullValue, Struct, Value as ProtoValue, value::Kind};
use serde_json::{Map, Number, Value};

/// Reads a string, finite number or bool; `None` for anything else.
pub(super) fn scalar(value: &ProtoValue) -> Option<Value> {
    match value.kind.as_ref()? {
        Kind::StringValue(text) => Some(Value::String(text.clone())),
        Kind::BoolValue(truth) => Some(Value::Bool(*truth)),
        Kind::NumberValue(number) => Number::from_f64(*number).map(Value::Number),
        Kind::NullValue(_) | Kind::StructValue(_) | Kind::ListValue(_) => None,
    }
}

/// Converts an object. Protobuf has no integers here: those beyond 2^53 lose digits.
pub(super) fn to_struct(map: Map<String, Value>) -> Struct {
    Struct { fields: map.into_iter().map(|(key, value)| (key, to_value(value))).collect() }
}

fn to_value(value: Value) -> ProtoValue {
    let kind = match value {
        Value::Null => Kind::NullValue(NullValue::NullValue.into()),
        Value::Bool(truth) => Kind::BoolValue(truth),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(values) => Kind::ListValue(ListValue { values: values.into_iter().map(to_value).collect() }),
        Value::Object(map) => Kind::StructValue(to_struct(map)),
    };
    ProtoValue { kind: Some(kind) }
}
