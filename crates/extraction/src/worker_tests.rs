//! The worker with a provider that misbehaves, a real queue and a real database.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use serde_json::{Value, json};
use uuid::Uuid;
use waybill_domain::{JobId, MediaType, ProjectId, TextHash};
use waybill_llm::{Answer, Excerpt, Extraction, ExtractionTask, LlmError, LlmProvider, OpenAiConfig, Usage};
use waybill_llm_queue::{LlmQueue, Message, Priority, QueueConfig};
use waybill_runtime::Shutdown;
use waybill_storage::{
    Bell, Db, DbConfig,
    jobs::{self, Job, NewJob},
    projects, requests,
    sources::{NewChunk, NewSource, SourceKey, put_group},
};
use waybill_testkit::{TestDb, TestRedis, eventually, psql};

use crate::{Config, Deps, governor::Governor, provider::Provider, signals::LlmMeter, worker::Worker};

const PATIENCE: Duration = Duration::from_secs(30);

/// Does what a passage tells it to.
struct Obedient;

#[async_trait]
impl LlmProvider for Obedient {
    fn name(&self) -> &'static str {
        "obedient"
    }

    fn model(&self) -> &str {
        "own"
    }

    async fn extract(&self, task: &ExtractionTask) -> Result<Answer, LlmError> {
        let usage = Usage { prompt_tokens: 100, completion_tokens: 20 };
        let model = task.settings.model.clone().unwrap_or_else(|| self.model().to_owned());
        match task.text.as_str() {
            "panic" => panic!("on purpose"),
            "rubbish" => {
                Err(LlmError::BadAnswer { problem: "no JSON".to_owned(), excerpt: Excerpt::of("well"), usage })
            }
            _ => Ok(Answer { extraction: Extraction::default(), usage, model, repaired: false }),
        }
    }
}

/// A database, a queue, and a worker at work.
struct World {
    database: TestDb,
    db: Db,
    queue: LlmQueue,
    project: ProjectId,
    governor: Arc<Governor>,
    shutdown: Shutdown,
    worker: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl World {
    async fn start(passages: &[&str]) -> Self {
        let database = TestDb::create().await.unwrap();
        let db = Db::connect(&DbConfig {
            url: database.url.clone(),
            max_connections: 8,
            acquire_timeout: PATIENCE,
            application_name: "test".to_owned(),
        })
        .unwrap();
        let project = projects::create(&db, &"p".parse().unwrap()).await.unwrap().unwrap().id;
        put_group(&db, &[source(project, passages)], None).await.unwrap().remove(0).unwrap();
        let (url, prefix) = TestRedis::shared().await.unwrap();
        let queue = LlmQueue::connect(&QueueConfig { prefix, ..QueueConfig::new(url) }).unwrap();
        let config = Config {
            attempts_max: 3,
            retry_base_ms: 1,
            retry_max_ms: 2,
            models: vec!["large".to_owned()],
            ..Config::default()
        };
        let governor = Arc::new(Governor::new(&config));
        let prices = OpenAiConfig { prompt_token_price: 1e6, completion_token_price: 0.0, ..OpenAiConfig::default() };
        let deps = Deps { db: db.clone(), queue: queue.clone(), signals: waybill_runtime::Signals::default() };
        let shutdown = Shutdown::manual(PATIENCE);
        let provider = Provider::of(Obedient, prices);
        let meter = LlmMeter::new(&deps.signals.meter, "test");
        let worker = Worker::new(config, deps, provider, Arc::clone(&governor), Bell::start(&db), meter);
        let worker = tokio::spawn(worker.run(shutdown.clone()));
        Self { database, db, queue, project, governor, shutdown, worker }
    }

    /// Starts a job, and sends its requests as the relay does.
    async fn run(&self, settings: Value, headers: Option<&str>) -> Job {
        let id = JobId::generate();
        let job = NewJob {
            id,
            project_id: self.project,
            uri_prefix: String::new(),
            priority: "normal".to_owned(),
            settings,
            follow: false,
        };
        assert!(jobs::start(&self.db, &job, headers).await.unwrap());
        let sql = format!("COPY (SELECT id FROM llm_request WHERE job_id = '{}') TO STDOUT", id.as_uuid());
        let ids = psql(&self.database.url, &sql).await.unwrap();
        let ids: Vec<Uuid> = ids.lines().map(|line| line.parse().unwrap()).collect();
        let messages: Vec<Message> = requests::pending(&self.db, &ids)
            .await
            .unwrap()
            .into_iter()
            .map(|request| Message {
                request_id: request.id,
                project_id: request.project_id.as_uuid(),
                job_id: Some(request.job_id.as_uuid()),
                headers: request.headers,
            })
            .collect();
        assert_eq!(self.queue.send(Priority::Normal, &messages).await.unwrap().len(), ids.len());
        let mut last = None;
        eventually("each request is answered or given up", PATIENCE, async || {
            last = jobs::get(&self.db, id).await.unwrap();
            last.as_ref().is_some_and(|job| job.counts.open() == 0)
        })
        .await;
        last.unwrap()
    }

    async fn letters(&self) -> String {
        let sql = "COPY (SELECT error, error_class, attempts, model, coalesce(trace_id, '') FROM dead_letter
                         ORDER BY last_failed_at) TO STDOUT (DELIMITER '|')";
        psql(&self.database.url, sql).await.unwrap().trim().to_owned()
    }

