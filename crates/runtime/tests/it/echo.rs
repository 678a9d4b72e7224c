//! A service small enough to write by hand, whose handlers do what the message's text says.

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use http::uri::PathAndQuery;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::codec::Streaming;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use waybill_runtime::grpc::{GrpcOptions, Health, Listener, Peer, serve};
use waybill_runtime::trace::RequestId;
use waybill_runtime::{Shutdown, Signals, trace};

/// The smallest limit that still lets every other test message through.
pub(crate) const LIMIT_BYTES: usize = 1_024;
pub(crate) const SERVICE: &str = "test.v1.Echo";
pub(crate) const LONG: Duration = Duration::from_secs(60);

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Echo {
    #[prost(string, tag = "1")]
    pub(crate) text: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) item: Option<Item>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Item {
    #[prost(string, tag = "1")]
    pub(crate) uri: String,
}

/// [`Echo`] with bytes for strings, to send what no string can hold.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct RawEcho {
    #[prost(bytes, tag = "1")]
    pub(crate) text: Vec<u8>,
    #[prost(message, optional, tag = "2")]
    pub(crate) item: Option<RawItem>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct RawItem {
    #[prost(bytes, tag = "1")]
    pub(crate) uri: Vec<u8>,
}

pub(crate) fn echo(text: &str) -> Echo {
    Echo { text: text.to_owned(), item: None }
}

/// Lets a test meet a handler: `entered` when a "wait" has begun, `leave` to let it end.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    pub(crate) entered: Notify,
    pub(crate) leave: Notify,
}

#[derive(Clone, Default)]
struct EchoService {
    gate: Arc<Gate>,
}

impl NamedService for EchoService {
    const NAME: &'static str = SERVICE;
}

impl tower::Service<http::Request<Body>> for EchoService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let gate = Arc::clone(&self.gate);
        let mut grpc =
            tonic::server::Grpc::new(ProstCodec::<Echo, Echo>::default()).max_decoding_message_size(LIMIT_BYTES);
        Box::pin(async move {
            if request.uri().path().ends_with("/Stream") {
                let handler = tower::service_fn(|request| ready(Ok::<_, Status>(answer_stream(request))));
                Ok(grpc.streaming(handler, request).await)
            } else {
                let handler = tower::service_fn(move |request| answer(request, Arc::clone(&gate)));
                Ok(grpc.unary(handler, request).await)
            }
        })
    }
}

async fn answer(request: Request<Echo>, gate: Arc<Gate>) -> Result<Response<Echo>, Status> {
    let id = request.extensions().get::<RequestId>().cloned();
    let text = request.into_inner().text;
    match text.as_str() {
        "panic" => panic!("asked to panic"),
        "hang" => {
            gate.entered.notify_one();
            std::future::pending().await
        }
        "wait" => {
            gate.entered.notify_one();
            gate.leave.notified().await;
            Ok(Response::new(echo("waited")))
        }
        "fail" => Err(waybill_runtime::status::internal("the disk at 10.0.0.7 is full")),
        "own internal" => Err(waybill_runtime::status::with_reason(
            tonic::Code::Internal,
            "INTERNAL",
            "failed to decode Protobuf message: Peer.field: of another server",
        )),
        "headers" => Ok(Response::new(echo(&format!("{:?}", trace::headers())))),
        "id" => Ok(Response::new(echo(id.expect("an id in the extensions").as_str()))),
        _ => Ok(Response::new(echo(&text))),
    }
}

type Answers = BoxStream<'static, Result<Echo, Status>>;

fn answer_stream(request: Request<Streaming<Echo>>) -> Response<Answers> {
    let answers = request.into_inner().map(|message| {
        let message = message?;
        assert_ne!(message.text, "panic", "asked to panic");
        Ok(message)
    });
    Response::new(answers.boxed())
}

/// A running server with a client to it.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) channel: Channel,
    pub(crate) shutdown: Shutdown,
    pub(crate) gate: Arc<Gate>,
    pub(crate) health: Health,
    pub(crate) served: JoinHandle<anyhow::Result<()>>,
}

pub(crate) async fn start(deadline: Duration) -> Running {
    start_on(deadline, &Signals::default(), Listener::from).await
}

/// Starts it with what it measures with.
pub(crate) async fn start_with(deadline: Duration, signals: &Signals) -> Running {
    start_on(deadline, signals, Listener::from).await
}

/// Starts it behind what `make` makes.
pub(crate) async fn start_on(
    deadline: Duration,
    signals: &Signals,
    make: impl FnOnce(TcpListener) -> Listener,
) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let shutdown = Shutdown::manual(deadline);
    let service = EchoService::default();
    let gate = Arc::clone(&service.gate);
    let options = GrpcOptions::new(&[SERVICE], &[]).with_limit_key("echo.max_message_bytes").with_signals(signals);
    let health = options.health();
    let served = tokio::spawn(serve(make(listener), Routes::new(service), options, shutdown.clone()));
    let channel = waybill_runtime::grpc::channel(&format!("http://{address}")).expect("channel");
    Running { address, channel, shutdown, gate, health, served }
}

impl Running {
    pub(crate) async fn unary<M>(&self, message: M) -> Result<Response<Echo>, Status>
    where
        M: prost::Message + Send + Sync + 'static,
    {
        self.request(Request::new(message)).await
    }

    pub(crate) async fn request<M>(&self, request: Request<M>) -> Result<Response<Echo>, Status>
    where
        M: prost::Message + Send + Sync + 'static,
    {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        grpc.ready().await.expect("connect");
        let path = PathAndQuery::from_static("/test.v1.Echo/Unary");
        grpc.unary(request, path, ProstCodec::<M, Echo>::default()).await
    }

    pub(crate) async fn stream<M>(
        &self,
        messages: impl Stream<Item = M> + Send + 'static,
    ) -> Result<Streaming<Echo>, Status>
    where
        M: prost::Message + Send + Sync + 'static,
    {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        grpc.ready().await.expect("connect");
        let path = PathAndQuery::from_static("/test.v1.Echo/Stream");
        let answers = grpc.streaming(Request::new(messages), path, ProstCodec::<M, Echo>::default()).await?;
        Ok(answers.into_inner())
    }

    /// Stops the server and waits for it.
    pub(crate) async fn stop(self) {
        self.shutdown.trigger_hard();
        within(self.served).await.expect("join").expect("serve");
    }
}

/// Calls an echo over a way of the caller's.
pub(crate) async fn call(peer: Peer, text: &str) -> Result<Echo, Status> {
    let mut grpc = tonic::client::Grpc::new(peer);
    grpc.ready().await.map_err(|error| Status::unavailable(format!("{error:?}")))?;
    let path = PathAndQuery::from_static("/test.v1.Echo/Unary");
    let answer = within(grpc.unary(Request::new(echo(text)), path, ProstCodec::<Echo, Echo>::default())).await?;
    Ok(answer.into_inner())
}

/// Waits for `future`, but not for ever: a test that hangs should say where.
pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("within 20 seconds")
}

/// A stream of one message that then stays open.
pub(crate) fn open_after<M: Send + 'static>(message: M) -> impl Stream<Item = M> + Send + 'static {
    let first: Ready<M> = ready(message);
    futures::stream::once(first).chain(futures::stream::pending())
}
