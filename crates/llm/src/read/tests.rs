use serde_json::{Value, json};

use super::*;
use crate::DroppedEntities;

const TEXT: &str = "Acme Corp was founded in Zürich.\nIt employs   400 people.";

fn read(answer: &Value) -> Extraction {
    read_extraction(&answer.to_string(), TEXT, &ExtractionSettings::default()).unwrap()
}

fn fact(statement: &str, quote: &str) -> Value {
    json!({"kind": "statement", "statement": statement, "quote": quote, "confidence": 0.9})
}

fn one(fact: &Value) -> Fact {
    let mut extraction = read(&json!({"facts": [fact]}));
    assert_eq!(extraction.facts.len(), 1, "{:?}", extraction.dropped);
    extraction.facts.remove(0)
}

#[test]
fn a_fact_keeps_its_parts_and_its_place() {
    let fact = one(&json!({
        "kind": "founding", "statement": "Acme was\n founded in\0 Zürich.", "subject": "Acme Corp",
        "predicate": "founded in", "object": "Zürich", "confidence": 0.75, "quote": "founded in Zürich",
        "entities": [
            {"kind": "company", "name": "ACME \u{7}Corp", "role": "Subject"},
            {"kind": "place", "name": "Zürich", "role": "object"},
            {"kind": "place", "name": "Zürich", "role": "object"},
            {"name": "people", "role": "bystander"},
        ],
    }));
    assert_eq!(fact.statement, "Acme was founded in Zürich.");
    assert_eq!((fact.start_byte, fact.end_byte), (14, 32));
    assert_eq!(&TEXT[fact.start_byte..fact.end_byte], fact.quote);
    assert_eq!(fact.object.as_deref(), Some("Zürich"));
    let entities: Vec<_> = fact.entities.iter().map(|e| (&*e.kind, &*e.canonical, &*e.role)).collect();
    assert_eq!(
        entities,
        [("company", "acme corp", "subject"), ("place", "zürich", "object"), ("other", "people", "mention")]
    );
}

#[test]
fn a_quote_with_other_white_space_maps_to_the_real_bytes() {
    let fact = one(&fact("It employs 400.", "Zürich. It employs 400 people."));
    assert_eq!(fact.quote, "Zürich.\nIt employs   400 people.");
    assert_eq!((fact.start_byte, fact.end_byte), (25, TEXT.len()));
}

#[test]
fn a_fact_without_evidence_is_dropped() {
    let extraction = read(&json!({"facts": [fact("It is large.", "It employs 4,000 people."), fact("x", "Acme")]}));
    assert_eq!(extraction.facts.len(), 1);
    assert_eq!(extraction.dropped, Dropped { quote_not_found: 1, ..Dropped::default() });
}

#[test]
fn ten_thousand_facts_leave_the_first_ones() {
    let facts = vec![fact("x", "Acme"); 10_000];
    let extraction = read(&json!({ "facts": facts }));
    assert_eq!(extraction.facts.len(), MAX_FACTS);
    assert_eq!(extraction.dropped.too_many, 10_000 - 64);
    let facts = vec![fact("x", "not there"); 10_000];
    assert_eq!(read(&json!({ "facts": facts })).dropped.quote_not_found, 10_000);
}

#[test]
fn what_is_too_long_is_dropped() {
    let mut large = fact("x", "Acme");
    large["entities"] = json!([{"name": "n".repeat(1_000_000)}, {"name": "\u{fdfa}".repeat(80)}, {"name": "Acme"}]);
    large["object"] = json!("o".repeat(1_000));
    let extraction = read(&json!({"facts": [large, fact(&"s".repeat(2_049), "Acme")]}));
    assert_eq!(extraction.facts.len(), 1);
    assert_eq!(extraction.facts[0].entities.len(), 1);
    assert_eq!(extraction.facts[0].object, None);
    let entities = DroppedEntities { name_too_long: 2, ..DroppedEntities::default() };
    assert_eq!(extraction.dropped, Dropped { too_long: 2, entities, ..Dropped::default() });
}

#[test]
fn entities_beyond_the_limit_are_dropped() {
    let mut crowded = fact("x", "Acme");
    crowded["entities"] = (0..20).map(|number| json!({"name": format!("n{number}")})).collect();
    let extraction = read(&json!({"facts": [crowded]}));
    assert_eq!(extraction.facts[0].entities.len(), MAX_ENTITIES_PER_FACT);
    let entities = DroppedEntities { too_many: 4, ..DroppedEntities::default() };
    assert_eq!(extraction.dropped, Dropped { entities, ..Dropped::default() });
    assert_eq!(extraction.dropped.entity_reasons().collect::<Vec<_>>(), [("too_many", 4)]);
}

#[test]
fn a_confidence_of_any_kind_is_read() {
    for (value, expected) in [
        (json!("0.25"), 0.25),
        (json!(1), 1.0),
        (json!(-3), 0.0),
        (json!(95), 1.0),
        (json!("NaN"), 0.5),
        (json!("inf"), 0.5),
        (json!("high"), 0.5),
        (json!(null), 0.5),
        (json!([0.1]), 0.5),
    ] {
        let mut fact = fact("x", "Acme");
        fact["confidence"] = value.clone();
        let confidence = one(&fact).confidence;
        assert!((confidence - expected).abs() < f32::EPSILON, "{value}: {confidence}");
    }
}

