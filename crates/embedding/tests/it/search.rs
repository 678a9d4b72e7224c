use prost_types::{Struct, Value, value::Kind};
use tonic::Code;
use uuid::Uuid;
use waybill_api::embedding::v1::{SearchMode, SearchRequest, SearchResponse};
use waybill_vectors::CollectionSpec;

use crate::world::{MODEL, World};

fn query(query: &str) -> SearchRequest {
    SearchRequest { project: "docs".to_owned(), query: query.to_owned(), ..SearchRequest::default() }
}

async fn search(world: &World, request: SearchRequest) -> SearchResponse {
    world.search.clone().search(request).await.unwrap().into_inner()
}

fn ids(response: &SearchResponse) -> Vec<Uuid> {
    response.hits.iter().map(|hit| hit.id.parse().unwrap()).collect()
}

#[tokio::test]
async fn a_hit_says_what_postgres_says() {
    let world = World::start().await;
    let project = world.project("docs").await;
    let wal = world.document(project, "pg/wal.html", "write ahead log and checkpoints", r#"{"lang": "en"}"#).await;
    world.document(project, "pg/json.html", "json functions and operators", "{}").await;

    for mode in [SearchMode::Unspecified, SearchMode::Hybrid, SearchMode::Dense, SearchMode::Lexical] {
        let response = search(&world, SearchRequest { mode: mode.into(), ..query("checkpoints log") }).await;
        assert_eq!(response.model, MODEL);
        assert_eq!(response.stale_count, 0);
        let hit = &response.hits[0];
        assert_eq!(hit.id, wal.to_string(), "{mode:?}");
        assert_eq!(hit.text, "write ahead log and checkpoints");
        assert_eq!(hit.headings, ["Part", "Section"]);
        assert_eq!((hit.source_uri.as_str(), hit.source_title.as_str()), ("pg/wal.html", "Title of pg/wal.html"));
        assert_eq!((hit.start_byte, hit.end_byte), (0, 31));
        assert_eq!(hit.kind, 1);
        assert!(hit.score > 0.0 && hit.version > 0 && hit.source_update_time.is_some());
        let lang = &hit.metadata.as_ref().unwrap().fields["lang"];
        assert_eq!(lang.kind, Some(Kind::StringValue("en".to_owned())));
        let expected = if mode == SearchMode::Lexical { 1 } else { 2 };
        assert_eq!(response.hits.len(), expected, "words alone find one, meaning ranks both");
    }
}

#[tokio::test]
async fn stale_points_are_left_out_and_counted() {
    let world = World::start().await;
    let project = world.project("docs").await;
    let kept = world.document(project, "kept", "apple pie", "{}").await;
    let bumped = world.document(project, "bumped", "apple cake", "{}").await;
    world.document(project, "deleted", "apple juice", "{}").await;
    world.document(project, "moved", "apple tart", "{}").await;
    assert_eq!(search(&world, query("apple")).await.hits.len(), 4);

    let other = world.project("other").await;
    world
        .psql(&format!(
            "UPDATE chunk SET text = 'pear cake' WHERE id = '{bumped}';
             DELETE FROM source WHERE uri = 'deleted';
             UPDATE source SET project_id = '{other}' WHERE uri = 'moved'"
        ))
        .await;
    let response = search(&world, query("apple")).await;
    assert_eq!((ids(&response), response.stale_count), (vec![kept], 3));

    // Delivered, it is found again, as what it is now.
    world.deliver(project, "bumped", bumped, "pear cake", "{}").await;
    let response = search(&world, query("pear")).await;
    assert_eq!((response.hits[0].text.as_str(), response.stale_count), ("pear cake", 2));

    world.psql("DELETE FROM project WHERE name = 'docs'").await;
    let status = world.search.clone().search(query("apple")).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
}

#[tokio::test]
async fn stale_points_do_not_crowd_out_the_others() {
    let world = World::start().await;
    let project = world.project("docs").await;
    // The best points by far are stale, and more than the first fetch brings.
    for n in 0..20 {
        world.document(project, &format!("stale/{n}"), &format!("apple apple apple {n}"), "{}").await;
    }
    for n in 0..3 {
        world.document(project, &format!("kept/{n}"), &format!("apple and many other words around it {n}"), "{}").await;
    }
    world.psql("DELETE FROM source WHERE uri LIKE 'stale/%'").await;
    for mode in [SearchMode::Hybrid, SearchMode::Dense, SearchMode::Lexical] {
        let response = search(&world, SearchRequest { limit: 3, mode: mode.into(), ..query("apple") }).await;
        assert_eq!(response.hits.len(), 3, "{mode:?}");
        assert!(response.hits.iter().all(|hit| hit.source_uri.starts_with("kept/")));
        assert!(response.stale_count > 0);
    }
}

#[tokio::test]
async fn projects_do_not_see_each_other() {
    let world = World::start().await;
    let (docs, other) = (world.project("docs").await, world.project("other").await);
    let mine = world.document(docs, "same", "secret recipe", "{}").await;
    let theirs = world.document(other, "same", "secret recipe", "{}").await;
    let in_project = |project: &str| SearchRequest { project: project.to_owned(), ..query("secret recipe") };
    assert_eq!(ids(&search(&world, in_project("docs")).await), [mine]);
    assert_eq!(ids(&search(&world, in_project("other")).await), [theirs]);
}

#[tokio::test]
async fn filters_on_source_and_metadata() {
    let world = World::start().await;
    let project = world.project("docs").await;
    let a = world.document(project, "a", "apple one", r#"{"lang": "en", "year": 2024, "tags": ["x", "y"]}"#).await;
    let b = world.document(project, "b", "apple two", r#"{"lang": "de", "year": 2024, "draft": true}"#).await;
    let c = world.document(project, "c", "apple three", r#"{"lang": "en", "odd key.": "yes"}"#).await;

    let sources = |uris: &[&str]| SearchRequest {
        source_uris: uris.iter().map(|uri| (*uri).to_owned()).collect(),
        ..query("apple")
    };
    let metadata = |fields: &[(&str, Kind)]| SearchRequest {
        metadata: Some(Struct {
            fields: fields.iter().map(|(key, kind)| ((*key).to_owned(), Value { kind: Some(kind.clone()) })).collect(),
        }),
        ..query("apple")
    };
    let text = |text: &str| Kind::StringValue(text.to_owned());
    let cases = [
        (sources(&["a", "c"]), vec![a, c]),
        (sources(&["b", "missing"]), vec![b]),
        (sources(&["missing"]), vec![]),
        (SearchRequest { kinds: vec![1], ..query("apple") }, vec![a, b, c]),
        (metadata(&[("lang", text("en"))]), vec![a, c]),
        (metadata(&[("lang", text("en")), ("year", Kind::NumberValue(2024.0))]), vec![a]),
        (metadata(&[("year", Kind::NumberValue(2024.0))]), vec![a, b]),
        (metadata(&[("draft", Kind::BoolValue(true))]), vec![b]),
        (metadata(&[("tags", text("y"))]), vec![a]),
        (metadata(&[("odd key.", text("yes"))]), vec![c]),
        (metadata(&[("lang", text("fr"))]), vec![]),
    ];
    for (request, mut expected) in cases {
        let mut found = ids(&search(&world, request.clone()).await);
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected, "{request:?}");
    }
}

#[tokio::test]
async fn limit_threshold_and_queries_without_terms() {
    let world = World::start().await;
    let project = world.project("docs").await;
    for n in 0..12 {
        world.document(project, &format!("{n}"), &format!("apple number {n}"), "{}").await;
    }
    assert_eq!(search(&world, query("apple")).await.hits.len(), 10);
    assert_eq!(search(&world, SearchRequest { limit: 2, ..query("apple") }).await.hits.len(), 2);
    let strict =
        SearchRequest { mode: SearchMode::Dense.into(), score_threshold: Some(0.99), ..query("apple number 7") };
    let strict = search(&world, strict).await;
    assert_eq!((strict.hits.len(), strict.hits[0].text.as_str()), (1, "apple number 7"));

    let stop_words = SearchRequest { mode: SearchMode::Lexical.into(), ..query("the of and") };
    assert_eq!(search(&world, stop_words).await.hits, []);
    assert_eq!(search(&world, query("the of and")).await.hits.len(), 10);
}

#[tokio::test]
async fn before_anything_is_delivered_nothing_is_found() {
    let world = World::start().await;
    world.psql("INSERT INTO project (id, name) VALUES (gen_random_uuid(), 'docs')").await;
    assert_eq!(search(&world, query("anything")).await, SearchResponse::default());

    world.project("second").await;
    assert_eq!(search(&world, query("anything")).await.hits, []);
    // Wiped while its name is remembered.
    world.vectors.delete_collection(&crate::world::collection().name).await.unwrap();
    assert_eq!(search(&world, query("anything")).await.hits, []);
    assert_eq!(search(&world, query("anything")).await.hits, []);
}

#[tokio::test]
async fn a_collection_of_a_model_that_is_not_served_is_named() {
    let world = World::start().await;
    world.psql("INSERT INTO project (id, name) VALUES (gen_random_uuid(), 'docs')").await;
    let foreign = CollectionSpec::for_model("somebody-elses", 64);
    world.vectors.ensure_collection(&foreign, "waybill").await.unwrap();
    let status = world.search.clone().search(query("anything")).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    for part in [foreign.name.as_str(), MODEL] {
        assert!(status.message().contains(part), "{status}");
    }
}
