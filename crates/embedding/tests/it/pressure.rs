//! Too much, too slow, too often.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt;
use waybill_api::embedding::v1::{EmbedRequest, Purpose};
use waybill_testkit::eventually;

use crate::world::{DEADLINE, World};

fn many(name: &str, count: usize) -> EmbedRequest {
    EmbedRequest {
        texts: (0..count).map(|n| format!("{name} {n}")).collect(),
        purpose: Purpose::Document.into(),
        ..EmbedRequest::default()
    }
}

fn retry_delay(status: &Status) -> Option<Duration> {
    status.get_details_retry_info().and_then(|info| info.retry_delay)
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let world = World::with(|config| {
        config.batching.max_waiting_texts = 1_024;
        config.batching.in_flight = 1;
    })
    .await;
    world.model.set_open(false);
    let mut client = world.embedding.clone();
    let first = tokio::spawn(async move { client.embed(many("first", 1_024)).await });
    eventually("the first request is under way", DEADLINE, async || world.model.texts() > 0).await;

    let status = world.embedding.clone().embed(many("second", 1_024)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(retry_delay(&status).is_some(), "{status:?}");
    assert_eq!(status.get_details_error_info().unwrap().reason, "EMBEDDING_QUEUE_FULL");

    // The same texts join those that wait. And a query has a line of its own.
    let mut client = world.embedding.clone();
    let joined = tokio::spawn(async move { client.embed(many("first", 1_024)).await });
    let before = world.model.calls().len();
    let mut client = world.embedding.clone();
    let query = EmbedRequest { purpose: Purpose::Query.into(), ..many("query", 1) };
    let query = tokio::spawn(async move { client.embed(query).await });
    eventually("the query reaches the model", DEADLINE, async || world.model.calls().len() > before).await;
    assert_eq!(world.model.calls().last().unwrap(), &["query 0"]);

    world.model.set_open(true);
    for call in [first, joined, query] {
        call.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn work_of_a_caller_who_has_gone_is_dropped() {
    let world = World::with(|config| config.batching.in_flight = 1).await;
    world.model.set_open(false);
    let mut client = world.embedding.clone();
    let gone = tokio::spawn(async move { client.embed(many("gone", 500)).await });
    eventually("the first batch is under way", DEADLINE, async || world.model.texts() > 0).await;
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    let started = world.model.texts();

    // The cancelled call reaches the server before this one, on the same connection.
    let mut client = world.embedding.clone();
    let stays = tokio::spawn(async move { client.embed(many("stays", 3)).await });
    world.model.set_open(true);
    stays.await.unwrap().unwrap();
    assert!(world.model.texts() <= started + 3 + 32, "embedded {} texts", world.model.texts());
}

#[tokio::test]
async fn a_throttling_server_is_obeyed() {
    let world = World::start().await;
    world.model.refuse_next(429, Some(1));
    world.embedding.clone().embed(many("obeyed", 2)).await.unwrap();
    assert_eq!(world.model.calls().len(), 2);

    world.model.refuse_next(429, Some(120));
    let status = world.embedding.clone().embed(many("too long", 2)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(retry_delay(&status), Some(Duration::from_secs(120)));
}

#[tokio::test]
async fn a_failing_server_is_tried_again_then_unavailable() {
    let world = World::start().await;
    world.model.refuse_next(503, None);
    world.embedding.clone().embed(many("once", 1)).await.unwrap();
    for _ in 0..3 {
        world.model.refuse_next(500, None);
    }
    let status = world.embedding.clone().embed(many("thrice", 1)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(!status.message().contains("127.0.0.1"), "hosts stay inside: {status}");
    world.embedding.clone().embed(many("thrice", 1)).await.unwrap();
}

#[tokio::test]
async fn what_was_embedded_before_a_stop_is_cached() {
    let world = World::start().await;
    world.embedding.clone().embed(many("text", 100)).await.unwrap();
    world.shutdown.trigger();
    eventually("the vectors are written", DEADLINE, async || {
        world.psql("SELECT count(*) FROM embedding_cache").await == "100"
    })
    .await;
}
