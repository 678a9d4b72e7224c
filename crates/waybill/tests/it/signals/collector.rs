//! A collector that takes what is sent, one that is away, and one that says nothing.

use std::path::Path;
use std::time::Duration;

use tokio::net::TcpListener;
use tonic::Request;
use tonic::transport::Channel;
use waybill_api::ingestion::v1::{CreateProjectRequest, ingestion_service_client::IngestionServiceClient};
use waybill_testkit::{Program, Signal, TestDb, eventually};

use super::http::{self, admin_of};
use super::rotel::Rotel;
use crate::program::waybill;
use crate::world::{PATIENCE, free_port};

/// No call waits for a collector; this one is answered in milliseconds.
const CALL_LIMIT: Duration = Duration::from_secs(5);

/// A service that sends traces and metrics.
struct Sender {
    program: Program,
    client: IngestionServiceClient<Channel>,
    calls: usize,
}

impl Sender {
    async fn start(home: &Path, db: &TestDb, collector: &str, interval_ms: u32) -> Self {
        Self::start_with(home, db, collector, interval_ms, "1").await
    }

    async fn start_with(home: &Path, db: &TestDb, collector: &str, interval_ms: u32, trace_ratio: &str) -> Self {
        let port = free_port();
        let mut command = waybill(home);
        command.args(["serve", "ingestion", "--listen", &format!("127.0.0.1:{port}")]);
        command.env("DATABASE_URL", &db.url).env("WAYBILL_LOG", "info");
        command.env("WAYBILL_TELEMETRY__OTLP_ENDPOINT", collector).env("WAYBILL_TELEMETRY__METRICS_PUSH", "true");
        command.env("WAYBILL_TELEMETRY__METRICS_INTERVAL_MS", interval_ms.to_string());
        command.env("WAYBILL_TELEMETRY__TRACE_RATIO", trace_ratio);
        let program = Program::spawn(command.into()).unwrap();
        program.line("serving", PATIENCE).await.unwrap();
        let channel = waybill_runtime::grpc::channel(&format!("http://127.0.0.1:{port}")).unwrap();
        Self { program, client: IngestionServiceClient::new(channel), calls: 0 }
    }

    async fn call(&mut self) {
        self.call_from(None).await;
    }

    /// Calls as a part of a trace of somebody else's.
    async fn call_from(&mut self, traceparent: Option<&str>) {
        self.calls += 1;
        let mut request = Request::new(CreateProjectRequest { name: format!("p{}", self.calls) });
        if let Some(traceparent) = traceparent {
            request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
        }
        let call = self.client.create_project(request);
        tokio::time::timeout(CALL_LIMIT, call).await.expect("no call waits for the collector").unwrap();
    }

    /// Ends it as an operator would, and returns what it said.
    async fn stop(mut self) -> Vec<String> {
        self.program.signal(Signal::SIGTERM).unwrap();
        let ended = self.program.wait(PATIENCE).await.unwrap();
        assert_eq!(ended.code(), Some(0), "{:#?}", self.program.output());
        self.program.output()
    }

    fn count(&self, text: &str) -> usize {
        self.program.output().iter().filter(|line| line.contains(text)).count()
    }
}

