//! What the tests here share.

use std::time::Duration;

use tokio::{net::TcpListener, task::JoinHandle};
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt;
use uuid::Uuid;
use waybill_api::extraction::v1::{
    BeginRequestRequest, Job, Priority as ProtoPriority, ReportFailureRequest, StartExtractionRequest,
    SubmitResponseRequest, extraction_service_client::ExtractionServiceClient,
};
use waybill_extraction::{Config, Deps, run};
use waybill_llm_queue::{Claimed, LlmQueue, Message, Priority, QueueConfig, Sent};
use waybill_runtime::{Shutdown, Signals};
use waybill_storage::{Db, DbConfig};
use waybill_testkit::{TestDb, TestRedis, psql};

pub(crate) type Client = ExtractionServiceClient<Channel>;

/// What each chunk says, after its number.
pub(crate) const TEXT: &str = "Ada wrote the first program. Bob read it twice.";

/// A running service without a worker of its own, on a database and keys of its own, with the
/// project "p". The test is the relay and the workers.
pub(crate) struct Fixture {
    pub(crate) client: Client,
    pub(crate) queue: LlmQueue,
    database: TestDb,
    shutdown: Shutdown,
    server: JoinHandle<anyhow::Result<()>>,
}

impl Fixture {
    /// With a source of `chunks` chunks.
    pub(crate) async fn new(chunks: usize) -> Self {
        let database = TestDb::create().await.unwrap();
        let db = Db::connect(&DbConfig {
            url: database.url.clone(),
            max_connections: 8,
            acquire_timeout: Duration::from_secs(20),
            application_name: "test".to_owned(),
        })
        .unwrap();
        let (url, prefix) = TestRedis::shared().await.unwrap();
        let queue = LlmQueue::connect(&QueueConfig { prefix, ..QueueConfig::new(url) }).unwrap();
        // Nothing here waits for a sweep, and none shall come in between.
        let config = Config { worker_enabled: false, attempts_max: 2, sweep_every_ms: 3_600_000, ..Config::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = Shutdown::manual(Duration::from_secs(20));
        let server = tokio::spawn(run(
            config,
            Deps { db, queue: queue.clone(), signals: Signals::default() },
            listener,
            shutdown.clone(),
        ));
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        let fixture = Self { client: Client::new(channel), queue, database, shutdown, server };
        fixture
            .sql(&format!(
                "INSERT INTO project (id, name) VALUES (gen_random_uuid(), 'p');
                 INSERT INTO source (id, project_id, uri, title, media_type, content_hash, text, state, chunker)
                 SELECT gen_random_uuid(), id, 'u', 'A title', 'text', sha256('x'), 'x', 'chunked', 'test' FROM project;
                 INSERT INTO chunk (id, project_id, source_id, ordinal, headings, text, text_hash, start_byte, end_byte, token_count)
                 SELECT gen_random_uuid(), project_id, id, n, '{{One,Two}}', n || '. {TEXT}', sha256(n::text::bytea), 0, 9, 2
                 FROM source, generate_series(1, {chunks}) AS n"
            ))
            .await;
        fixture
    }

    /// Runs SQL past the service.
    pub(crate) async fn sql(&self, sql: &str) -> String {
        psql(&self.database.url, sql).await.unwrap().trim().to_owned()
    }

    /// Counts everything that a call may write.
    pub(crate) async fn rows(&self) -> String {
        self.sql(
            "SELECT (SELECT count(*) FROM job), (SELECT count(*) FROM extraction), (SELECT count(*) FROM entity),
                    (SELECT count(*) FROM dead_letter), (SELECT count(*) FROM outbox),
                    (SELECT string_agg(concat(id, state, attempts, last_error), ' ' ORDER BY id) FROM llm_request)",
        )
        .await
    }

    /// Starts a job and sends its requests, as the relay does.
    pub(crate) async fn start(&self) -> Job {
        let request = StartExtractionRequest {
            project: "p".to_owned(),
            priority: ProtoPriority::Low.into(),
            ..StartExtractionRequest::default()
        };
        let job = self.client.clone().start_extraction(request).await.unwrap().into_inner();
        let rows = self.sql("SELECT id, project_id FROM llm_request WHERE state = 'pending'").await;
        let ids: Vec<(Uuid, Uuid)> = rows
            .lines()
            .map(|line| line.split_once('|').unwrap())
            .map(|(id, project)| (id.parse().unwrap(), project.parse().unwrap()))
            .collect();
        for (request_id, project_id) in ids {
            let job_id = Some(job.id.parse().unwrap());
            let message = Message { request_id, project_id, job_id, headers: None };
            let sent = self.queue.send(Priority::Low, &[message]).await.unwrap();
            let [Sent::Added(id)] = &sent[..] else { panic!("{sent:?}") };
            let settled = "UPDATE llm_request SET state = 'queued', stream_id";
            self.sql(&format!("{settled} = '{id}' WHERE id = '{request_id}'")).await;
        }
        job
    }

    pub(crate) async fn claim(&self, worker: &str) -> Claimed {
        let mut claimed = self.queue.claim(worker, Priority::Low, 1, None).await.unwrap();
        claimed.pop().unwrap()
    }

    /// Takes a message over from whoever has it.
    pub(crate) async fn take_over(&self, worker: &str) -> Claimed {
        let mut claimed = self.queue.reclaim(worker, Priority::Low, Duration::ZERO, 1).await.unwrap();
        claimed.pop().unwrap()
    }

    /// Counts messages, and those of them that are in somebody's hands.
    pub(crate) async fn messages(&self) -> (u64, u64) {
        let stats = self.queue.stats().await.unwrap();
        (stats.iter().map(|stats| stats.length).sum(), stats.iter().map(|stats| stats.pending).sum())
    }

    /// Stops the service and waits for its end.
    pub(crate) async fn stop(self) {
        self.shutdown.trigger();
        self.server.await.unwrap().unwrap();
    }
}

pub(crate) fn begin(claimed: &Claimed, worker: &str) -> BeginRequestRequest {
    BeginRequestRequest {
        request_id: claimed.message.request_id.to_string(),
        message_id: claimed.stream_id.clone(),
        worker: worker.to_owned(),
    }
}

pub(crate) fn submit(claimed: &Claimed, worker: &str, answer: &str) -> SubmitResponseRequest {
    SubmitResponseRequest {
        request_id: claimed.message.request_id.to_string(),
        message_id: claimed.stream_id.clone(),
        worker: worker.to_owned(),
        model: "m".to_owned(),
        answer_json: answer.to_owned(),
        prompt_tokens: 100,
        completion_tokens: 20,
        prompt_version: String::new(),
    }
}

pub(crate) fn failure(claimed: &Claimed, worker: &str, class: i32) -> ReportFailureRequest {
    ReportFailureRequest {
        request_id: claimed.message.request_id.to_string(),
        message_id: claimed.stream_id.clone(),
        worker: worker.to_owned(),
        class,
        message: "it broke".to_owned(),
        model: "m".to_owned(),
        retry_after: None,
    }
}

/// Checks code, field and reason of a refusal. An empty field stands for none.
pub(crate) fn expect(what: &str, status: &Status, code: Code, field: &str, reason: &str) {
    assert_eq!(status.code(), code, "{what}: {status:?}");
    assert!(status.message().contains(reason), "{what}: {}", status.message());
    assert!(status.message().len() < 400, "{what}: {} bytes", status.message().len());
    let details = status.get_error_details();
    assert_eq!(details.error_info().map(|info| info.domain.as_str()), Some("waybill"), "{what}");
    if field.is_empty() {
        return;
    }
    match code {
        Code::NotFound => {
            let resource = details.resource_info().unwrap_or_else(|| panic!("{what}: no resource"));
            assert_eq!(resource.resource_type, field, "{what}");
        }
        _ => {
            let violations = &details.bad_request().unwrap_or_else(|| panic!("{what}: no field")).field_violations;
            assert!(violations.iter().any(|violation| violation.field == field), "{what}: {violations:?}");
            assert!(status.message().contains(field), "{what}: {}", status.message());
        }
    }
}
