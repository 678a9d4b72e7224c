//! What a worker of somebody's own says of a request is kept, and written in no line.

use waybill_api::extraction::v1::{
    FailureClass, ReportFailureRequest, StartExtractionRequest, extraction_service_client::ExtractionServiceClient,
};
use waybill_llm_queue::{LlmQueue, Priority, QueueConfig};
use waybill_testkit::{eventually, psql};

use crate::world::{PATIENCE, World, serve};

const QUOTED: &str = "the ferry that leaves at seven";

#[tokio::test(flavor = "multi_thread")]
async fn what_a_foreign_worker_quotes_is_in_no_line() {
    let world = World::start_with("[extraction]\nworker_enabled = false").await;
    let extraction = serve(&world.config(), "extraction").await;
    let docs = world.dir.path().join("docs");
    std::fs::create_dir_all(&docs).unwrap();
    std::fs::write(docs.join("a.txt"), format!("It is {QUOTED}.")).unwrap();
    assert!(world.import(&docs).wait(PATIENCE).await.unwrap().success());
    let url = format!("http://127.0.0.1:{}", world.ports.extraction);
    let mut client = ExtractionServiceClient::new(waybill_runtime::grpc::channel(&url).unwrap());
    let start = StartExtractionRequest {
        project: "p".to_owned(),
        priority: waybill_api::extraction::v1::Priority::Normal.into(),
        ..Default::default()
    };
    client.start_extraction(start).await.unwrap();

    let queue = LlmQueue::connect(&QueueConfig::new(world.redis.url())).unwrap();
    let mut claimed = None;
    eventually("the request is in the queue", PATIENCE, async || {
        claimed = queue.claim("w", Priority::Normal, 1, None).await.ok().and_then(|mut claimed| claimed.pop());
        claimed.is_some()
    })
    .await;
    let claimed = claimed.unwrap();
    let report = ReportFailureRequest {
        request_id: claimed.message.request_id.to_string(),
        message_id: claimed.stream_id,
        worker: "w".to_owned(),
        class: FailureClass::Permanent.into(),
        message: format!("can't read {QUOTED:?}"),
        model: "m".to_owned(),
        retry_after: None,
    };
    assert!(client.report_failure(report).await.unwrap().into_inner().given_up);
    extraction.line("request given up", PATIENCE).await.unwrap();
    let kept = psql(&world.db.url, "SELECT error FROM dead_letter WHERE sink = 'llm'").await.unwrap();
    assert!(kept.contains(QUOTED), "{kept}");
    for program in [&extraction, &world.relay, &world.ingestion, &world.embedding] {
        assert!(!program.output().iter().any(|line| line.contains(QUOTED)), "{:#?}", program.output());
    }
}
