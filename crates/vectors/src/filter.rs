use qdrant_client::qdrant::{
    Condition, FieldCondition, Filter, HasIdCondition, Range, condition::ConditionOneOf, r#match::MatchValue,
};
use serde_json::Value;
use uuid::Uuid;

use crate::{Result, SearchFilter, VectorError, key, payload::point_id, write::PLAUSIBLE_LEAD};

/// Builds the filter of a search.
pub(crate) fn search(filter: &SearchFilter) -> Result<Filter> {
    let mut must = vec![Condition::matches(key::PROJECT, filter.project_id.as_uuid().to_string())];
    if !filter.kinds.is_empty() {
        let kinds: Vec<String> = filter.kinds.iter().map(|kind| kind.as_str().to_owned()).collect();
        must.push(Condition::matches(key::KIND, kinds));
    }
    if !filter.source_ids.is_empty() {
        let sources: Vec<String> = filter.source_ids.iter().map(|id| id.as_uuid().to_string()).collect();
        must.push(Condition::matches(key::SOURCE, sources));
    }
    for (name, value) in &filter.metadata {
        must.push(metadata(name, value)?);
    }
    Ok(Filter::must(must))
}

/// Compares one metadata value; of an array, any element may be the one.
fn metadata(name: &str, value: &Value) -> Result<Condition> {
    let path = metadata_path(name)?;
    Ok(match value {
        Value::String(text) => Condition::matches(path, text.clone()),
        Value::Bool(truth) => Condition::matches(path, *truth),
        // A range of one number finds 3 and 3.0 alike; a match would tell them apart.
        Value::Number(number) => {
            let number = number.as_f64();
            Condition::range(path, Range { gte: number, lte: number, ..Range::default() })
        }
        Value::Null | Value::Array(_) | Value::Object(_) => {
            return Err(VectorError::Rejected {
                code: tonic::Code::InvalidArgument,
                message: format!("metadata value of {name:?} is no string, number or bool"),
            });
        }
    })
}

/// Builds the path of a metadata value. Always quoted, so that dots and brackets in a key
/// are part of it; a quotation mark itself has no place in Qdrant's grammar.
fn metadata_path(name: &str) -> Result<String> {
    if name.is_empty() || name.contains('"') {
        return Err(VectorError::MetadataKey(name.to_owned()));
    }
    Ok(format!("{}.\"{name}\"", key::METADATA))
}

/// Matches the points of `ids`.
pub(crate) fn has_id(ids: impl IntoIterator<Item = Uuid>) -> Condition {
    let has_id = ids.into_iter().map(point_id).collect();
    Condition { condition_one_of: Some(ConditionOneOf::HasId(HasIdCondition { has_id })) }
}

/// Matches points whose stored version is above `version`, by [`PLAUSIBLE_LEAD`] at the most.
pub(crate) fn version_above(version: i64) -> Condition {
    let (gt, lte) = (Some(as_bound(version)), Some(as_bound(version.saturating_add(PLAUSIBLE_LEAD))));
    Condition::range(key::VERSION, Range { gt, lte, ..Range::default() })
}

/// Ranges are made of doubles. They are exact up to 2^53: at a million versions a second,
/// that lasts 285 years.
#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53, see above")]
const fn as_bound(version: i64) -> f64 {
    version as f64
}

/// Joins conditions that must all hold.
pub(crate) fn all(conditions: Vec<Condition>) -> Condition {
    Condition { condition_one_of: Some(ConditionOneOf::Filter(Filter::must(conditions))) }
}

/// Matches the points of a project.
pub(crate) fn project(id: waybill_domain::ProjectId) -> Filter {
    let condition = FieldCondition {
        key: key::PROJECT.to_owned(),
        r#match: Some(MatchValue::Keyword(id.as_uuid().to_string()).into()),
        ..FieldCondition::default()
    };
    Filter::must([Condition { condition_one_of: Some(ConditionOneOf::Field(condition)) }])
}
