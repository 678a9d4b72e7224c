//! One put is followed, through a real collector, to the point in Qdrant and to the model's call.

use std::time::Duration;

use tonic::Request;
use waybill_api::extraction::v1::{StartExtractionRequest, extraction_service_client::ExtractionServiceClient};
use waybill_api::ingestion::v1::{
    CreateProjectRequest, MediaType, PutSourceRequest, ingestion_service_client::IngestionServiceClient,
};
use waybill_testkit::{Signal, eventually};

use super::rotel::{Rotel, Span};
use crate::llm_server::{LlmServer, Mood};
use crate::place::{Place, STOP_LIMIT, UP_LIMIT};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";
const PASSAGE: &str = "The zanzibarian ferry leaves the harbour at seven every morning of the week.";

/// Finds the span of that name among the children of `parent`.
fn child<'a>(spans: &'a [Span], parent: &Span, name: &str) -> Option<&'a Span> {
    spans.iter().find(|span| span.name == name && span.trace == parent.trace && span.parent == parent.id)
}

/// Finds the span of that name that is linked to `origin`.
fn linked<'a>(spans: &'a [Span], origin: &Span, name: &str) -> Option<&'a Span> {
    let link = (origin.trace.clone(), origin.id.clone());
    spans.iter().find(|span| span.name == name && span.links.contains(&link))
}

/// Follows the put to both ends; `None` while something is missing.
fn follow(spans: &[Span]) -> Option<()> {
    let put = spans.iter().find(|span| span.trace == TRACE && span.parent == CALLER)?;
    assert_eq!(put.name, "waybill.ingestion.v1.IngestionService/PutSource");

    let delivery = linked(spans, put, "deliver qdrant")?;
    assert_ne!(delivery.trace, put.trace, "a delivery carries on many traces, and is none of them");
    assert_eq!(delivery.parent, "");
    child(spans, delivery, "qdrant upsert")?;
    child(spans, delivery, "waybill.embedding.v1.EmbeddingService/Embed")?;

    linked(spans, put, "deliver llm")?;
    let request = linked(spans, put, "llm_request")?;
    child(spans, request, "llm_call")?;
    // What the model found is written under the worker's trace, and delivered from there.
    linked(spans, request, "deliver qdrant")?;
    Some(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_put_is_followed_to_the_point_and_to_the_models_call() {
    let place = Place::new();
    let rotel = Rotel::start(place.dir()).await;
    let llm = LlmServer::start(|_, _| Mood::Answer(Duration::ZERO)).await;
    let mut up = place
        .up_with(&[
            ("WAYBILL_TELEMETRY__OTLP_ENDPOINT", &rotel.endpoint),
            ("WAYBILL_EXTRACTION__PROVIDER", "openai"),
            ("WAYBILL_EXTRACTION__OPENAI__BASE_URL", &llm.url),
        ])
        .await;
    let endpoints = place.endpoints();
    let channel = |name: &str| waybill_runtime::grpc::channel(endpoints[name].as_str().unwrap()).unwrap();
    let mut ingestion = IngestionServiceClient::new(channel("ingestion"));
    let project = CreateProjectRequest { name: "p".to_owned() };
    ingestion.create_project(project).await.unwrap();
    let job = StartExtractionRequest { project: "p".to_owned(), follow: true, ..Default::default() };
    ExtractionServiceClient::new(channel("extraction")).start_extraction(job).await.unwrap();

    let mut put = Request::new(PutSourceRequest {
        project: "p".to_owned(),
        uri: "ferry.txt".to_owned(),
        media_type: MediaType::Text.into(),
        body: PASSAGE.into(),
        ..Default::default()
    });
    put.metadata_mut().insert("traceparent", format!("00-{TRACE}-{CALLER}-01").parse().unwrap());
    put.metadata_mut().insert("x-request-id", "ferry-1".parse().unwrap());
    let answer = ingestion.put_source(put).await.unwrap();
    assert_eq!(answer.metadata().get("x-request-id").unwrap(), "ferry-1", "the caller gets the id back");

    eventually("the put's trace leads to the point and to the call", UP_LIMIT, async || {
        follow(&rotel.spans()).is_some()
    })
    .await;
    let text = rotel.text();
    assert!(!text.contains("zanzibarian"), "no text of a document in any span");
    assert!(!text.contains("health_check") && !text.contains("grpc.health"), "nobody follows a look at health");

    up.signal(Signal::SIGTERM).unwrap();
    assert_eq!(up.wait(STOP_LIMIT).await.unwrap().code(), Some(0), "{:#?}", up.output());
}
