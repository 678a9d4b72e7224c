use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};

use super::call::Call;

/// The rest of an answer after its headers. Sees to it that a stream ends with a status that
/// is right, also when its handler panics, its caller's key is good no longer or the server stops.
pub(super) struct CallBody {
    inner: Body,
    call: Call,
    end: BoxFuture<'static, Status>,
    ended: bool,
}

impl CallBody {
    pub(super) fn new(inner: Body, call: Call, end: BoxFuture<'static, Status>) -> Self {
        Self { inner, call, end, ended: false }
    }

    /// Ends the stream with `status`, dropping what produced it.
    fn end_with(&mut self, status: &Status) -> Poll<Option<Result<Frame<bytes::Bytes>, Status>>> {
        self.ended = true;
        self.inner = Body::empty();
        let mut trailers = HeaderMap::new();
        if status.add_header(&mut trailers).is_err() {
            return Poll::Ready(None);
        }
        self.call.settle(&mut trailers);
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

impl HttpBody for CallBody {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<bytes::Bytes>, Status>>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        let polled = {
            let span = this.call.span().clone();
            let _in_span = span.enter();
            catch_unwind(AssertUnwindSafe(|| Pin::new(&mut this.inner).poll_frame(cx)))
        };
        match polled {
            Err(panic) => {
                let status = this.call.panicked(&*panic);
                this.end_with(&status)
            }
            Ok(Poll::Ready(Some(Ok(mut frame)))) => {
                if let Some(trailers) = frame.trailers_mut() {
                    this.call.settle(trailers);
                    this.ended = true;
                } else if let Some(data) = frame.data_ref() {
                    this.call.answered(data);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Ok(Poll::Ready(Some(Err(status)))) => {
                this.call.log(status.code(), status.message());
                Poll::Ready(Some(Err(status)))
            }
            Ok(Poll::Ready(None)) => {
                this.call.log(Code::Ok, "");
                this.ended = true;
                Poll::Ready(None)
            }
            // Only when there is nothing to send: what is ready goes out first.
            Ok(Poll::Pending) => match this.end.as_mut().poll(cx) {
                Poll::Ready(status) => this.end_with(&status),
                Poll::Pending => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
