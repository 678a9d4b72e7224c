use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use http_body::Body as HttpBody;
use prost_reflect::{DynamicMessage, MessageDescriptor};
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::{Code, Status};

use super::{Access, Caller};
use crate::status;
use crate::trace::RequestId;

/// The largest request of an audited method: a dead letter's id has 36 bytes, and thousands may be
/// named.
const MAX_REQUEST_BYTES: usize = 1 << 20;

/// The longest text of a request or an answer that is kept.
const MAX_TEXT_BYTES: usize = 8 << 10;

const HEADER_BYTES: usize = 5;

/// What somebody is about to do.
#[derive(Debug, Clone)]
pub struct Action {
    /// Who.
    pub caller: Caller,
    /// The gRPC method ("waybill.relay.v1.RelayService/Pause").
    pub method: String,
    /// The request as JSON, 8 KiB of it at the most.
    pub request: String,
    /// The call's id.
    pub request_id: String,
}

/// Where actions are noted.
#[async_trait]
pub trait AuditLog: Send + Sync {
    /// Notes an action that begins. Returns the id by which its end is noted.
    async fn begin(&self, action: &Action) -> anyhow::Result<i64>;

    /// Notes how it ended: a status code's name, and the last answer as JSON or the status message.
    async fn end(&self, id: i64, outcome: &str, result: &str) -> anyhow::Result<()>;
}

/// Notes actions. Clones share everything.
#[derive(Clone)]
pub(crate) struct Auditor {
    log: Arc<dyn AuditLog>,
    /// Ends that are being noted.
    noting: TaskTracker,
}

/// An action under way: remembers what is answered, and notes its end.
pub(crate) struct Record {
    auditor: Auditor,
    id: i64,
    output: MessageDescriptor,
    /// What came of a message so far.
    part: Vec<u8>,
    /// The last whole message.
    last: Option<Bytes>,
}

impl Auditor {
    pub(super) fn new(log: Arc<dyn AuditLog>) -> Self {
        Self { log, noting: TaskTracker::new() }
    }

    /// Reads the request, notes that the action begins, and hands the request on. What can't be
    /// noted is not done.
    pub(crate) async fn begin(
        &self,
        method: &str,
        access: &Access,
        caller: &Caller,
        request_id: &RequestId,
        body: Body,
    ) -> Result<(Record, Body), Status> {
        let bytes = collect(body).await?;
        let action = Action {
            caller: caller.clone(),
            method: method.trim_start_matches('/').to_owned(),
            request: shown(&access.input, bytes.get(HEADER_BYTES..).unwrap_or_default()),
            request_id: request_id.to_string(),
        };
        let id = self.log.begin(&action).await.map_err(|error| {
            tracing::warn!(error = format!("{error:#}"), "action not noted");
            let text = "the action was not done, as the audit log can't be written for now: try again";
            status::unavailable("AUDIT_UNAVAILABLE", text, None)
        })?;
        tracing::info!(caller = %caller, method = action.method, audit = id, "operator's action");
        let (auditor, output) = (self.clone(), access.output.clone());
        Ok((Record { auditor, id, output, part: Vec::new(), last: None }, Body::new(Whole(bytes))))
    }

    /// Waits until every end that was reached is noted.
    pub(crate) async fn finish(&self) {
        self.noting.close();
        self.noting.wait().await;
    }
}

impl Record {
    /// Sees bytes of the answer.
    pub(crate) fn answer(&mut self, bytes: &[u8]) {
        self.part.extend_from_slice(bytes);
        while let Some(length) = message_bytes(&self.part) {
            if self.part.len() < HEADER_BYTES + length {
                break;
            }
            let rest = self.part.split_off(HEADER_BYTES + length);
            let mut message = Bytes::from(std::mem::replace(&mut self.part, rest));
            message.advance(HEADER_BYTES);
            self.last = Some(message);
        }
    }

    /// Notes the end, in the background: nobody waits for it but the server's stop.
    pub(crate) fn end(self, code: Code, message: &str) {
        let result = match (code, &self.last) {
            (Code::Ok, Some(last)) => shown(&self.output, last),
            _ => cut(message.to_owned()),
        };
        let Self { auditor, id, .. } = self;
        let log = Arc::clone(&auditor.log);
        auditor.noting.spawn(async move {
            if let Err(error) = log.end(id, &format!("{code:?}"), &result).await {
                tracing::warn!(error = format!("{error:#}"), audit = id, ?code, "end of an action not noted");
            }
        });
    }
}

fn message_bytes(part: &[u8]) -> Option<usize> {
    let length: [u8; 4] = part.get(1..HEADER_BYTES)?.try_into().ok()?;
    usize::try_from(u32::from_be_bytes(length)).ok()
}

/// Writes a message as JSON. What can't be read is said to be so: its handler refuses it.
fn shown(descriptor: &MessageDescriptor, bytes: &[u8]) -> String {
    let Ok(message) = DynamicMessage::decode(descriptor.clone(), bytes) else {
        return format!("\"{} bytes that are no {}\"", bytes.len(), descriptor.name());
    };
    cut(serde_json::to_string(&message).unwrap_or_default())
}

fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT_BYTES {
        text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES - 3));
        text.push_str("...");
    }
    // Postgres takes any character but this one.
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text }
}

async fn collect(mut body: Body) -> Result<Bytes, Status> {
    let mut bytes = Vec::new();
    while let Some(frame) = std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await {
        if let Ok(data) = frame?.into_data() {
            bytes.extend_from_slice(&data);
        }
        if bytes.len() > MAX_REQUEST_BYTES {
            let text = format!("the message is too large: this method takes {MAX_REQUEST_BYTES} bytes at the most");
            return Err(status::with_reason(Code::ResourceExhausted, "MESSAGE_TOO_LARGE", text));
        }
    }
    Ok(bytes.into())
}

/// A body that is there already.
struct Whole(Bytes);

impl HttpBody for Whole {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        let bytes = std::mem::take(&mut self.0);
        std::task::Poll::Ready((!bytes.is_empty()).then(|| Ok(http_body::Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }
}
