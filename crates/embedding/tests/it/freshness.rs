//! Searches that wait for writes.

use std::time::Duration;

use tonic::{Code, Request};
use tonic_types::StatusExt;
use uuid::Uuid;
use waybill_api::embedding::v1::SearchRequest;
use waybill_domain::{FreshnessToken, ProjectId, SourceId};

use crate::world::World;

async fn token(world: &World, project: ProjectId, uri: &str) -> FreshnessToken {
    let version = world.psql(&format!("SELECT version FROM source WHERE uri = '{uri}'")).await.parse().unwrap();
    FreshnessToken { project, source: SourceId::derive(project, uri), version, deleted: false }
}

fn fresh(tokens: &[FreshnessToken]) -> SearchRequest {
    SearchRequest {
        project: "docs".to_owned(),
        query: "apple".to_owned(),
        at_least_as_fresh: tokens.iter().map(ToString::to_string).collect(),
        ..SearchRequest::default()
    }
}

async fn confirm(world: &World, chunk: Uuid) {
    world
        .psql(&format!(
            "INSERT INTO index_state (sink, kind, key, version) SELECT 'qdrant', 'chunk', id, version FROM chunk WHERE id = '{chunk}'"
        ))
        .await;
}

#[tokio::test]
async fn a_search_waits_for_its_tokens_and_no_others() {
    let world = World::start().await;
    let project = world.project("docs").await;
    let a = world.document(project, "a", "apple pie", "{}").await;
    world.document(project, "b", "apple cake", "{}").await;
    let (a_token, b_token) = (token(&world, project, "a").await, token(&world, project, "b").await);
    confirm(&world, a).await;
    world.search.clone().search(fresh(&[a_token])).await.unwrap();

    let waiting = tokio::spawn({
        let mut search = world.search.clone();
        async move { search.search(fresh(&[a_token, b_token])).await }
    });
    let b: Uuid = world.psql("SELECT id FROM chunk WHERE text = 'apple cake'").await.parse().unwrap();
    assert!(!waiting.is_finished());
    confirm(&world, b).await;
    assert_eq!(waiting.await.unwrap().unwrap().into_inner().hits.len(), 2);
    let deleted = FreshnessToken { deleted: true, version: i64::MAX, ..b_token };
    world.search.clone().search(fresh(&[deleted])).await.unwrap();
}

#[tokio::test]
async fn who_waits_too_long_is_told_for_what() {
    let world = World::with(|config| config.freshness_wait_max_ms = 100).await;
    let project = world.project("docs").await;
    let mut tokens = Vec::new();
    for n in 0..7 {
        world.document(project, &format!("docs/{n}"), &format!("apple {n}"), "{}").await;
        tokens.push(token(&world, project, &format!("docs/{n}")).await);
    }
    let refused = world.search.clone().search(fresh(&tokens)).await.unwrap_err();
    assert_eq!(refused.code(), Code::DeadlineExceeded);
    assert_eq!(refused.get_details_error_info().unwrap().reason, "NOT_FRESH_IN_TIME");
    for part in ["\"docs/0\"", "\"docs/4\" and 2 more", "search again with the same tokens", "without the tokens"] {
        assert!(refused.message().contains(part), "{}", refused.message());
    }
}

#[tokio::test]
async fn the_deadline_of_the_call_ends_the_wait() {
    let world = World::start().await;
    let project = world.project("docs").await;
    world.document(project, "a", "apple pie", "{}").await;
    let mut request = Request::new(fresh(&[token(&world, project, "a").await]));
    request.set_timeout(Duration::from_secs(2));
    let refused = world.search.clone().search(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::DeadlineExceeded);
    assert!(refused.message().contains("\"a\""), "our answer, not the transport's: {}", refused.message());
}

#[tokio::test]
async fn searches_that_wait_are_bounded() {
    let world = World::with(|config| config.max_waiting_searches = 1).await;
    let project = world.project("docs").await;
    let a = world.document(project, "a", "apple pie", "{}").await;
    let token = token(&world, project, "a").await;
    let search = || {
        let mut search = world.search.clone();
        tokio::spawn(async move { search.search(fresh(&[token])).await })
    };
    // One of them waits, and the other is told.
    let (mut one, mut two) = (search(), search());
    let (refused, waiting) = tokio::select! {
        refused = &mut one => (refused, two),
        refused = &mut two => (refused, one),
    };
    let refused = refused.unwrap().unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("embedding.max_waiting_searches"), "{}", refused.message());
    assert!(refused.get_details_retry_info().unwrap().retry_delay.is_some());
    world.search.clone().search(fresh(&[])).await.unwrap();
    confirm(&world, a).await;
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_was_confirmed_and_wiped_is_not_said_to_be_absent() {
    let world = World::start().await;
    let project = world.project("docs").await;
    let a = world.document(project, "a", "apple pie", "{}").await;
    let token = token(&world, project, "a").await;
    confirm(&world, a).await;
    let found = world.search.clone().search(fresh(&[token])).await.unwrap().into_inner();
    assert_eq!(found.hits.len(), 1);
    world.vectors.delete_collection(&crate::world::collection().name).await.unwrap();
    // While its name is remembered, and when the alias is gone.
    for _ in 0..2 {
        let refused = world.search.clone().search(fresh(&[token])).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable);
        assert_eq!(refused.get_details_error_info().unwrap().reason, "COLLECTION_LOST");
    }
    assert_eq!(world.search.clone().search(fresh(&[])).await.unwrap().into_inner().hits, []);
}
