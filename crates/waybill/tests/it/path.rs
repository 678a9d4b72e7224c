//! A request's way from the call that asks for it to its end, and what may stand in it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tonic::{Request, transport::Channel};
use waybill_api::{
    extraction::v1::{
        ExtractionRequest, GetJobRequest, Job, JobState, ListJobsRequest, ListRequestsRequest, RequestState,
        StartExtractionRequest, extraction_service_client::ExtractionServiceClient,
    },
    relay::v1::{GetStatusRequest, SinkStatus, relay_service_client::RelayServiceClient},
};
use waybill_llm_queue::{LlmQueue, QueueConfig};
use waybill_testkit::{Program, eventually, psql};

use crate::{
    llm_server::{LlmServer, Mood},
    world::{PATIENCE, World, serve},
};

/// Messages that the stream takes in the test of a full one.
const STREAM_MAX: usize = 4;

fn settings(url: &str) -> String {
    format!(
        r#"
                [extraction]
                provider = "openai"
                concurrency_start = 2
                concurrency_max = 2
                [extraction.openai]
                base_url = "{url}"
                model = "test"
"#
    )
}

/// Writes documents of one passage each.
fn write(world: &World, name: &str, count: usize) -> std::path::PathBuf {
    let folder = world.dir.path().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    for number in 0..count {
        let text = format!("This is sentence number {number} of the {name} documents.");
        std::fs::write(folder.join(format!("{name}-{number}.txt")), text).unwrap();
    }
    folder
}

async fn import(world: &World, folder: &str, count: usize) {
    let folder = write(world, folder, count);
    let mut import = world.import(&folder);
    assert!(import.wait(PATIENCE).await.unwrap().success(), "{:?}", import.output());
}

fn channel(port: u16) -> Channel {
    waybill_runtime::grpc::channel(&format!("http://127.0.0.1:{port}")).unwrap()
}

fn extraction(world: &World) -> ExtractionServiceClient<Channel> {
    ExtractionServiceClient::new(channel(world.ports.extraction))
}

fn asked() -> StartExtractionRequest {
    StartExtractionRequest { project: "p".to_owned(), ..StartExtractionRequest::default() }
}

async fn wait(world: &World, id: &str) -> Job {
    let mut last = Job::default();
    eventually("the job ends", PATIENCE, async || {
        last = extraction(world).get_job(GetJobRequest { id: id.to_owned() }).await.unwrap().into_inner();
        matches!(last.state(), JobState::Done | JobState::Failed)
    })
    .await;
    last
}

async fn sink(world: &World, name: &str) -> SinkStatus {
    let status = RelayServiceClient::new(channel(world.ports.relay)).get_status(GetStatusRequest::default()).await;
    let sinks = status.map(|status| status.into_inner().sinks).unwrap_or_default();
    sinks.into_iter().find(|sink| sink.sink == name).unwrap_or_default()
}