#[test]
fn what_is_no_fact_is_dropped() {
    let facts = json!([
        null, 7, "text", [], {}, {"statement": "x"}, {"quote": "Acme"}, {"statement": null, "quote": "Acme"},
        {"statement": "\0\u{1}", "quote": "Acme"}, {"statement": "x", "quote": "  "},
        {"statement": {"a": 1}, "quote": "Acme"}, {"statement": "x", "quote": "Acme", "kind": "No Type!"},
        {"statement": "x", "quote": "Acme", "kind": ["statement"]},
    ]);
    let count = facts.as_array().unwrap().len();
    let extraction = read(&json!({ "facts": facts }));
    assert!(extraction.facts.is_empty());
    assert_eq!(extraction.dropped.malformed as usize, count);
}

#[test]
fn nulls_and_odd_entities_leave_the_fact() {
    let fact = one(&json!({
        "statement": "x", "quote": "Acme", "kind": null, "subject": null, "object": 42, "entities": null,
    }));
    assert_eq!((&*fact.kind, fact.subject.as_deref(), fact.object.as_deref()), ("statement", None, Some("42")));
    let extraction = read(&json!({"facts": [
        {"statement": "x", "quote": "Acme", "entities": "Acme"},
        {"statement": "x", "quote": "Acme", "entities": [null, "Acme", {"name": null}, {"name": "Acme"}]},
    ]}));
    assert_eq!(extraction.facts[1].entities.len(), 1);
    let entities = DroppedEntities { malformed: 3, empty_name: 1, ..DroppedEntities::default() };
    assert_eq!(extraction.dropped, Dropped { entities, ..Dropped::default() });
}

#[test]
fn types_that_are_not_asked_for_are_dropped() {
    let settings = ExtractionSettings {
        fact_types: vec!["head_count".to_owned()],
        entity_types: vec!["company".to_owned()],
        ..ExtractionSettings::default()
    };
    let answer = json!({"facts": [
        {"kind": "Head Count", "statement": "x", "quote": "400 people",
         "entities": [{"kind": "company", "name": "Acme"}, {"kind": "place", "name": "Zürich"}, {"name": "x"}]},
        {"kind": "other", "statement": "x", "quote": "400 people"},
        {"statement": "x", "quote": "400 people"},
    ]});
    let extraction = read_extraction(&answer.to_string(), TEXT, &settings).unwrap();
    assert_eq!(extraction.facts.len(), 1);
    assert_eq!(extraction.facts[0].kind, "head_count");
    assert_eq!(extraction.facts[0].entities.len(), 1);
    let entities = DroppedEntities { unknown_type: 2, ..DroppedEntities::default() };
    assert_eq!(extraction.dropped, Dropped { malformed: 2, entities, ..Dropped::default() });
    assert_eq!(extraction.dropped.fact_reasons().collect::<Vec<_>>(), [("malformed", 2)]);
}

#[test]
fn hostile_json_is_survived() {
    let settings = ExtractionSettings::default();
    let read = |answer: &str| read_extraction(answer, TEXT, &settings);
    // The last of two equal keys counts.
    let twice = read(r#"{"facts": null, "facts": [{"statement": "a", "statement": "b", "quote": "Acme"}]}"#).unwrap();
    assert_eq!(twice.facts[0].statement, "b");
    let nested = format!(r#"{{"facts": [{}{}]}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert!(read(&nested).is_err());
    for answer in [
        r#"{"facts": [{"statement": "x", "quote": "Acme", "confidence": NaN}]}"#,
        r#"{"facts": [{"statement": "\ud800", "quote": "Acme"}]}"#,
        r#"{"facts": {"statement": "x"}}"#,
        r#"{"facts": null}"#,
        r#"{"facts": "none"}"#,
        "[]",
        "null",
    ] {
        assert!(read(answer).is_err(), "{answer}");
    }
    assert_eq!(read(r#"{"facts": []}"#), Ok(Extraction::default()));
}

#[test]
fn any_text_and_any_quote_are_survived() {
    for text in ["", " ", "\u{0}", "é", "\u{1F600}"] {
        let answer = json!({"facts": [fact("x", "é"), fact("x", "\u{1F600}"), fact("x", "\u{0}")]});
        let extraction = read_extraction(&answer.to_string(), text, &ExtractionSettings::default()).unwrap();
        for fact in extraction.facts {
            assert_eq!(&text[fact.start_byte..fact.end_byte], fact.quote);
        }
    }
}

#[test]
fn a_cut_answer_keeps_its_whole_facts() {
    let whole = json!({"facts": [fact("a", "Acme"), fact("b", "not there"), fact("c", "400"), fact("d", "people")]})
        .to_string();
    let read = |answer: &str| read_answer(answer, TEXT, &ExtractionSettings::default());
    let at = whole.rfind("people").unwrap();
    let Reading::Read(cut) = read(&whole[..at]) else { panic!("a mere cut") };
    assert_eq!(cut.facts.iter().map(|fact| &*fact.statement).collect::<Vec<_>>(), ["a", "c"]);
    assert_eq!(cut.dropped, Dropped { quote_not_found: 1, truncated: 1, ..Dropped::default() });
    // Something else follows: perhaps it is better asked for again.
    let broken = read(&format!("{}\", oops}}]}}", &whole[..at]));
    assert!(matches!(&broken, Reading::Broken { rest: Some(rest), .. } if *rest == cut), "{broken:?}");
    assert!(matches!(read(&whole[..20]), Reading::Broken { rest: None, .. }));
}
