//! The example worker in Python does all the work, is stopped and killed, and nothing is lost or
//! stored twice.

use std::path::{Path, PathBuf};

use tonic::Code;
use waybill_api::extraction::v1::{
    BeginRequestRequest, GetJobRequest, Job, JobState, StartExtractionRequest, SubmitResponseRequest,
    extraction_service_client::ExtractionServiceClient,
};
use waybill_llm_queue::{LlmQueue, Priority, QueueConfig};
use waybill_testkit::{Program, Signal, corpus, eventually, psql};

use crate::world::{PATIENCE, World, serve};

/// Some 160 chunks.
const DOCUMENTS: usize = 40;

/// Short, so that what a dead worker had is taken over while the test waits.
const LEASE_MS: u32 = 1_500;

/// Seconds: longer than the lease, so that only heartbeats keep a message so long.
const SLOW: &str = "4";

/// Seconds: longer than the test.
const FOREVER: &str = "3600";

fn settings() -> String {
    format!(
        r#"
                [extraction]
                worker_enabled = false
                heartbeat_ms = 200
                reclaim_after_ms = {LEASE_MS}
                sweep_every_ms = 200
                sweep_age_ms = 500
"#
    )
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap()
}

/// A Python with the packages of `docs/examples/requirements.txt`.
struct Python {
    /// What `PYTHONPATH` has to name.
    path: String,
}

impl Python {
    /// Finds the packages, and generates the stubs as docs/workers.md says.
    async fn with_stubs(world: &World) -> Self {
        let packages = std::env::var_os("WAYBILL_TEST_PYTHON_DIR")
            .map_or_else(|| workspace().join("target/python"), PathBuf::from);
        let is_there = packages.join("grpc_tools").is_dir() && packages.join("redis").is_dir();
        assert!(is_there, "{} lacks the worker's packages: run `cargo xtask setup`", packages.display());
        let stubs = world.dir.path().join("stubs");
        std::fs::create_dir_all(&stubs).unwrap();
        let python = Self { path: format!("{}:{}", packages.display(), stubs.display()) };
        let proto = workspace().join("proto").display().to_string();
        let out = stubs.display();
        let mut protoc = python.start(&[
            "-m",
            "grpc_tools.protoc",
            "--proto_path",
            &proto,
            &format!("--python_out={out}"),
            &format!("--grpc_python_out={out}"),
            "waybill/common/v1/access.proto",
            "waybill/extraction/v1/extraction.proto",
        ]);
        assert!(protoc.wait(PATIENCE).await.unwrap().success(), "{:?}", protoc.output());
        python
    }

    fn start(&self, args: &[&str]) -> Program {
        let variables = [("PYTHONPATH", self.path.as_str()), ("PYTHONDONTWRITEBYTECODE", "1")];
        Program::start("python3", args, variables).unwrap()
    }

    /// Starts a worker whose model needs `think` seconds for each passage.
    fn worker(&self, world: &World, name: &str, think: &str) -> Program {
        let script = workspace().join("docs/examples/worker.py").display().to_string();
        let (redis, service) = (world.redis.url(), format!("127.0.0.1:{}", world.ports.extraction));
        let lease = LEASE_MS.to_string();
        self.start(&[
            &script,
            "--redis",
            &redis,
            "--service",
            &service,
            "--lease-ms",
            &lease,
            "--name",
            name,
            "--think",
            think,
        ])
    }
}

/// Waits until a worker reads, and returns which request.
async fn reading(worker: &Program) -> String {
    let line = worker.line("reading ", PATIENCE).await.unwrap();
    line.split([' ', ',']).nth(1).unwrap().to_owned()
}

