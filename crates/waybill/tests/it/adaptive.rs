//! What the limit on calls under way does against a language model that can take more or less.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tonic::transport::Channel;
use waybill_api::extraction::v1::{
    GetJobRequest, GetWorkerStatusRequest, GetWorkerStatusResponse, Job, StartExtractionRequest,
    extraction_service_client::ExtractionServiceClient,
};
use waybill_testkit::{Program, corpus, eventually};

use crate::world::{PATIENCE, World, serve};

/// Some 250 chunks.
const DOCUMENTS: usize = 60;

/// More than three slots can bear, and well within what a free model can.
const GROWN: i32 = 16;

/// Longer than a caller of these tests waits for an answer.
const TOO_LONG: Duration = Duration::from_secs(5);

/// What a model does with its calls.
#[derive(Clone, Copy)]
enum Manner {
    /// Takes as many as come, and answers each after so long.
    Free(Duration),
    /// Answers as many at a time as it has slots, each after so long. The others it takes and
    /// keeps beyond their callers' patience.
    Saturated(Duration),
    /// Answers as many at a time as it has slots, each after so long. The others wait for a slot.
    Queued(Duration),
}

/// A language model whose manner can change while it runs. Ends when dropped.
struct Model {
    url: String,
    calls: Arc<Calls>,
    task: JoinHandle<()>,
}

/// The calls of a model, and what becomes of them.
struct Calls {
    manner: Mutex<Manner>,
    slots: Semaphore,
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
    answered: AtomicUsize,
    /// Calls whose callers did not wait for the answer.
    given_up: AtomicUsize,
    /// When the first call came, and when the last answer went.
    period: Mutex<Option<(Instant, Instant)>>,
}

impl Model {
    async fn start(slots: usize, manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let calls = Arc::new(Calls {
            manner: Mutex::new(manner),
            slots: Semaphore::new(slots),
            under_way: AtomicUsize::new(0),
            most_under_way: AtomicUsize::new(0),
            answered: AtomicUsize::new(0),
            given_up: AtomicUsize::new(0),
            period: Mutex::new(None),
        });
        let shared = Arc::clone(&calls);
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let calls = Arc::clone(&shared);
                tokio::spawn(async move { calls.answer(stream).await });
            }
        });
        Self { url, calls, task }
    }

    fn behave(&self, manner: Manner) {
        *self.calls.manner.lock().unwrap() = manner;
    }

    fn answered(&self) -> usize {
        self.calls.answered.load(Ordering::SeqCst)
    }

    fn given_up(&self) -> usize {
        self.calls.given_up.load(Ordering::SeqCst)
    }

    fn most_under_way(&self) -> usize {
        self.calls.most_under_way.load(Ordering::SeqCst)
    }

    /// Answers a second, from the first call to the last answer.
    fn rate(&self) -> f64 {
        let (first, last) = self.calls.period.lock().unwrap().unwrap();
        self.answered() as f64 / (last - first).as_secs_f64()
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Calls {
    /// Answers the calls of one connection.
    async fn answer(&self, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        while read_request(&mut stream).await.is_some() {
            let now = Instant::now();
            self.period.lock().unwrap().get_or_insert((now, now));
            let under_way = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_under_way.fetch_max(under_way, Ordering::SeqCst);
            let is_done = tokio::select! {
                () = self.think() => true,
                // The caller sends nothing before it has its answer: this is its hanging up.
                _ = stream.fill_buf() => false,
            };
            // Before the answer goes out, or the caller's next call could be counted beside this one.
            self.under_way.fetch_sub(1, Ordering::SeqCst);
            if !is_done {
                self.given_up.fetch_add(1, Ordering::SeqCst);
                return;
            }
            if let Some((_, last)) = self.period.lock().unwrap().as_mut() {
                *last = Instant::now();
            }
            self.answered.fetch_add(1, Ordering::SeqCst);
            if stream.get_mut().write_all(reply().as_bytes()).await.is_err() {
                return;
            }
        }
    }

    /// Takes as long as the model does. A slot is free again when this ends, or is dropped.
    async fn think(&self) {
        let manner = *self.manner.lock().unwrap();
        let (slot, latency) = match manner {
            Manner::Free(latency) => (None, latency),
            Manner::Saturated(latency) => {
                let slot = self.slots.try_acquire().ok();
                let latency = if slot.is_some() { latency } else { TOO_LONG };
                (slot, latency)
            }
            Manner::Queued(latency) => (Some(self.slots.acquire().await.unwrap()), latency),
        };
        // The latency of the model is what the test is about, not a wait for anything.
        sleep_until(Instant::now() + latency).await;
        drop(slot);
    }
}

/// Reads a request to its end. `None` if the connection has none more.
async fn read_request(stream: &mut BufReader<TcpStream>) -> Option<()> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let line = line.trim_end().to_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(())
}