/// A relay whose queue takes few messages, and a worker.
async fn narrow(server: &LlmServer) -> (World, Program) {
    let mut world = World::start_with(&settings(&server.url)).await;
    let config = std::fs::read_to_string(world.config()).unwrap();
    let narrow = config.replace("[redis]", &format!("[redis]\nstream_max = {STREAM_MAX}"));
    std::fs::write(world.config(), narrow).unwrap();
    world.kill_relay().await;
    let worker = serve(&world.config(), "extraction").await;
    (world, worker)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_stream_holds_up_its_own_sink_only_and_until_there_is_room() {
    let is_open = Arc::new(AtomicBool::new(false));
    let server = LlmServer::start({
        let is_open = Arc::clone(&is_open);
        move |_, _| if is_open.load(Ordering::SeqCst) { Mood::Answer(Duration::ZERO) } else { Mood::Pause }
    })
    .await;
    let (world, _worker) = narrow(&server).await;
    import(&world, "first", 20).await;
    let job = extraction(&world).start_extraction(asked()).await.unwrap().into_inner();
    assert_eq!(job.pending_count + job.queued_count + job.running_count, 20);

    let is_full = |sink: &SinkStatus| sink.last_error.contains("is full");
    eventually("the status says why nothing goes on", PATIENCE, async || is_full(&sink(&world, "llm").await)).await;
    let queue = LlmQueue::connect(&QueueConfig::new(world.redis.url())).unwrap();
    let length = queue.stats().await.unwrap().iter().map(|stream| stream.length).sum::<u64>();
    assert_eq!(length, STREAM_MAX as u64, "as many as it takes, and no more");
    // The other sink does not notice.
    import(&world, "second", 30).await;
    eventually("qdrant has all chunks", PATIENCE, async || world.confirmed().await == 50).await;
    assert_eq!(sink(&world, "qdrant").await.last_error, "");
    let stuck = sink(&world, "llm").await;
    assert!(is_full(&stuck) && stuck.lag_rows > 0, "{stuck:?}");

    is_open.store(true, Ordering::SeqCst);
    let job = wait(&world, &job.id).await;
    assert_eq!((job.done_count, job.dead_count), (20, 0));
    eventually("the sink has nothing left, and no error", PATIENCE, async || {
        let sink = sink(&world, "llm").await;
        sink.lag_rows == 0 && sink.last_error.is_empty()
    })
    .await;
    world.wait_until_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_bears_the_trace_of_the_call_that_asked_for_it_to_its_end() {
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    let server = LlmServer::start(|passage, _| match passage.contains("number 0 ") {
        true => Mood::Refuse,
        false => Mood::Answer(Duration::ZERO),
    })
    .await;
    let world = World::start_with(&settings(&server.url)).await;
    let _worker = serve(&world.config(), "extraction").await;
    import(&world, "docs", 3).await;
    let runs = "COPY (SELECT count(*), count(DISTINCT c.job_id), bool_and(c.job_id = s.job_id)
                      FROM chunk c JOIN source s ON s.id = c.source_id) TO STDOUT";
    assert_eq!(psql(&world.db.url, runs).await.unwrap().trim(), "3\t1\tt", "an import is one run");

    let mut client = extraction(&world);
    let mut request = Request::new(asked());
    request.metadata_mut().insert("traceparent", format!("00-{TRACE}-b7ad6b7169203331-01").parse().unwrap());
    let job = client.start_extraction(request).await.unwrap().into_inner();
    let job = wait(&world, &job.id).await;
    assert_eq!((job.done_count, job.dead_count, job.entities_complete_count), (2, 1, 2), "{job:?}");
    let trace = "COPY (SELECT DISTINCT trace_id FROM dead_letter) TO STDOUT";
    assert_eq!(psql(&world.db.url, trace).await.unwrap().trim(), TRACE);
    // What the facts made is of the worker's trace, which is linked to this one, and of the same request.
    let of = |kinds: &str, what: &str| {
        format!("COPY (SELECT DISTINCT {what} FROM outbox WHERE kind IN ({kinds})) TO STDOUT")
    };
    let trace = "split_part(headers::jsonb ->> 'traceparent', '-', 2)";
    assert_eq!(psql(&world.db.url, &of("'llm_request'", trace)).await.unwrap().trim(), TRACE);
    let workers = psql(&world.db.url, &of("'extraction', 'entity'", trace)).await.unwrap();
    assert!(workers.lines().count() == 2 && !workers.contains(TRACE), "one for each passage: {workers}");
    let requests = of("'llm_request', 'extraction', 'entity'", "headers::jsonb ->> 'x-request-id'");
    assert_eq!(psql(&world.db.url, &requests).await.unwrap().lines().count(), 1);

    let asked_for = ListRequestsRequest { project: "p".to_owned(), job_id: job.id.clone(), ..Default::default() };
    let requests = pages(&mut client, asked_for.clone()).await;
    assert_eq!(requests.len(), 3);
    let dead: Vec<&ExtractionRequest> =
        requests.iter().filter(|request| request.state() == RequestState::Dead).collect();
    assert!(dead.len() == 1 && dead[0].last_error.contains("422"), "{dead:?}");
    assert_eq!((dead[0].last_error_class.as_str(), dead[0].source_uri.as_str()), ("permanent", "docs-0.txt"));
    let only_done = ListRequestsRequest { state: RequestState::Done.into(), ..asked_for };
    for done in pages(&mut client, only_done).await {
        assert_eq!((done.model.as_str(), done.fact_count, done.prompt_tokens), ("test", 1, 100), "{done:?}");
        assert_eq!(done.dropped_facts["quote_not_found"], 1, "{done:?}");
    }
    let neither = ListRequestsRequest { project: "p".to_owned(), ..Default::default() };
    assert_eq!(client.list_requests(neither).await.unwrap_err().code(), tonic::Code::InvalidArgument);

    for _ in 0..2 {
        client.start_extraction(asked()).await.unwrap();
    }
    assert_eq!(jobs(&mut client).await, 3, "each job on one page");
}

/// All requests, page by page.
async fn pages(client: &mut ExtractionServiceClient<Channel>, asked: ListRequestsRequest) -> Vec<ExtractionRequest> {
    let (mut all, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListRequestsRequest { page_size: 2, page_token, ..asked.clone() };
        let page = client.list_requests(request).await.unwrap().into_inner();
        all.extend(page.requests);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return all;
        }
    }
}

/// How many jobs there are, read one a page.
async fn jobs(client: &mut ExtractionServiceClient<Channel>) -> usize {
    let (mut seen, mut page_token) = (std::collections::BTreeSet::new(), String::new());
    loop {
        let request = ListJobsRequest { project: "p".to_owned(), page_size: 1, page_token };
        let page = client.list_jobs(request).await.unwrap().into_inner();
        assert!(page.jobs.iter().all(|job| seen.insert(job.id.clone())), "a job came twice");
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return seen.len();
        }
    }
}
