use futures::StreamExt;
use tonic::Code;
use waybill_api::embedding::v1::{EmbedRequest, EmbedResponse, ListModelsRequest, Purpose};
use waybill_testkit::{TestDb, eventually};

use crate::model::DIMENSIONS;
use crate::world::{DEADLINE, MODEL, World, floats};

fn documents(texts: &[&str]) -> EmbedRequest {
    EmbedRequest {
        texts: texts.iter().map(|text| (*text).to_owned()).collect(),
        purpose: Purpose::Document.into(),
        ..EmbedRequest::default()
    }
}

async fn embed(world: &World, request: EmbedRequest) -> EmbedResponse {
    world.embedding.clone().embed(request).await.unwrap().into_inner()
}

fn dense(response: &EmbedResponse) -> Vec<Vec<u8>> {
    response.embeddings.iter().map(|embedding| embedding.dense.clone()).collect()
}

async fn cached_rows(world: &World) -> usize {
    world.psql("SELECT count(*) FROM embedding_cache").await.parse().unwrap()
}

#[tokio::test]
async fn vectors_come_in_order_with_length_one() {
    let world = World::start().await;
    let texts = ["alpha beta", "gamma", "alpha beta beta"];
    let response = embed(&world, EmbedRequest { with_sparse: true, ..documents(&texts) }).await;
    assert_eq!((response.model.as_str(), response.cached_count), (MODEL, 0));
    let vectors: Vec<_> = dense(&response).iter().map(|bytes| floats(bytes)).collect();
    for vector in &vectors {
        assert_eq!(vector.len(), DIMENSIONS);
        let length: f32 = vector.iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-5, "{length}");
    }
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    assert!(dot(&vectors[0], &vectors[2]) > 0.9);
    assert!(dot(&vectors[0], &vectors[1]) < 0.2);
    let terms: Vec<_> = response.embeddings.iter().map(|e| e.sparse.as_ref().unwrap().indices.len()).collect();
    assert_eq!(terms, [2, 1, 2]);

    // Alone, each text gets what it got in company; and no terms unless asked.
    for (text, expected) in texts.iter().zip(dense(&response)) {
        let single = embed(&world, documents(&[text])).await;
        assert_eq!(dense(&single), [expected]);
        assert!(single.embeddings[0].sparse.is_none());
    }
}

#[tokio::test]
async fn a_text_is_embedded_once() {
    let world = World::start().await;
    let first = embed(&world, documents(&["one", "two", "one", "three"])).await;
    assert_eq!((first.cached_count, world.model.texts()), (0, 3));
    assert_eq!(first.embeddings[0], first.embeddings[2]);
    eventually("vectors are written behind", DEADLINE, async || cached_rows(&world).await == 3).await;

    let again = embed(&world, documents(&["three", "new", "one", "one"])).await;
    assert_eq!((again.cached_count, world.model.texts()), (3, 4));
    assert_eq!(again.embeddings[0], first.embeddings[3]);
    assert_eq!([&again.embeddings[2], &again.embeddings[3]], [&first.embeddings[0]; 2]);
}

#[tokio::test]
async fn queries_are_not_cached() {
    let world = World::start().await;
    let query = EmbedRequest { purpose: Purpose::Query.into(), with_sparse: true, ..documents(&["find this"]) };
    let first = embed(&world, query.clone()).await;
    let second = embed(&world, query).await;
    assert_eq!((second.cached_count, world.model.texts()), (0, 2));
    assert_eq!(first.embeddings, second.embeddings);
    // A document's vector is another one, and must not come from a query.
    assert_eq!(embed(&world, documents(&["find this"])).await.cached_count, 0);
    assert_eq!(world.model.texts(), 3);
}

#[tokio::test]
async fn what_was_cached_for_another_length_is_not_used() {
    let world = World::start().await;
    embed(&world, documents(&["one"])).await;
    eventually("the vector is written", DEADLINE, async || cached_rows(&world).await == 1).await;
    world.psql("UPDATE embedding_cache SET dense = '\\x00000000'").await;
    let response = embed(&world, documents(&["one"])).await;
    assert_eq!((response.cached_count, world.model.texts()), (0, 2));
}

#[tokio::test]
async fn without_postgres_texts_are_embedded_all_the_same() {
    let database = TestDb::create().await.unwrap();
    // Nobody listens on the port of a listener that was closed.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let world = World::on(database, &format!("postgres://nobody@{closed}/none"), |_| {}).await;
    for texts in 1..=2 {
        let response = embed(&world, documents(&["one"])).await;
        assert_eq!((response.cached_count, world.model.texts()), (0, texts));
    }
}

#[tokio::test]
async fn a_stream_answers_each_message_in_order() {
    let world = World::start().await;
    let requests: Vec<_> = (0..20).map(|n| documents(&[&format!("text {n}"), "same"])).collect();
    let expected: Vec<_> = {
        let mut expected = Vec::new();
        for request in &requests {
            expected.push(dense(&embed(&world, request.clone()).await));
        }
        expected
    };
    let answers = world.embedding.clone().embed_stream(futures::stream::iter(requests)).await.unwrap().into_inner();
    let answers: Vec<_> = answers.map(|answer| dense(&answer.unwrap())).collect().await;
    assert_eq!(answers, expected);
}

#[tokio::test]
async fn a_stream_ends_with_the_first_failure() {
    let world = World::start().await;
    let requests = [documents(&["good"]), documents(&[]), documents(&["after"])];
    let mut answers = world.embedding.clone().embed_stream(futures::stream::iter(requests)).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap().embeddings.len(), 1);
    let status = answers.message().await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("texts"), "{status}");
}

#[tokio::test]
async fn models_are_listed_with_the_default_first() {
    let world = World::with(|config| {
        let mut other = config.model.clone();
        other.openai.model = "other".to_owned();
        config.more_models.push(other);
    })
    .await;
    let models = world.embedding.clone().list_models(ListModelsRequest {}).await.unwrap().into_inner().models;
    let seen: Vec<_> = models.iter().map(|model| (model.name.as_str(), model.default, model.dimensions)).collect();
    assert_eq!(seen, [(MODEL, true, DIMENSIONS as i32), ("other", false, DIMENSIONS as i32)]);
    assert_eq!(models[0].provider, "openai");

    // Each has a cache of its own.
    embed(&world, documents(&["one"])).await;
    let other = embed(&world, EmbedRequest { model: "other".to_owned(), ..documents(&["one"]) }).await;
    assert_eq!((other.model.as_str(), other.cached_count, world.model.texts()), ("other", 0, 2));
}
