use std::future::pending;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::{Instrument, Span};

use super::body::CallBody;
use super::decode;
use super::measure::{CallMeter, Measured};
use crate::auth::{Admitted, Denials, Denied, Guard, GuardedBody, KeyLease, Policy, Record, Running};
use crate::shutdown::millis;
use crate::status;
use crate::telemetry::panic_text;
use crate::trace::{self, REQUEST_ID, RequestId};

/// Streams that only ever watch the server: they would hold a graceful stop up to its deadline.
const WATCHES: [&str; 3] = [
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// What the calls begin with that ask how a server is.
const HEALTH: &str = "/grpc.health.v1.Health/";

/// What ends calls from outside.
#[derive(Debug, Clone)]
pub(super) struct Stops {
    /// Ends every call.
    pub(super) hard: CancellationToken,
    /// Ends the calls of [`WATCHES`].
    pub(super) watches: CancellationToken,
}

/// Gives each call its request id, span and log line, lets it in or not, answers for a handler
/// that panics, rewrites tonic's own decode errors, and ends calls whose key is good no longer, and
/// all of them at the hard stage.
#[derive(Debug, Clone)]
pub(super) struct CallLayer {
    stops: Stops,
    limit_key: Option<&'static str>,
    guard: Guard,
    policy: Policy,
    meter: CallMeter,
    denials: Denials,
}

impl CallLayer {
    pub(super) fn new(
        stops: Stops,
        limit_key: Option<&'static str>,
        guard: Guard,
        policy: Policy,
        meter: CallMeter,
        denials: Denials,
    ) -> Self {
        Self { stops, limit_key, guard, policy, meter, denials }
    }

    /// Lets a call in: what is left of its request is what the handler may see. It may go on as long
    /// as its key is good.
    async fn let_in(&self, call: &mut Call, request: Request<Body>) -> Result<(Request<Body>, KeyLease), Status> {
        let access = self.policy.of(&call.method);
        let admitted = self.guard.admit(&call.method, access, request.headers()).await.map_err(|denied| {
            let Denied { status, reason } = denied;
            self.denials.note(reason);
            tracing::debug!(method = %call.method, reason, "call not let in");
            status
        })?;
        let (mut parts, body) = request.into_parts();
        let mut body = GuardedBody::around(body, access, &admitted, &self.denials);
        if let Some(access) = access.filter(|access| access.audited)
            && let Some(auditor) = self.guard.auditor()
        {
            let (record, whole) = auditor.begin(&call.method, access, &admitted.caller, &call.id, body).await?;
            (call.record, body) = (Some(record), whole);
        }
        let Admitted { caller, running, lease, .. } = admitted;
        call.running = Some(running);
        parts.extensions.insert(caller);
        parts.extensions.insert(call.id.clone());
        Ok((Request::from_parts(parts, body), lease))
    }
}

impl<S> Layer<S> for CallLayer {
    type Service = CallService<S>;

    fn layer(&self, inner: S) -> CallService<S> {
        CallService { inner, options: self.clone() }
    }
}

#[derive(Debug, Clone)]
pub(super) struct CallService<S> {
    inner: S,
    options: CallLayer,
}

impl<S> Service<Request<Body>> for CallService<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The clone isn't ready, the one that was polled is: call that one.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);

        let mut call = Call::begin(&request, &self.options);
        let stop = if WATCHES.contains(&call.method.as_ref()) {
            self.options.stops.watches.clone()
        } else {
            self.options.stops.hard.clone()
        };
        let options = self.options.clone();
        Box::pin(async move {
            let span = call.span.clone();
            let let_in = stop.run_until_cancelled(options.let_in(&mut call, request).instrument(span)).await;
            let (request, lease) = match let_in.unwrap_or_else(|| Err(stopped())) {
                Ok(let_in) => let_in,
                Err(status) => return Ok(call.answer(status.into_http(), pending().boxed())),
            };
            let handled =
                AssertUnwindSafe(async move { inner.call(request).await }).catch_unwind().instrument(call.span.clone());
            let mut end = cut(stop, lease, options.denials).boxed();
            let response = tokio::select! {
                biased;
                handled = handled => match handled {
                    Ok(response) => response?,
                    Err(panic) => call.panicked(&*panic).into_http(),
                },
                status = &mut end => status.into_http(),
            };
            Ok(call.answer(response, end))
        })
    }
}

/// Waits until a call may not go on, and returns what to answer then: the server stops, or the
/// caller's key is good no longer.
async fn cut(stop: CancellationToken, lease: KeyLease, denials: Denials) -> Status {
    tokio::select! {
        () = stop.cancelled() => stopped(),
        Denied { status, reason } = lease.lost() => {
            denials.note(reason);
            status
        }
    }
}

