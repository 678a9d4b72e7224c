use qdrant_client::qdrant::{
    Condition, CreateFieldIndexCollectionBuilder, FieldType, Filter, Range, ScrollPointsBuilder,
};
use serde_json::json;
use tonic::Code;

use crate::support::{Fixture, assert_status, number, point};

/// Checks every kind of condition, without and with payload indexes: the
/// engine takes other ways through its code for the two.
#[tokio::test]
async fn conditions_select_the_points_they_describe() {
    let fixture = Fixture::new().await;
    let name = fixture.collection().await;
    let payloads = [
        json!({"project": "a", "version": 1, "draft": true, "weight": 0.5, "tags": ["x", "y"]}),
        json!({"project": "a", "version": 2, "draft": false, "weight": 1.5, "tags": ["y"]}),
        json!({"project": "b", "version": 3, "draft": true, "meta": {"kind": "k"}, "tags": []}),
        json!({"project": "b", "version": 4, "draft": false, "nothing": null}),
        json!({"parts": [{"n": 1, "c": "red"}, {"n": 2, "c": "blue"}]}),
        json!({"parts": [{"n": 1, "c": "blue"}, {"n": 2, "c": "red"}]}),
    ];
    let points = payloads.into_iter().zip(1_u64..);
    let points = points.map(|(payload, id)| point(id, [1.0; 4], &[(1, 1.0)], payload));
    fixture.upsert(&name, points.collect()).await;

    check_all(&fixture, &name).await;
    for (key, field_type) in [
        ("project", FieldType::Keyword),
        ("version", FieldType::Integer),
        ("draft", FieldType::Bool),
        ("weight", FieldType::Float),
        ("tags", FieldType::Keyword),
        ("meta.kind", FieldType::Keyword),
    ] {
        let request = CreateFieldIndexCollectionBuilder::new(&name, key, field_type).wait(true);
        fixture.client.create_field_index(request).await.unwrap();
    }
    check_all(&fixture, &name).await;
}

async fn check_all(fixture: &Fixture, name: &str) {
    let between = Range { gte: Some(2.0), lt: Some(4.0), ..Range::default() };
    let above = Range { gt: Some(0.5), ..Range::default() };
    let is = |key: &str, value: &str| Condition::matches(key, value.to_owned());
    let words = |list: &[&str]| list.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let except = qdrant_client::qdrant::r#match::MatchValue::ExceptKeywords(qdrant_client::qdrant::RepeatedStrings {
        strings: words(&["a"]),
    });
    let cases: Vec<(&str, Filter, &[u64])> = vec![
        ("empty", Filter::default(), &[1, 2, 3, 4, 5, 6]),
        ("keyword", Filter::must([is("project", "a")]), &[1, 2]),
        ("keyword in a list", Filter::must([is("tags", "y")]), &[1, 2]),
        ("nested key", Filter::must([is("meta.kind", "k")]), &[3]),
        ("integer", Filter::must([Condition::matches("version", 3_i64)]), &[3]),
        ("bool", Filter::must([Condition::matches("draft", true)]), &[1, 3]),
        ("any keyword", Filter::must([Condition::matches("project", words(&["b", "z"]))]), &[3, 4]),
        ("any integer", Filter::must([Condition::matches("version", vec![1_i64, 4])]), &[1, 4]),
        ("except", Filter::must([Condition::matches("project", except)]), &[3, 4]),
        ("integer range", Filter::must([Condition::range("version", between)]), &[2, 3]),
        ("float range", Filter::must([Condition::range("weight", above)]), &[2]),
        ("ids", Filter::must([Condition::has_id([2, 3, 99_u64])]), &[2, 3]),
        (
            "must and must not",
            Filter {
                must: vec![is("project", "a")],
                must_not: vec![Condition::matches("draft", true)],
                ..Filter::default()
            },
            &[2],
        ),
        ("should", Filter::should([is("meta.kind", "k"), Condition::matches("version", 1_i64)]), &[1, 3]),
        (
            "at least two",
            Filter::min_should(2, [is("project", "a"), is("tags", "x"), Condition::matches("draft", false)]),
            &[1, 2],
        ),
        ("filter in a filter", Filter::must([Filter::should([is("tags", "x"), is("meta.kind", "k")]).into()]), &[1, 3]),
        ("empty field", Filter::must([Condition::is_empty("tags"), Condition::has_id([1, 3, 4_u64])]), &[3, 4]),
        ("null", Filter::must([Condition::is_null("nothing")]), &[4]),
        (
            "one element of a list",
            Filter::must([Condition::nested("parts", Filter::must([Condition::matches("n", 1_i64), is("c", "red")]))]),
            &[5],
        ),
    ];
    for (what, filter, expected) in cases {
        assert_eq!(matching(fixture, name, filter.clone()).await, expected, "{what}");
        assert_eq!(fixture.count(name, filter).await, expected.len() as u64, "count: {what}");
    }
}

async fn matching(fixture: &Fixture, name: &str, filter: Filter) -> Vec<u64> {
    let request = ScrollPointsBuilder::new(name).filter(filter).limit(100);
    let page = fixture.client.scroll(request).await.unwrap();
    page.result.into_iter().map(|point| number(point.id)).collect()
}

#[tokio::test]
async fn malformed_filters_are_refused() {
    let fixture = Fixture::new().await;
    let name = fixture.collection().await;
    let empty = Condition { condition_one_of: None };
    let request = ScrollPointsBuilder::new(&name).filter(Filter::must([empty]));
    assert_status(fixture.client.scroll(request).await, Code::InvalidArgument, "condition");
    let bad_id = Condition::has_id(["not-a-uuid"]);
    let request = ScrollPointsBuilder::new(&name).filter(Filter::must([bad_id]));
    assert_status(fixture.client.scroll(request).await, Code::InvalidArgument, "uuid");
}
