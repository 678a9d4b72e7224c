use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_types::ErrorDetails;

use super::scan::{Refused, Scan};
use super::{Access, Admitted, Caller, Denials, Scope};
use crate::status;

/// A gRPC message comes with a flag and its length in front.
const HEADER_BYTES: usize = 5;

/// The messages of a request on their way to the handler: no foreign project, and none that is
/// larger than the key allows. What is wrong ends the request before the message is whole.
pub(crate) struct GuardedBody {
    inner: Body,
    caller: Caller,
    denials: Denials,
    max_message_bytes: Option<u64>,
    scan: Option<Scan>,
    header: Vec<u8>,
    left: u64,
}

impl GuardedBody {
    /// Puts itself in front of a body, if there is anything to watch for.
    pub(crate) fn around(inner: Body, access: Option<&Access>, admitted: &Admitted, denials: &Denials) -> Body {
        let path = match access.map(|access| &access.scope) {
            Some(Scope::Project(path)) if admitted.caller.projects().is_some() => Some(path.clone()),
            _ => None,
        };
        if path.is_none() && admitted.max_message_bytes.is_none() {
            return inner;
        }
        Body::new(Self {
            inner,
            caller: admitted.caller.clone(),
            denials: denials.clone(),
            max_message_bytes: admitted.max_message_bytes,
            scan: path.map(Scan::new),
            header: Vec::with_capacity(HEADER_BYTES),
            left: 0,
        })
    }

    fn watch(&mut self, mut bytes: &[u8]) -> Result<(), Status> {
        while !bytes.is_empty() {
            if self.header.len() < HEADER_BYTES {
                let (now, rest) = bytes.split_at(bytes.len().min(HEADER_BYTES - self.header.len()));
                self.header.extend_from_slice(now);
                bytes = rest;
                if self.header.len() == HEADER_BYTES {
                    self.begin()?;
                }
                continue;
            }
            let now = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
            let (now, rest) = bytes.split_at(now);
            bytes = rest;
            self.left -= now.len() as u64;
            if let Some(scan) = &mut self.scan {
                scan.feed(now, &|project| self.caller.may_see(project))
                    .map_err(|why| refusal(&self.caller, &self.denials, why))?;
            }
            self.end_if_whole()?;
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<(), Status> {
        let (flag, length) = (self.header[0], &self.header[1..]);
        self.left = length.iter().fold(0, |length, byte| length << 8 | u64::from(*byte));
        if let Some(most) = self.max_message_bytes.filter(|most| self.left > *most) {
            self.denials.note("size");
            let sizes = format!("{} bytes, this key may send {most}", self.left);
            let text = format!("the message is too large: {sizes}; send it in smaller parts");
            let details = ErrorDetails::with_quota_failure_violation("message size", sizes);
            return Err(status::build(Code::ResourceExhausted, "MESSAGE_TOO_LARGE", text, details));
        }
        if let Some(scan) = &mut self.scan {
            // No server of ours takes compressed messages; this one could not be looked at.
            if flag != 0 {
                let text = "messages can't be compressed: send them as they are";
                return Err(status::with_reason(Code::Unimplemented, "COMPRESSED", text));
            }
            scan.begin(self.left);
        }
        self.end_if_whole()
    }

    fn end_if_whole(&mut self) -> Result<(), Status> {
        if self.left > 0 {
            return Ok(());
        }
        self.header.clear();
        match &self.scan {
            Some(scan) => scan.end().map_err(|why| refusal(&self.caller, &self.denials, why)),
            None => Ok(()),
        }
    }
}

fn refusal(caller: &Caller, denials: &Denials, why: Refused) -> Status {
    match why {
        Refused::Text(project) => {
            denials.note("project");
            caller.no_project(&project)
        }
        Refused::Malformed => status::with_reason(
            Code::InvalidArgument,
            "MALFORMED_MESSAGE",
            "the request is not a valid Protobuf message of this method",
        ),
    }
}

impl HttpBody for GuardedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && let Err(status) = this.watch(data)
        {
            // The rest is not for the handler.
            this.inner = Body::empty();
            return Poll::Ready(Some(Err(status)));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
