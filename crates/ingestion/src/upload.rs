//! One body in parts.

use std::time::Duration;

use tokio::time::{Instant, timeout};
use tonic::{Code, Status, Streaming};
use waybill_api::ingestion::v1::{PutSourceResponse, UploadSourceRequest, upload_source_request::Part};
use waybill_runtime::status;

use crate::{
    acknowledge::Waits,
    grpc::Grpc,
    limits::Held,
    validate::{Header, body_too_large},
};

/// Bytes of one part. Room for a body is taken in such steps.
const MAX_PART_BYTES: usize = 1 << 20;

/// How long the next part may take: a caller that is gone must not keep its room.
const PART_TIMEOUT: Duration = Duration::from_secs(60);

/// Receives a body and stores it. Stops reading at the first thing that is wrong.
pub(crate) async fn run(
    grpc: &Grpc,
    mut parts: Streaming<UploadSourceRequest>,
    answer_by: Option<Instant>,
) -> Result<PutSourceResponse, Status> {
    grpc.backlog.admit()?;
    let admitted = grpc.limits.put()?;
    let header = match next(&mut parts).await? {
        Some(Part::Header(request)) if request.body.is_empty() => {
            Header::check(&request, "header.", Some(Waits::new(&grpc.config)))?
        }
        Some(Part::Header(_)) => {
            return Err(status::invalid_argument(
                "header.body",
                "must be empty: the body follows in messages with `data`",
            ));
        }
        Some(Part::Data(_)) | None => {
            return Err(status::invalid_argument("header", "is missing: the first message must carry it"));
        }
    };
    let (body, bytes) = receive(grpc, &mut parts).await?;
    let put = header.with_body(body, "", grpc.config.max_body_bytes, grpc.ingestion.chunker_id())?;
    grpc.put(put, answer_by, (admitted, bytes)).await
}

async fn receive(grpc: &Grpc, parts: &mut Streaming<UploadSourceRequest>) -> Result<(Vec<u8>, Vec<Held>), Status> {
    let mut body = Vec::new();
    let mut held = Vec::new();
    while let Some(part) = next(parts).await? {
        let Part::Data(data) = part else {
            return Err(status::invalid_argument(
                "header",
                "came twice: after the first message, only `data` may follow",
            ));
        };
        if data.len() > MAX_PART_BYTES {
            return Err(status::invalid_argument(
                "data",
                format!("has {} bytes: send at most {MAX_PART_BYTES} in one message", data.len()),
            ));
        }
        if body.len() + data.len() > grpc.config.max_body_bytes {
            return Err(body_too_large("data", None, grpc.config.max_body_bytes));
        }
        if body.len() + data.len() > held.len() * MAX_PART_BYTES {
            held.push(grpc.limits.bytes(MAX_PART_BYTES.min(grpc.config.max_body_bytes))?);
        }
        body.extend_from_slice(&data);
    }
    Ok((body, held))
}

async fn next(parts: &mut Streaming<UploadSourceRequest>) -> Result<Option<Part>, Status> {
    let Ok(message) = timeout(PART_TIMEOUT, parts.message()).await else {
        let message = format!("no part came within {} s: send the body without pauses", PART_TIMEOUT.as_secs());
        return Err(status::with_reason(Code::DeadlineExceeded, "UPLOAD_IDLE", message));
    };
    match message.map_err(status::from_decode)? {
        None => Ok(None),
        Some(UploadSourceRequest { part: Some(part) }) => Ok(Some(part)),
        Some(UploadSourceRequest { part: None }) => {
            Err(status::invalid_argument("part", "is missing: each message carries `header` or `data`"))
        }
    }
}
