//! Bad requests: the code, and the field that is named.

use prost_types::{ListValue, Struct, Value, value::Kind};
use tonic::{Code, Status};
use tonic_types::StatusExt;
use waybill_api::embedding::v1::{EmbedRequest, Purpose, SearchRequest};
use waybill_domain::{FreshnessToken, ProjectId, SourceId};

use crate::world::{MODEL, World};

fn field_of(status: &Status) -> String {
    let violations = status.get_details_bad_request().map(|bad| bad.field_violations).unwrap_or_default();
    violations.first().map(|violation| violation.field.clone()).unwrap_or_default()
}

#[tokio::test]
async fn bad_embedding_requests() {
    let world = World::start().await;
    let good = || EmbedRequest {
        texts: vec!["text".to_owned()],
        purpose: Purpose::Document.into(),
        ..EmbedRequest::default()
    };
    let texts = |texts: Vec<String>| EmbedRequest { texts, ..good() };
    let cases = [
        ("texts", texts(vec![])),
        ("texts", texts(vec!["x".to_owned(); 1_025])),
        ("texts[1]", texts(vec!["x".to_owned(), String::new()])),
        ("texts[0]", texts(vec!["x".repeat(65_537)])),
        ("purpose", EmbedRequest { purpose: 0, ..good() }),
        ("purpose", EmbedRequest { purpose: 99, ..good() }),
    ];
    for (field, request) in cases {
        let status = world.embedding.clone().embed(request).await.unwrap_err();
        assert_eq!((status.code(), field_of(&status).as_str()), (Code::InvalidArgument, field), "{status}");
    }
    let unknown = EmbedRequest { model: "nobody".to_owned(), ..good() };
    let status = world.embedding.clone().embed(unknown).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    for part in ["model", "nobody", MODEL] {
        assert!(status.message().contains(part), "{status}");
    }
    assert_eq!(world.model.texts(), 0, "nothing of it reached the model");

    // The largest that is allowed.
    world.embedding.clone().embed(texts(vec!["x".repeat(65_536)])).await.unwrap();
    let too_large = texts(vec!["x".repeat(65_536); 300]);
    let status = world.embedding.clone().embed(too_large).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("embedding.max_message_bytes"), "{status}");
}

#[tokio::test]
async fn bad_searches() {
    let world = World::start().await;
    world.project("real").await;
    let good = || SearchRequest { project: "real".to_owned(), query: "words".to_owned(), ..SearchRequest::default() };
    let metadata = |key: &str, kind: Kind| SearchRequest {
        metadata: Some(Struct { fields: [(key.to_owned(), Value { kind: Some(kind) })].into() }),
        ..good()
    };
    let many_keys = (0..17).map(|n| (n.to_string(), Value { kind: Some(Kind::BoolValue(true)) })).collect();
    let cases = [
        ("project", SearchRequest { project: String::new(), ..good() }),
        ("project", SearchRequest { project: "Not A Name".to_owned(), ..good() }),
        ("query", SearchRequest { query: String::new(), ..good() }),
        ("query", SearchRequest { query: " \n".to_owned(), ..good() }),
        ("query", SearchRequest { query: "x".repeat(8_193), ..good() }),
        ("mode", SearchRequest { mode: 9, ..good() }),
        ("limit", SearchRequest { limit: -1, ..good() }),
        ("limit", SearchRequest { limit: 101, ..good() }),
        ("score_threshold", SearchRequest { score_threshold: Some(f32::NAN), ..good() }),
        ("kinds[0]", SearchRequest { kinds: vec![0], ..good() }),
        ("kinds[1]", SearchRequest { kinds: vec![1, 42], ..good() }),
        ("source_uris", SearchRequest { source_uris: vec!["u".to_owned(); 101], ..good() }),
        ("source_uris[0]", SearchRequest { source_uris: vec![String::new()], ..good() }),
        ("metadata", SearchRequest { metadata: Some(Struct { fields: many_keys }), ..good() }),
        ("metadata", metadata("", Kind::BoolValue(true))),
        ("metadata", metadata("a\"b", Kind::BoolValue(true))),
        ("metadata[\"key\"]", metadata("key", Kind::NullValue(0))),
        ("metadata[\"key\"]", metadata("key", Kind::ListValue(ListValue::default()))),
        ("metadata[\"key\"]", metadata("key", Kind::NumberValue(f64::INFINITY))),
    ];
    let token = |project: &str| {
        let project = ProjectId::derive(&project.parse().unwrap());
        let source = SourceId::derive(project, "a");
        FreshnessToken { project, source, version: 1, deleted: false }.to_string()
    };
    let fresh = |tokens: &[String]| SearchRequest { at_least_as_fresh: tokens.to_vec(), ..good() };
    let tokens = [
        ("at_least_as_fresh[0]", fresh(&[String::new()])),
        ("at_least_as_fresh[1]", fresh(&[token("real"), "garbage".to_owned()])),
        ("at_least_as_fresh[0]", fresh(&[token("real")[1..].to_owned()])),
        ("at_least_as_fresh[0]", fresh(&[token("other")])),
        ("at_least_as_fresh", fresh(&vec![token("real"); 65])),
    ];
    for (field, request) in cases.into_iter().chain(tokens) {
        let status = world.search.clone().search(request).await.unwrap_err();
        assert_eq!((status.code(), field_of(&status).as_str()), (Code::InvalidArgument, field), "{status}");
    }
    let unknown = SearchRequest { project: "unknown".to_owned(), ..good() };
    let status = world.search.clone().search(unknown).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().contains("project") && status.message().contains("unknown"), "{status}");
    world.search.clone().search(good()).await.unwrap();
    // Of a source that is gone there is nothing to wait for.
    world.search.clone().search(fresh(&vec![token("real"); 64])).await.unwrap();
}
