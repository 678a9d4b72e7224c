//! Filters: boolean trees of conditions on payload and ids.

use qdrant_client::qdrant as proto;
use qdrant_client::qdrant::condition::ConditionOneOf;
use qdrant_client::qdrant::r#match::MatchValue as ProtoMatch;
use qdrant_edge::external::ordered_float::OrderedFloat;
use qdrant_edge::{
    AnyVariants, Condition, FieldCondition, Filter, HasVectorCondition, IsEmptyCondition, IsNullCondition, Match,
    MatchAny, MatchExcept, MatchText, MinShould, Nested, NestedCondition, Range, RangeInterface, ValueVariants,
    ValuesCount,
};

use super::{json_path, point, refuse_if};
use crate::error::Error;

/// Converts a filter. `None` stays `None`.
pub(crate) fn optional(filter: Option<proto::Filter>) -> Result<Option<Filter>, Error> {
    filter.map(to_engine).transpose()
}

/// Converts a filter. Its depth needs no limit here: decoding the message has one.
pub(crate) fn to_engine(filter: proto::Filter) -> Result<Filter, Error> {
    let proto::Filter { should, must, must_not, min_should } = filter;
    let min_should = min_should
        .map(|min_should| {
            Ok::<_, Error>(MinShould {
                conditions: conditions(min_should.conditions)?,
                min_count: usize::try_from(min_should.min_count).unwrap_or(usize::MAX),
            })
        })
        .transpose()?;
    Ok(Filter { should: clause(should)?, min_should, must: clause(must)?, must_not: clause(must_not)? })
}

fn clause(list: Vec<proto::Condition>) -> Result<Option<Vec<Condition>>, Error> {
    if list.is_empty() {
        return Ok(None);
    }
    conditions(list).map(Some)
}

fn conditions(list: Vec<proto::Condition>) -> Result<Vec<Condition>, Error> {
    list.into_iter().map(condition).collect()
}

fn condition(condition: proto::Condition) -> Result<Condition, Error> {
    let condition = condition.condition_one_of.ok_or_else(|| Error::invalid("Malformed Condition type"))?;
    Ok(match condition {
        ConditionOneOf::Field(field_condition) => Condition::Field(field(field_condition)?),
        ConditionOneOf::IsEmpty(is_empty) => Condition::IsEmpty(IsEmptyCondition::from(json_path(&is_empty.key)?)),
        ConditionOneOf::IsNull(is_null) => Condition::IsNull(IsNullCondition::from(json_path(&is_null.key)?)),
        ConditionOneOf::HasId(has_id) => {
            let ids = has_id.has_id.into_iter().map(point::id_to_engine);
            Condition::HasId(ids.collect::<Result<_, _>>()?)
        }
        ConditionOneOf::HasVector(has_vector) => Condition::HasVector(HasVectorCondition::from(has_vector.has_vector)),
        ConditionOneOf::Filter(filter) => Condition::Filter(to_engine(filter)?),
        ConditionOneOf::Nested(nested) => {
            let filter = nested.filter.ok_or_else(|| Error::invalid("Malformed NestedCondition type"))?;
            Condition::Nested(NestedCondition::new(Nested { key: json_path(&nested.key)?, filter: to_engine(filter)? }))
        }
        ConditionOneOf::Slice(_) => return Err(Error::unimplemented("Condition.slice")),
    })
}

fn field(condition: proto::FieldCondition) -> Result<FieldCondition, Error> {
    refuse_if(condition.geo_bounding_box.is_some(), "FieldCondition.geo_bounding_box")?;
    refuse_if(condition.geo_radius.is_some(), "FieldCondition.geo_radius")?;
    refuse_if(condition.geo_polygon.is_some(), "FieldCondition.geo_polygon")?;
    refuse_if(condition.datetime_range.is_some(), "FieldCondition.datetime_range")?;
    let r#match = condition.r#match.and_then(|r#match| r#match.match_value).map(match_value).transpose()?;
    Ok(FieldCondition {
        key: json_path(&condition.key)?,
        r#match,
        range: condition.range.map(range),
        geo_bounding_box: None,
        geo_radius: None,
        geo_polygon: None,
        values_count: condition.values_count.map(values_count),
        is_empty: condition.is_empty,
        is_null: condition.is_null,
    })
}

fn match_value(value: ProtoMatch) -> Result<Match, Error> {
    Ok(match value {
        ProtoMatch::Keyword(keyword) => Match::new_value(ValueVariants::String(keyword)),
        ProtoMatch::Integer(integer) => Match::new_value(ValueVariants::Integer(integer)),
        ProtoMatch::Boolean(boolean) => Match::new_value(ValueVariants::Bool(boolean)),
        ProtoMatch::Keywords(keywords) => {
            Match::Any(MatchAny { any: AnyVariants::Strings(keywords.strings.into_iter().collect()) })
        }
        ProtoMatch::Integers(integers) => {
            Match::Any(MatchAny { any: AnyVariants::Integers(integers.integers.into_iter().collect()) })
        }
        ProtoMatch::ExceptKeywords(keywords) => Match::Except(MatchExcept::from(keywords.strings)),
        ProtoMatch::ExceptIntegers(integers) => Match::Except(MatchExcept::from(integers.integers)),
        ProtoMatch::Text(text) => Match::Text(MatchText { text }),
        ProtoMatch::TextAny(_) => return Err(Error::unimplemented("Match.text_any")),
        ProtoMatch::Phrase(_) => return Err(Error::unimplemented("Match.phrase")),
        ProtoMatch::Prefix(_) => return Err(Error::unimplemented("Match.prefix")),
        ProtoMatch::Substring(_) => return Err(Error::unimplemented("Match.substring")),
    })
}

fn range(range: proto::Range) -> RangeInterface {
    RangeInterface::Float(Range {
        lt: range.lt.map(OrderedFloat),
        gt: range.gt.map(OrderedFloat),
        gte: range.gte.map(OrderedFloat),
        lte: range.lte.map(OrderedFloat),
    })
}

fn values_count(count: proto::ValuesCount) -> ValuesCount {
    let bound = |bound: u64| usize::try_from(bound).unwrap_or(usize::MAX);
    ValuesCount {
        lt: count.lt.map(bound),
        gt: count.gt.map(bound),
        gte: count.gte.map(bound),
        lte: count.lte.map(bound),
    }
}