/// The names of all metrics that are scraped.
fn names(scrape: &str) -> Vec<&str> {
    scrape.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_scraped_is_pushed_too_and_the_rest_at_the_end() {
    let (dir, db) = (tempfile::tempdir().unwrap(), TestDb::create().await.unwrap());
    let rotel = Rotel::start(dir.path()).await;
    // So seldom that only the end of the process sends anything.
    let mut sender = Sender::start(dir.path(), &db, &rotel.endpoint, 3_600_000).await;
    let admin = admin_of(&sender.program).await;
    for _ in 0..3 {
        sender.call().await;
    }
    let scrape = http::get(&admin, "/metrics").await.1;
    let counted = r#"waybill_grpc_server_calls_total{code="OK",method="CreateProject",service="waybill.ingestion.v1.IngestionService"} 3"#;
    assert!(scrape.contains(counted), "{scrape}");
    assert!(!rotel.text().contains("waybill_build_info"), "nothing is sent yet");

    sender.stop().await;
    let names = names(&scrape);
    assert!(names.len() > 10, "{scrape}");
    eventually("all that was scraped was pushed under the same names", PATIENCE, async || {
        let text = rotel.text();
        names.iter().all(|name| text.lines().any(|line| line.trim().ends_with(&format!(": {name}"))))
    })
    .await;
    let text = rotel.text();
    assert!(text.contains("waybill-ingestion"), "it is said who sends:\n{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_calls_decides_whether_the_call_is_followed() {
    let (dir, db) = (tempfile::tempdir().unwrap(), TestDb::create().await.unwrap());
    let rotel = Rotel::start(dir.path()).await;
    const FOLLOWED: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const NOT: &str = "0af7651916cd43dd8448eb211c80319c";
    for (ratio, names) in [("0", 1), ("1", 2)] {
        let mut sender = Sender::start_with(dir.path(), &db, &rotel.endpoint, 3_600_000, ratio).await;
        // One each: of a trace that is followed, of one that is not, and of none.
        sender.calls = names * 10;
        sender.call_from(Some(&format!("00-{FOLLOWED}-00f067aa0ba902b7-01"))).await;
        sender.call_from(Some(&format!("00-{NOT}-00f067aa0ba902b7-00"))).await;
        sender.call().await;
        sender.stop().await;
        let count = async |is: fn(&str) -> bool| rotel.spans().iter().filter(|span| is(&span.trace)).count();
        eventually("the caller's are followed", PATIENCE, async || count(|trace| trace == FOLLOWED).await == names)
            .await;
        let own = names - 1;
        eventually("our own as configured", PATIENCE, async || {
            count(|trace| trace != FOLLOWED && trace != NOT).await == own
        })
        .await;
        assert_eq!(count(|trace| trace == NOT).await, 0, "with {ratio}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_is_said_once_and_so_is_its_return() {
    let (dir, db) = (tempfile::tempdir().unwrap(), TestDb::create().await.unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut sender = Sender::start(dir.path(), &db, &format!("http://127.0.0.1:{port}"), 1_000).await;
    // Each attempt is hung up on. One batch is tried four times at the most.
    for _ in 0..40 {
        sender.call().await;
        drop(tokio::time::timeout(PATIENCE, listener.accept()).await.expect("it is tried again").unwrap());
    }
    drop(listener);
    const AWAY: &str = "collector does not take what is sent";
    const BACK: &str = "collector is back";
    for signal in ["traces", "metrics"] {
        sender.program.line(AWAY, PATIENCE).await.unwrap();
        assert_eq!(sender.count(BACK), 0, "{signal}");
    }
    assert_eq!(sender.count(AWAY), 2, "once of traces and once of metrics: {:#?}", sender.program.output());

    let rotel = Rotel::start_at(dir.path(), port).await;
    eventually("it is back for both", PATIENCE, async || {
        sender.call().await;
        sender.count(BACK) == 2
    })
    .await;
    assert!(rotel.text().contains("waybill_build_info"), "and what is sent arrives");
    let said = sender.stop().await;
    assert!(!said.iter().any(|line| line.contains("ERROR")), "it is nobody's error: {said:#?}");
    assert_eq!(said.iter().filter(|line| line.contains(AWAY)).count(), 2, "{said:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_says_nothing_holds_up_no_call_and_the_end_for_a_while_only() {
    let (dir, db) = (tempfile::tempdir().unwrap(), TestDb::create().await.unwrap());
    // Connections are made, and nobody reads.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let mut sender = Sender::start(dir.path(), &db, &endpoint, 3_600_000).await;
    for _ in 0..20 {
        sender.call().await;
    }
    let said = sender.stop().await.join("\n");
    // Each is given up before its batch is, which takes twice as long.
    assert!(said.contains("traces not flushed") && said.contains("metrics not flushed"), "{said}");
}
