//! A model of embeddings that fails, and one that says nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use waybill_api::embedding::v1::{EmbedRequest, Purpose, embedding_service_client::EmbeddingServiceClient};
use waybill_testkit::{Program, TestDb, eventually};

use super::http::{self, admin_of, health, is_up, status_of, sum};
use crate::llm_server::{LlmServer, Mood};
use crate::program::waybill;
use crate::world::{PATIENCE, free_port};

/// Longer than the test takes.
const NEVER: Duration = Duration::from_secs(3_600);

fn embed(texts: usize) -> EmbedRequest {
    let texts = (0..texts).map(|number| format!("text {number}")).collect();
    EmbedRequest { texts, purpose: Purpose::Document.into(), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_fails_degrades_and_one_that_hangs_leaves_a_queue() {
    let (dir, db) = (tempfile::tempdir().unwrap(), TestDb::create().await.unwrap());
    let hangs = Arc::new(AtomicBool::new(false));
    let mood = {
        let hangs = Arc::clone(&hangs);
        move |_: &str, _| if hangs.load(Ordering::Relaxed) { Mood::Answer(NEVER) } else { Mood::Fail }
    };
    let model = LlmServer::start(mood).await;
    let port = free_port();
    let mut command = waybill(dir.path());
    command.args(["serve", "embedding", "--listen", &format!("127.0.0.1:{port}")]);
    command.env("DATABASE_URL", &db.url).env("WAYBILL_QDRANT__URL", "http://127.0.0.1:9");
    command.env("WAYBILL_EMBEDDING__MODEL__KIND", "openai");
    command.env("WAYBILL_EMBEDDING__MODEL__OPENAI__BASE_URL", &model.url);
    command.env("WAYBILL_EMBEDDING__MODEL__OPENAI__DIMENSIONS", "8");
    let service = Program::spawn(command.into()).unwrap();
    service.line("serving", PATIENCE).await.unwrap();
    let admin = admin_of(&service).await;
    eventually("the model is taken to be well as long as nobody has asked it", PATIENCE, async || {
        is_up(&health(&admin).await.1, "provider") == Some(true)
    })
    .await;

    let channel = waybill_runtime::grpc::channel(&format!("http://127.0.0.1:{port}")).unwrap();
    let mut client = EmbeddingServiceClient::new(channel);
    client.embed(embed(1)).await.unwrap_err();
    let (status, said) = health(&admin).await;
    assert_eq!((status, &said["status"], is_up(&said, "provider")), (200, &"degraded".into(), Some(false)), "{said}");
    assert_eq!(status_of(&admin, "/readyz").await, 200);
    let scrape = http::get(&admin, "/metrics").await.1;
    let failed = sum(&scrape, r#"waybill_embedding_call_duration_seconds_count{outcome="transient"}"#);
    assert!(failed >= 1.0, "{scrape}");
    assert_eq!(sum(&scrape, "waybill_embedding_queue_texts"), 0.0, "{scrape}");

    hangs.store(true, Ordering::Relaxed);
    let waiting = tokio::spawn(async move { client.embed(embed(1_000)).await });
    eventually("texts wait for the model", PATIENCE, async || {
        sum(&http::get(&admin, "/metrics").await.1, "waybill_embedding_queue_texts") > 0.0
    })
    .await;
    waiting.abort();
}