    async fn stop(self) {
        self.shutdown.trigger();
        self.worker.await.unwrap().unwrap();
    }
}

fn source(project_id: ProjectId, passages: &[&str]) -> NewSource {
    let text = passages.concat();
    let mut end = 0;
    let chunks = passages.iter().map(|passage| {
        let start = end;
        end += passage.len();
        NewChunk { headings: Vec::new(), range: start..end, text_hash: TextHash::of(passage), token_count: 1 }
    });
    NewSource {
        chunks: chunks.collect(),
        key: SourceKey {
            project_id,
            uri: "a".to_owned(),
            given_title: None,
            media_type: MediaType::Text,
            metadata: json!({}),
            content_hash: waybill_domain::ContentHash::of(&text),
            chunker: "test".to_owned(),
            request: None,
            job_id: None,
            provisional: None,
        },
        title: String::new(),
        text,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_of_the_provider_costs_its_passage_only() {
    let world = World::start(&["one", "panic", "two"]).await;
    let job = world.run(json!({}), None).await;
    assert_eq!((job.counts.done, job.counts.dead), (2, 1), "{job:?}");
    assert_eq!(world.letters().await, "the provider panicked|permanent|0|own|");
    // The worker lives, and has no call on its books that never ended.
    let again = world.run(json!({}), None).await;
    assert_eq!((again.counts.done, again.counts.dead), (2, 1), "{again:?}");
    eventually("no call is under way", PATIENCE, async || world.governor.in_flight() == 0).await;
    eventually("no message is left", PATIENCE, async || {
        world.queue.stats().await.unwrap().iter().all(|stream| stream.length == 0)
    })
    .await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_can_t_be_used_are_paid_for_and_leave_the_trace_of_who_asked() {
    let world = World::start(&["one", "rubbish"]).await;
    let headers = r#"{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}"#;
    let job = world.run(json!({}), Some(headers)).await;
    assert_eq!((job.counts.done, job.counts.dead), (1, 1), "{job:?}");
    // One answer that was used, and three that were not.
    assert_eq!((job.prompt_tokens, job.completion_tokens, job.cost), (400, 80, 400.0));
    let letter = "llm server sent an unusable answer: no JSON|transient|3|own|0af7651916cd43dd8448eb211c80319c";
    assert_eq!(world.letters().await, letter);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_s_model_is_asked_if_it_is_allowed() {
    let world = World::start(&["one"]).await;
    assert_eq!(world.run(json!({"model": "large"}), None).await.counts.done, 1);
    assert_eq!(world.run(json!({}), None).await.counts.done, 1);
    let models =
        "COPY (SELECT r.model FROM llm_request r JOIN job j ON j.id = r.job_id ORDER BY j.created_at) TO STDOUT";
    assert_eq!(psql(&world.database.url, models).await.unwrap().trim(), "large\nown");
    assert_eq!(world.run(json!({"model": "dear"}), None).await.counts.dead, 1);
    assert!(world.letters().await.contains("\"dear\" is not allowed here: name one of large"));
    world.stop().await;
}