fn count(worker: &Program, what: &str) -> usize {
    worker.output().iter().filter(|line| line.starts_with(what)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_in_python_do_all_the_work() {
    let world = World::start_with(&settings()).await;
    let python = Python::with_stubs(&world).await;
    let mut help = python.start(&[&workspace().join("docs/examples/worker.py").display().to_string(), "--help"]);
    assert!(help.wait(PATIENCE).await.unwrap().success(), "{:?}", help.output());

    let _service = serve(&world.config(), "extraction").await;
    let folder = world.dir.path().join("corpus");
    std::fs::create_dir_all(&folder).unwrap();
    for (index, document) in corpus::documents(3, DOCUMENTS).enumerate() {
        let ending = document.uri.rsplit('.').next().unwrap_or("txt");
        std::fs::write(folder.join(format!("{index:04}.{ending}")), document.body).unwrap();
    }
    let mut import = world.import(&folder);
    assert!(import.wait(PATIENCE).await.unwrap().success(), "{:?}", import.output());
    let url = format!("http://127.0.0.1:{}", world.ports.extraction);
    let mut client = ExtractionServiceClient::new(waybill_runtime::grpc::channel(&url).unwrap());
    let start = StartExtractionRequest { project: "p".to_owned(), ..StartExtractionRequest::default() };
    let job = client.start_extraction(start).await.unwrap().into_inner();
    let total = job.pending_count + job.queued_count;
    assert!(total > 100, "{total} requests");

    // A worker that was taken over from: what it hands in is refused.
    let queue = LlmQueue::connect(&QueueConfig::new(world.redis.url())).unwrap();
    let mut claimed = Vec::new();
    eventually("a message arrives", PATIENCE, async || {
        claimed = queue.claim("old", Priority::Normal, 1, None).await.unwrap();
        !claimed.is_empty()
    })
    .await;
    let (request_id, message_id) = (claimed[0].message.request_id.to_string(), claimed[0].stream_id.clone());
    let worker = "old".to_owned();
    let begin =
        BeginRequestRequest { request_id: request_id.clone(), message_id: message_id.clone(), worker: worker.clone() };
    assert!(client.begin_request(begin).await.unwrap().into_inner().wanted);
    let taken = queue.reclaim("thief", Priority::Normal, std::time::Duration::ZERO, 1).await.unwrap();
    assert_eq!(taken[0].stream_id, message_id);
    let answer_json = r#"{"facts": []}"#.to_owned();
    let model = "stale".to_owned();
    let stale = SubmitResponseRequest {
        request_id,
        message_id,
        worker,
        model,
        answer_json,
        ..SubmitResponseRequest::default()
    };
    let refused = client.submit_response(stale.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains("taken over by worker \"thief\""), "{}", refused.message());

    // The service's own worker is off: nobody else answers.
    let slow = python.worker(&world, "slow", SLOW);
    let kept = reading(&slow).await;
    let mut stopped = python.worker(&world, "stopped", FOREVER);
    let left = reading(&stopped).await;
    stopped.signal(Signal::SIGTERM).unwrap();
    assert!(stopped.wait(PATIENCE).await.unwrap().success(), "{:?}", stopped.output());
    let noted = format!("COPY (SELECT last_error FROM llm_request WHERE id = '{left}') TO STDOUT");
    assert_eq!(psql(&world.db.url, &noted).await.unwrap().trim(), "the worker stops");
    let mut killed = python.worker(&world, "killed", FOREVER);
    reading(&killed).await;
    killed.kill9().await.unwrap();

    // One is killed while it is busy, at any point, and another goes on.
    let mut busy = python.worker(&world, "busy", "0.03");
    eventually("it works", PATIENCE, async || count(&busy, "stored") > 20).await;
    busy.kill9().await.unwrap();
    let last = python.worker(&world, "last", "0");
    let mut done = Job::default();
    eventually("each request is done", PATIENCE, async || {
        let job = client.get_job(GetJobRequest { id: job.id.clone() }).await;
        done = job.map(tonic::Response::into_inner).unwrap_or_default();
        done.state() == JobState::Done
    })
    .await;
    // Had its heartbeats failed, another would have been first.
    slow.line(&format!("stored {kept}"), PATIENCE).await.unwrap();
    assert!(count(&last, "stored") > 20, "the kill came in the middle");

    assert_eq!((done.done_count, done.dead_count, done.dropped_fact_count), (total, 0, 0));
    let facts = "COPY (SELECT count(*), count(DISTINCT c.id),
                              bool_and(e.quote = convert_from(substring(convert_to(c.text, 'UTF8')
                                  FROM e.quote_start + 1 FOR e.quote_end - e.quote_start), 'UTF8')),
                              bool_and(regexp_replace(c.text, '^\\s+', '') LIKE replace(replace(replace(
                                  e.quote, '\\', '\\\\'), '%', '\\%'), '_', '\\_') || '%'),
                              min(e.model), min(e.prompt_version), (SELECT sum(attempts) FROM llm_request)
                       FROM extraction e JOIN chunk c ON c.id = e.chunk_id) TO STDOUT";
    let facts = psql(&world.db.url, facts).await.unwrap();
    let expected = format!("{total}\t{total}\tt\tt\tfirst-sentence\tfirst-sentence\t0");
    assert_eq!(facts.trim(), expected, "one fact a chunk: its first sentence, where it stands");
    assert!(client.submit_response(stale).await.unwrap().into_inner().already_done);
    eventually("redis holds nothing", PATIENCE, async || {
        queue.stats().await.is_ok_and(|stats| stats.iter().all(|s| s.length == 0 && s.pending == 0))
    })
    .await;
    world.wait_until_equal().await;
    for mut worker in [slow, last] {
        worker.signal(Signal::SIGTERM).unwrap();
        assert!(worker.wait(PATIENCE).await.unwrap().success(), "{:?}", worker.output());
        let output = worker.output();
        assert_eq!(output.last().map(String::as_str), Some("stopped"), "{output:#?}");
        assert!(!output.iter().any(|line| line.contains("Traceback")), "{output:#?}");
    }
}
