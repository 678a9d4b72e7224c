//! `waybill-bench overhead`: what keys, traces and metrics add to PutSource.
//!
//! Two ingestion services as they ship, over one Postgres: one with everything off, one that asks
//! for a key, sends every trace to a collector, and is scraped each second. They take turns.

use std::convert::Infallible;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use waybill_api::ingestion::v1::ingestion_service_client::IngestionServiceClient;
use waybill_api::ingestion::v1::{CreateProjectRequest, MediaType, PutSourceRequest};
use waybill_runtime::config::Secret;
use waybill_runtime::grpc::{ClientOptions, Peer, peer};
use waybill_testkit::{Program, Signal, TestDb, TestPostgres};

use crate::llm::percentile;
use crate::relay::texts;
use crate::servers::{START, STOP, sibling};

/// Paragraphs of a document; each becomes a chunk.
const PARAGRAPHS: usize = 4;

/// Puts before anything is measured, so that connections, plans and caches are there.
const WARM_UP: usize = 200;

/// How often the port of the metrics is scraped: fifteen times as often as is usual.
const SCRAPE_EVERY: Duration = Duration::from_secs(1);

const PROJECT: &str = "overhead";

/// Arguments of `waybill-bench overhead`.
#[derive(Debug, clap::Args)]
pub(crate) struct OverheadArgs {
    /// Documents put in a round by each
    #[arg(long, default_value_t = 500)]
    documents: usize,
    /// Rounds, in which both have their turn
    #[arg(long, default_value_t = 12)]
    rounds: usize,
    /// Callers at a time
    #[arg(long, default_value_t = 2)]
    callers: usize,
}

/// What came out, in milliseconds of one PutSource.
#[derive(Debug, Serialize)]
pub(crate) struct OverheadResult {
    puts: usize,
    off: Percentiles,
    on: Percentiles,
    /// Of the 99th percentiles: on to off.
    ratio_p99: f64,
    /// The median of those of the rounds: one that the machine disturbed does not count in it.
    ratio_p99_of_rounds: f64,
    /// Of the medians.
    ratio_p50: f64,
    /// Of the 99th percentiles of each round.
    rounds: Vec<f64>,
    /// Messages that the collector was sent.
    exports: usize,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Percentiles {
    p50_ms: f64,
    p99_ms: f64,
}

impl Percentiles {
    fn of(times: &[f64]) -> Self {
        let sorted = sorted(times);
        Self { p50_ms: percentile(&sorted, 50), p99_ms: percentile(&sorted, 99) }
    }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// An ingestion service and a way to it.
struct Served {
    program: Program,
    client: IngestionServiceClient<Peer>,
    times: Vec<f64>,
}

/// Runs all rounds.
///
/// # Errors
/// If a server can't be started, or a document was not taken.
pub(crate) async fn run(args: &OverheadArgs) -> anyhow::Result<OverheadResult> {
    ensure!(args.documents > 0 && args.rounds > 0 && args.callers > 0, "nothing to measure: all are 1 or more");
    let postgres = TestPostgres::own().await?;
    let db = postgres.database().await?;
    let collector = Collector::start().await?;
    let key = make_key(&db).await?;

    let off = [("WAYBILL_AUTH__MODE", "open"), ("WAYBILL_ADMIN__ENABLED", "false")];
    let mut off = Served::start(&db, &off, "").await?;
    let admin = free_address().await?;
    let on = [
        ("WAYBILL_AUTH__MODE", "keys"),
        ("WAYBILL_ADMIN__LISTEN", &admin),
        ("WAYBILL_TELEMETRY__OTLP_ENDPOINT", &collector.url),
        ("WAYBILL_TELEMETRY__METRICS_PUSH", "true"),
        ("WAYBILL_TELEMETRY__METRICS_INTERVAL_MS", "1000"),
    ];
    let mut on = Served::start(&db, &on, &key).await?;
    let scraping = tokio::spawn(scrape_for_ever(admin));

    off.client.create_project(CreateProjectRequest { name: PROJECT.to_owned() }).await?;
    let each = args.documents * args.rounds + WARM_UP;
    let texts = texts(2 * each * PARAGRAPHS);
    let mut documents = texts.chunks(PARAGRAPHS).map(|paragraphs| paragraphs.join("\n\n")).enumerate();
    for served in [&mut off, &mut on] {
        served.put(documents.by_ref().take(WARM_UP).collect(), args.callers).await?;
    }

    let (mut all_off, mut all_on, mut rounds) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..args.rounds {
        let mut turns = [&mut off, &mut on];
        if round % 2 == 1 {
            turns.reverse();
        }
        for served in turns {
            served.times = served.put(documents.by_ref().take(args.documents).collect(), args.callers).await?;
        }
        let ratio = Percentiles::of(&on.times).p99_ms / Percentiles::of(&off.times).p99_ms;
        eprintln!("round {} of {}: p99 on to off {ratio:.2}", round + 1, args.rounds);
        rounds.push(ratio);
        all_off.append(&mut off.times);
        all_on.append(&mut on.times);
    }
    scraping.abort();
    for served in [&mut off, &mut on] {
        served.program.signal(Signal::SIGTERM)?;
        served.program.wait(STOP).await?;
    }
    let exports = collector.exports.load(Ordering::Relaxed);
    ensure!(exports > 0, "no trace arrived: what was measured is not what was meant");
    let (off, on) = (Percentiles::of(&all_off), Percentiles::of(&all_on));
    Ok(OverheadResult {
        puts: all_on.len(),
        off,
        on,
        ratio_p99: on.p99_ms / off.p99_ms,
        ratio_p99_of_rounds: percentile(&sorted(&rounds), 50),
        ratio_p50: on.p50_ms / off.p50_ms,
        rounds,
        exports,
    })
}

impl Served {
    async fn start(db: &TestDb, variables: &[(&str, &str)], key: &str) -> anyhow::Result<Self> {
        let address = free_address().await?;
        let variables = [("DATABASE_URL", db.url.as_str()), ("WAYBILL_LOG", "info"), ("NO_COLOR", "1")]
            .into_iter()
            .chain(variables.iter().copied());
        let program = Program::start(sibling("waybill")?, ["serve", "ingestion", "--listen", &address], variables)?;
        program.line("serving", START).await?;
        let options = ClientOptions { api_key: Secret::new(key), ..ClientOptions::default() };
        let client = IngestionServiceClient::new(peer(&format!("http://{address}"), &options)?);
        Ok(Self { program, client, times: Vec::new() })
    }

