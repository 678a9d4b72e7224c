//! A document too large for one message, in parts.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tonic::{Code, Status};
use tonic_types::StatusExt;
use uuid::Uuid;
use waybill_api::ingestion::v1::ingestion_service_client::IngestionServiceClient;
use waybill_api::ingestion::v1::upload_source_request::Part;
use waybill_api::ingestion::v1::{PutSourceRequest, PutSourceResponse, UploadSourceRequest};
use waybill_domain::Backoff;

use super::read::Document;
use super::window::{MAX_HELD_BACK, MAX_PAUSE};
use crate::client::may_pass;
use waybill_runtime::grpc::Peer;

/// Half of what the service takes, so that two parts are on their way at any time.
const PART_BYTES: usize = 512 * 1024;

/// With the pauses below, about a minute: the next document may fare better.
const MAX_ATTEMPTS: u32 = 10;

const RETRY: Backoff = Backoff { base: Duration::from_millis(500), max: Duration::from_secs(10) };

/// Sends one document, again if need be.
///
/// # Errors
/// What the service said last.
pub(super) async fn run(
    client: &mut IngestionServiceClient<Peer>,
    project: &str,
    run: Uuid,
    document: Document,
) -> Result<PutSourceResponse, Status> {
    let messages = messages(project, run, Uuid::now_v7(), document);
    let begun = Instant::now();
    let mut attempt = 0;
    loop {
        attempt += 1;
        let stream = tokio_stream::iter(messages.clone());
        let status = match client.upload_source(stream).await {
            Ok(response) => return Ok(response.into_inner()),
            Err(status) => status,
        };
        let asked = status.get_details_retry_info().and_then(|info| info.retry_delay);
        if status.code() == Code::ResourceExhausted
            && let Some(pause) = asked
            && begun.elapsed() < MAX_HELD_BACK
        {
            // The service is busy or the index behind: no failure of the document's.
            attempt -= 1;
            sleep(pause.clamp(RETRY.base, MAX_PAUSE)).await;
            continue;
        }
        // Too large is RESOURCE_EXHAUSTED, and stays so.
        let passes = may_pass(status.code()) && status.code() != Code::ResourceExhausted;
        if !passes || attempt >= MAX_ATTEMPTS {
            return Err(status);
        }
        sleep(RETRY.wait(attempt, &mut rand::rng())).await;
    }
}

fn messages(project: &str, run: Uuid, request_id: Uuid, document: Document) -> Vec<UploadSourceRequest> {
    let header = PutSourceRequest {
        project: project.to_owned(),
        request_id: request_id.to_string(),
        uri: document.uri,
        title: document.title,
        media_type: document.media_type.into(),
        metadata: document.metadata,
        body: Vec::new(),
        job_id: run.to_string(),
        ..PutSourceRequest::default()
    };
    let parts = document.body.chunks(PART_BYTES).map(|part| Part::Data(part.to_vec()));
    std::iter::once(Part::Header(header)).chain(parts).map(|part| UploadSourceRequest { part: Some(part) }).collect()
}

#[cfg(test)]
mod tests {
    use waybill_api::ingestion::v1::MediaType;

    use super::*;

    #[test]
    fn a_body_goes_in_parts_behind_its_header() {
        let document = Document {
            uri: "a".to_owned(),
            title: String::new(),
            media_type: MediaType::Text,
            metadata: None,
            body: vec![b'x'; PART_BYTES + 1],
        };
        let sizes: Vec<_> = messages("p", Uuid::nil(), Uuid::nil(), document)
            .into_iter()
            .map(|message| match message.part.unwrap() {
                Part::Header(header) => {
                    assert!(header.body.is_empty());
                    0
                }
                Part::Data(data) => data.len(),
            })
            .collect();
        assert_eq!(sizes, [0, PART_BYTES, 1]);
    }
}