/// The status of a call that the server's stop has cut short.
pub(super) fn stopped() -> Status {
    status::unavailable("SHUTTING_DOWN", "the server is stopping, call again to reach another or its successor", None)
}

/// One call, from its headers to its status.
pub(super) struct Call {
    method: Arc<str>,
    id: RequestId,
    span: Span,
    started: Instant,
    limit_key: Option<&'static str>,
    /// Holds its place among the calls of its key.
    running: Option<Running>,
    /// Where its end is noted, if it is an operator's action.
    record: Option<Record>,
    measured: Measured,
    logged: bool,
}

impl Call {
    fn begin(request: &Request<Body>, options: &CallLayer) -> Self {
        let method: Arc<str> = request.uri().path().into();
        let id = RequestId::of(request.headers());
        let span = if method.starts_with(HEALTH) {
            // Asked every few seconds by whoever watches: no trace is made of it.
            tracing::debug_span!("grpc", request_id = %id)
        } else {
            tracing::info_span!(
                "grpc",
                otel.name = method.trim_start_matches('/'),
                otel.kind = "server",
                rpc.system = "grpc",
                rpc.grpc.status_code = tracing::field::Empty,
                otel.status_code = tracing::field::Empty,
                request_id = %id,
            )
        };
        trace::adopt(&span, request.headers(), &id);
        let measured = options.meter.begin(&method);
        let limit_key = options.limit_key;
        let (running, record) = (None, None);
        Self { method, id, span, started: Instant::now(), limit_key, running, record, measured, logged: false }
    }

    pub(super) fn span(&self) -> &Span {
        &self.span
    }

    /// Sees bytes of the answer.
    pub(super) fn answered(&mut self, bytes: &[u8]) {
        if let Some(record) = &mut self.record {
            record.answer(bytes);
        }
    }

    /// Finishes a response whose status is in its headers, or watches over the rest of it, which
    /// `end` cuts short.
    fn answer(mut self, response: Response<Body>, end: BoxFuture<'static, Status>) -> Response<Body> {
        let (mut parts, body) = response.into_parts();
        if let Some(id) = self.id.header() {
            parts.headers.insert(REQUEST_ID, id);
        }
        if parts.headers.contains_key(Status::GRPC_STATUS) {
            self.settle(&mut parts.headers);
            return Response::from_parts(parts, body);
        }
        Response::from_parts(parts, Body::new(CallBody::new(body, self, end)))
    }

    /// Logs a panic and returns what the caller gets to see of it.
    pub(super) fn panicked(&self, panic: &(dyn std::any::Any + Send)) -> Status {
        let _in_span = self.span.enter();
        tracing::error!(method = %self.method, panic = panic_text(panic), "handler panicked");
        status::with_reason(Code::Internal, "INTERNAL", "internal error, the server's log has it under this request id")
    }

    /// Reads the status in `headers` (or trailers), replaces it where tonic's own is
    /// misleading, and logs the call.
    pub(super) fn settle(&mut self, headers: &mut HeaderMap) {
        let Some(mut status) = Status::from_header_map(headers) else {
            return self.log(Code::Unknown, "");
        };
        if let Some(better) = self.better(&status) {
            // `add_header` fails only on bytes that no header can hold, and percent-encodes those.
            if better.add_header(headers).is_ok() {
                status = better;
            }
        }
        self.log(status.code(), status.message());
    }

    /// Returns what to say in place of a status that tonic made and that helps nobody.
    fn better(&self, status: &Status) -> Option<Status> {
        if status.code() == Code::Unimplemented && status.message().is_empty() {
            let message = format!("this server has no method {}, reflection lists those it has", self.method);
            return Some(status::with_reason(Code::Unimplemented, "UNKNOWN_METHOD", message));
        }
        decode::rewrite(status, self.limit_key)
    }

    pub(super) fn log(&mut self, code: Code, message: &str) {
        if std::mem::replace(&mut self.logged, true) {
            return;
        }
        self.running = None;
        let _in_span = self.span.enter();
        if let Some(record) = self.record.take() {
            record.end(code, message);
        }
        let elapsed = self.started.elapsed();
        self.measured.end(code, elapsed);
        self.span.record("rpc.grpc.status_code", code as i32);
        let elapsed_ms = millis(elapsed);
        match code {
            Code::Internal | Code::Unknown | Code::DataLoss => {
                self.span.record("otel.status_code", "ERROR");
                tracing::warn!(method = %self.method, ?code, status = message, elapsed_ms, "call failed");
            }
            _ => {
                tracing::debug!(method = %self.method, ?code, status = message, elapsed_ms, "call done")
            }
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // Dropped before any status: the caller went away or its deadline passed.
        self.log(Code::Cancelled, "dropped before it was answered");
    }
}
