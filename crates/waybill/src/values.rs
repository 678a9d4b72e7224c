//! JSON to protobuf's `Struct` and back, and how a command line writes metadata.

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Timestamp};
use serde_json::{Map, Number, Value};

/// Turns a JSON object into a `Struct`.
pub(crate) fn to_struct(object: Map<String, Value>) -> Struct {
    Struct { fields: object.into_iter().map(|(key, value)| (key, to_proto(value))).collect() }
}

/// Turns a `Struct` into a JSON object.
pub(crate) fn from_struct(object: Struct) -> Map<String, Value> {
    object.fields.into_iter().map(|(key, value)| (key, from_proto(value))).collect()
}

/// Reads KEY=VALUE pairs: `true`, `false` and numbers are what they look like, everything
/// else is a string. Quotes make a string of a number: `year="2024"`.
pub(crate) fn from_pairs(pairs: &[(String, String)]) -> Map<String, Value> {
    pairs.iter().map(|(key, value)| (key.clone(), scalar(value))).collect()
}

/// Writes a time as RFC 3339, in UTC and whole seconds.
pub(crate) fn time(time: &Timestamp) -> String {
    u32::try_from(time.nanos)
        .ok()
        .and_then(|nanos| chrono::DateTime::from_timestamp(time.seconds, nanos))
        .map_or_else(String::new, |time| time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true))
}

fn scalar(text: &str) -> Value {
    match serde_json::from_str::<Value>(text) {
        Ok(value @ (Value::Bool(_) | Value::Number(_) | Value::String(_))) => value,
        _ => Value::String(text.to_owned()),
    }
}

fn to_proto(value: Value) -> prost_types::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(bool) => Kind::BoolValue(bool),
        // JSON has one kind of number, and so has Struct: a double.
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(items) => Kind::ListValue(ListValue { values: items.into_iter().map(to_proto).collect() }),
        Value::Object(object) => Kind::StructValue(to_struct(object)),
    };
    prost_types::Value { kind: Some(kind) }
}

fn from_proto(value: prost_types::Value) -> Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(bool)) => Value::Bool(bool),
        Some(Kind::NumberValue(number)) => from_f64(number),
        Some(Kind::StringValue(text)) => Value::String(text),
        Some(Kind::ListValue(list)) => Value::Array(list.values.into_iter().map(from_proto).collect()),
        Some(Kind::StructValue(object)) => Value::Object(from_struct(object)),
    }
}

/// Writes 2024 rather than 2024.0: whoever sent it wrote an integer.
#[expect(clippy::cast_possible_truncation, reason = "guarded: integers of 53 bits fit in i64")]
fn from_f64(number: f64) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if number.fract() == 0.0 && number.abs() <= EXACT {
        Value::from(number as i64)
    } else {
        Number::from_f64(number).map_or(Value::Null, Value::Number)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_survives_the_way_there_and_back() {
        let object = json!({"a": 1, "b": [true, null, "x"], "c": {"d": 0.5}});
        let Value::Object(object) = object else { panic!("an object") };
        assert_eq!(from_struct(to_struct(object.clone())), object);
    }

    #[test]
    fn pairs_are_what_they_look_like() {
        let pair = |value: &str| scalar(value);
        assert_eq!(pair("en"), json!("en"));
        assert_eq!(pair("2024"), json!(2024));
        assert_eq!(pair("\"2024\""), json!("2024"));
        assert_eq!(pair("true"), json!(true));
        assert_eq!(pair("{}"), json!("{}"));
        assert_eq!(pair("null"), json!("null"));
    }
}