    /// Puts documents and returns how long each call took, in milliseconds.
    async fn put(&self, documents: Vec<(usize, String)>, callers: usize) -> anyhow::Result<Vec<f64>> {
        stream::iter(documents)
            .map(|(number, text)| {
                let mut client = self.client.clone();
                async move {
                    let request = PutSourceRequest {
                        project: PROJECT.to_owned(),
                        uri: format!("{number}.txt"),
                        media_type: MediaType::Text.into(),
                        body: text.into_bytes(),
                        ..PutSourceRequest::default()
                    };
                    let begun = Instant::now();
                    client.put_source(request).await.context("put a source")?;
                    anyhow::Ok(begun.elapsed().as_secs_f64() * 1_000.0)
                }
            })
            .buffer_unordered(callers)
            .try_collect()
            .await
    }
}

async fn free_address() -> anyhow::Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0").await?.local_addr()?.to_string())
}

async fn make_key(db: &TestDb) -> anyhow::Result<String> {
    let mut command = tokio::process::Command::new(sibling("waybill")?);
    command.args(["keys", "create", "bench", "--role", "writer", "--project", PROJECT]).env("DATABASE_URL", &db.url);
    let output = command.output().await.context("start waybill keys create")?;
    ensure!(output.status.success(), "waybill keys create: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

async fn scrape_for_ever(admin: String) {
    loop {
        // One that fails is missed by nobody.
        let _ = scrape(&admin).await;
        tokio::time::sleep(SCRAPE_EVERY).await;
    }
}

async fn scrape(admin: &str) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(admin).await?;
    stream.write_all(format!("GET /metrics HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n").as_bytes()).await?;
    stream.read_to_end(&mut Vec::new()).await.map(drop)
}

/// Takes traces and metrics by OTLP and throws them away: it speaks the wire protocol, and stands
/// for a collector on another machine, whose work is none of this measurement.
struct Collector {
    url: String,
    exports: Arc<AtomicUsize>,
}

impl Collector {
    async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let exports = Arc::<AtomicUsize>::default();
        let routes = Routes::new(Export::<Traces>::new(&exports)).add_service(Export::<Metrics>::new(&exports));
        let incoming = stream::unfold(listener, |listener| async {
            Some((listener.accept().await.map(|(stream, _)| stream), listener))
        });
        tokio::spawn(tonic::transport::Server::builder().add_routes(routes).serve_with_incoming(incoming));
        Ok(Self { url, exports })
    }
}

/// Tells the two services of a collector apart.
#[derive(Debug, Clone, Copy)]
struct Traces;
#[derive(Debug, Clone, Copy)]
struct Metrics;

#[derive(Debug, Clone)]
struct Export<S>(Arc<AtomicUsize>, PhantomData<S>);

impl<S> Export<S> {
    fn new(exports: &Arc<AtomicUsize>) -> Self {
        Self(Arc::clone(exports), PhantomData)
    }
}

impl NamedService for Export<Traces> {
    const NAME: &'static str = "opentelemetry.proto.collector.trace.v1.TraceService";
}

impl NamedService for Export<Metrics> {
    const NAME: &'static str = "opentelemetry.proto.collector.metrics.v1.MetricsService";
}

/// Any message that was exported. Its fields are of no interest, and those of an answer are none.
#[derive(Clone, PartialEq, prost::Message)]
struct Exported {}

impl<S: Send + 'static> tower::Service<http::Request<Body>> for Export<S> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let exports = Arc::clone(&self.0);
        Box::pin(async move {
            exports.fetch_add(1, Ordering::Relaxed);
            let mut grpc = tonic::server::Grpc::new(tonic_prost::ProstCodec::<Exported, Exported>::default());
            let handler = tower::service_fn(|_: tonic::Request<Exported>| {
                std::future::ready(Ok::<_, tonic::Status>(tonic::Response::new(Exported {})))
            });
            Ok(grpc.unary(handler, request).await)
        })
    }
}