/// An answer without facts: what is in it is no matter here.
fn reply() -> String {
    let body = json!({
        "id": "c", "object": "chat.completion", "created": 1_700_000_000, "model": "test",
        "choices": [{"index": 0, "finish_reason": "stop",
                     "message": {"role": "assistant", "content": r#"{"facts": []}"#}}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    })
    .to_string();
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// A world with a worker and documents.
struct Library {
    world: World,
    _worker: Program,
}

impl Library {
    /// `limits` is configuration of the extraction.
    async fn open(model: &Model, timeout: Duration, limits: &str) -> Self {
        let settings = format!(
            r#"
                [extraction]
                provider = "openai"
                # Nothing may die, and no breaker may step in: the limit alone is looked at.
                attempts_max = 1000
                breaker_failures = 1000
                retry_base_ms = 10
                retry_max_ms = 50
                {limits}
                [extraction.openai]
                base_url = "{}"
                model = "test"
                timeout_ms = {}
"#,
            model.url,
            timeout.as_millis(),
        );
        let world = World::start_with(&settings).await;
        let worker = serve(&world.config(), "extraction").await;
        let folder = world.dir.path().join("corpus");
        std::fs::create_dir_all(&folder).unwrap();
        for (index, document) in corpus::documents(3, DOCUMENTS).enumerate() {
            let ending = document.uri.rsplit('.').next().unwrap_or("txt");
            std::fs::write(folder.join(format!("{index:04}.{ending}")), document.body).unwrap();
        }
        let mut import = world.import(&folder);
        assert!(import.wait(PATIENCE).await.unwrap().success(), "{:?}", import.output());
        Self { world, _worker: worker }
    }

    fn client(&self) -> ExtractionServiceClient<Channel> {
        let url = format!("http://127.0.0.1:{}", self.world.ports.extraction);
        ExtractionServiceClient::new(waybill_runtime::grpc::channel(&url).unwrap())
    }

    /// Starts jobs, each of which asks for all chunks, and returns their ids and how many
    /// requests they have together.
    async fn start(&self, jobs: usize) -> (Vec<String>, usize) {
        let mut client = self.client();
        let (mut ids, mut total) = (Vec::new(), 0);
        for number in 0..jobs {
            let request = StartExtractionRequest {
                project: "p".to_owned(),
                request_id: number.to_string(),
                ..StartExtractionRequest::default()
            };
            let job = client.start_extraction(request).await.unwrap().into_inner();
            total +=
                usize::try_from(job.pending_count + job.queued_count + job.running_count + job.done_count).unwrap();
            ids.push(job.id);
        }
        (ids, total)
    }

    async fn jobs(&self, ids: &[String]) -> Vec<Job> {
        let mut client = self.client();
        let mut jobs = Vec::new();
        for id in ids {
            jobs.push(client.get_job(GetJobRequest { id: id.clone() }).await.unwrap().into_inner());
        }
        jobs
    }
}

/// What the worker says of itself, ten times a second. Printed when dropped, so that a test
/// that fails shows it too.
struct Sampler {
    samples: Arc<Mutex<Vec<(Duration, GetWorkerStatusResponse)>>>,
    task: JoinHandle<()>,
}

impl Sampler {
    fn start(mut client: ExtractionServiceClient<Channel>) -> Self {
        let samples = Arc::new(Mutex::new(Vec::new()));
        let (shared, begun) = (Arc::clone(&samples), Instant::now());
        let task = tokio::spawn(async move {
            let mut ticks = interval(Duration::from_millis(100));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                if let Ok(status) = client.get_worker_status(GetWorkerStatusRequest {}).await {
                    shared.lock().unwrap().push((begun.elapsed(), status.into_inner()));
                }
            }
        });
        Self { samples, task }
    }

    /// The limit of the last sample, once there is one.
    fn limit(&self) -> Option<i32> {
        self.samples.lock().unwrap().last().map(|(_, status)| status.concurrency_limit)
    }

    fn len(&self) -> usize {
        self.samples.lock().unwrap().len()
    }

    /// The limits from the sample numbered `first` on.
    fn limits_since(&self, first: usize) -> Vec<i32> {
        self.samples.lock().unwrap().iter().skip(first).map(|(_, status)| status.concurrency_limit).collect()
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.task.abort();
        let Ok(samples) = self.samples.lock() else { return };
        eprintln!("ms:limit/in flight");
        for line in samples.chunks(10) {
            let line = line.iter().map(|(elapsed, status)| {
                format!("{}:{}/{}", elapsed.as_millis(), status.concurrency_limit, status.in_flight)
            });
            eprintln!("{}", line.collect::<Vec<_>>().join("  "));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrency_falls_at_saturation_and_recovers() {
    let fast = Manner::Free(Duration::from_millis(20));
    let model = Model::start(3, fast).await;
    let limits = "concurrency_min = 1\nconcurrency_start = 8\nconcurrency_max = 32";
    let library = Library::open(&model, Duration::from_millis(400), limits).await;
    let sampler = Sampler::start(library.client());
    let (ids, total) = library.start(12).await;

    eventually("the limit grows while the model is free", PATIENCE, async || sampler.limit() >= Some(GROWN)).await;
    eprintln!("free: {} answered, {} given up", model.answered(), model.given_up());

    model.behave(Manner::Saturated(Duration::from_millis(50)));
    let is_low = |limit: Option<i32>| limit.is_some_and(|limit| limit <= 4);
    eventually("the limit falls when the model is saturated", PATIENCE, async || is_low(sampler.limit())).await;
    let (answered, given_up, first) = (model.answered(), model.given_up(), sampler.len());
    eprintln!("fallen: {answered} answered, {given_up} given up since the start");
    // Enough for the limit to grow beyond what the model can take, and to be cut again.
    eventually("the model goes on answering", PATIENCE, async || model.answered() >= answered + 250).await;
    let (answered, given_up) = (model.answered() - answered, model.given_up() - given_up);
    let ratio = given_up as f64 / (answered + given_up) as f64;
    let limits = sampler.limits_since(first);
    let (lowest, highest) = (limits.iter().min().unwrap(), limits.iter().max().unwrap());
    eprintln!("saturated: {answered} answered, {given_up} given up: {ratio:.3}; limits {lowest} to {highest}");
    assert!(*highest < GROWN, "cut before it is where it fell from: {limits:?}");
    assert!(ratio < 0.35, "{given_up} of {} calls were in vain", answered + given_up);

    model.behave(fast);
    eventually("the limit grows again when the model is free", PATIENCE, async || sampler.limit() >= Some(GROWN)).await;
    let jobs = library.jobs(&ids).await;
    let done: i64 = jobs.iter().map(|job| job.done_count).sum();
    eprintln!("recovered: {done} of {total} requests done");
    assert!(jobs.iter().all(|job| job.dead_count == 0), "a timeout costs a call and no request: {jobs:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn throughput_is_what_the_slots_allow() {
    const SLOTS: usize = 8;
    let latency = Duration::from_millis(50);
    let model = Model::start(SLOTS, Manner::Queued(latency)).await;
    let limits = format!("concurrency_min = {SLOTS}\nconcurrency_start = {SLOTS}\nconcurrency_max = {SLOTS}");
    // A timeout would have the worker call again while the model still has the first call.
    let library = Library::open(&model, Duration::from_secs(60), &limits).await;
    let (ids, total) = library.start(2).await;
    assert!(total > 400, "{total} requests");
    eventually("each request is done", PATIENCE, async || model.answered() >= total).await;
    eventually("each answer is stored", PATIENCE, async || {
        let jobs = library.jobs(&ids).await;
        jobs.iter().map(|job| usize::try_from(job.done_count).unwrap()).sum::<usize>() == total
    })
    .await;
    let (rate, ideal) = (model.rate(), SLOTS as f64 / latency.as_secs_f64());
    eprintln!("{total} requests, {rate:.1} a second where {ideal:.0} are possible: {:.2}", rate / ideal);
    assert_eq!(model.most_under_way(), SLOTS, "as many calls as there are slots, and never more");
    assert_eq!((model.answered(), model.given_up()), (total, 0), "each request is asked for once");
}
