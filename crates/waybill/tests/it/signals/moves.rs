//! Each metric moves with what it speaks of, and totals outlive the process that told them.

use std::time::Duration;

use tokio::time::Instant;
use tonic::transport::Channel;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use waybill_api::embedding::v1::{SearchRequest, search_service_client::SearchServiceClient};
use waybill_api::extraction::v1::{StartExtractionRequest, extraction_service_client::ExtractionServiceClient};
use waybill_api::ingestion::v1::{
    CreateProjectRequest, DeleteSourceRequest, MediaType, PutSourceRequest,
    ingestion_service_client::IngestionServiceClient,
};
use waybill_api::relay::v1::{PauseRequest, ResumeRequest};
use waybill_testkit::{Program, Signal, eventually, psql};

use super::http::{self, admin_of, sum};
use crate::llm_server::{LlmServer, Mood};
use crate::world::{PATIENCE, World, serve};

/// Stores are read every ten seconds; the rest is for a machine under load.
const MOVES_LIMIT: Duration = Duration::from_secs(45);

/// The model says nothing for so long: longer than the test takes.
const NEVER: Duration = Duration::from_secs(3_600);

fn settings(llm: &str) -> String {
    format!(
        r#"
                breaker_failures = 2
                [relay.scrub]
                period_s = 1
                check_s = 0
                repair = false
                [ingestion]
                backlog_hard_limit = 100000
                [extraction]
                provider = "openai"
                concurrency_min = 2
                concurrency_start = 2
                retry_base_ms = 10
                retry_max_ms = 50
                breaker_failures = 3
                breaker_open_ms = 600000
                sweep_every_ms = 200
                sweep_age_ms = 500
                [extraction.openai]
                base_url = "{llm}"
                model = "test"
                prompt_token_price = 0.001
                completion_token_price = 0.002
"#
    )
}

/// What the model does with a passage that has the word in it.
fn mood(passage: &str, _calls: usize) -> Mood {
    match passage {
        text if text.contains("silence") => Mood::Answer(NEVER),
        text if text.contains("refusal") => Mood::Refuse,
        text if text.contains("failure") => Mood::Fail,
        _ => Mood::Answer(Duration::ZERO),
    }
}

/// All services, what to call them by, and what did not move so far.
struct Watched {
    world: World,
    _extraction: Program,
    admins: Vec<String>,
    ingestion: IngestionServiceClient<Channel>,
    still: Vec<String>,
}

impl Watched {
    async fn start(llm: &LlmServer) -> Self {
        let world = World::start_with(&settings(&llm.url)).await;
        let extraction = serve(&world.config(), "extraction").await;
        let mut admins = Vec::new();
        for program in [&world.relay, &world.embedding, &world.ingestion, &extraction] {
            admins.push(admin_of(program).await);
        }
        let ingestion = IngestionServiceClient::new(channel(world.ports.ingestion));
        Self { world, _extraction: extraction, admins, ingestion, still: Vec::new() }
    }

    async fn scrape(&self) -> String {
        let mut all = String::new();
        for admin in &self.admins {
            all += &http::get(admin, "/metrics").await.1;
        }
        all
    }

    /// Expects that each series comes to so much or more, and goes on without those that don't.
    async fn expect(&mut self, rows: &[(&str, f64)]) {
        let begun = Instant::now();
        let mut missing = Vec::new();
        eventually("every metric was looked at", PATIENCE, async || {
            let scrape = self.scrape().await;
            let rows = rows.iter().map(|(selector, least)| (selector, least, sum(&scrape, selector)));
            let short = rows.filter(|(_, least, value)| value < least);
            missing = short.map(|(selector, least, value)| format!("{selector}: {value} < {least}")).collect();
            missing.is_empty() || begun.elapsed() > MOVES_LIMIT
        })
        .await;
        self.still.append(&mut missing);
    }

    async fn put(&mut self, project: &str, uri: &str, text: &str) {
        let put = PutSourceRequest {
            project: project.to_owned(),
            uri: uri.to_owned(),
            media_type: MediaType::Text.into(),
            body: text.to_owned().into(),
            ..Default::default()
        };
        self.ingestion.put_source(put).await.unwrap();
    }

    async fn search(&self) {
        let search = SearchRequest { project: "p".to_owned(), query: "ferry".to_owned(), ..Default::default() };
        SearchServiceClient::new(channel(self.world.ports.embedding)).search(search).await.unwrap();
    }

    /// Starts a job over what the project has.
    async fn extract(&self, project: &str) {
        let start = StartExtractionRequest { project: project.to_owned(), ..Default::default() };
        let mut client = ExtractionServiceClient::new(channel(self.world.ports.extraction));
        client.start_extraction(start).await.unwrap();
    }

    async fn sql(&self, sql: &str) {
        psql(&self.world.db.url, sql).await.unwrap();
    }

    async fn everything_is_delivered(&mut self) {
        for project in ["p", "q", "r"] {
            self.ingestion.create_project(CreateProjectRequest { name: project.to_owned() }).await.unwrap();
        }
        let ferry = "The ferry leaves the harbour at seven in the morning.";
        self.put("p", "a", ferry).await;
        self.put("p", "a", ferry).await;
        self.put("p", "a", &format!("{ferry} It is late.")).await;
        self.put("q", "a", ferry).await;
        self.put("p", "b", "It is a refusal that the harbour master hears every day.").await;
        self.world.wait_until_equal().await;
        // What was embedded before the last put may be written down a moment later.
        self.put("r", "a", &format!("{ferry} It is late.")).await;
        self.search().await;
        self.expect(&[
            (r#"waybill_ingestion_sources_total{outcome="created"}"#, 4.0),
            (r#"waybill_ingestion_sources_total{outcome="updated"}"#, 1.0),
            (r#"waybill_ingestion_sources_total{outcome="unchanged"}"#, 1.0),
            ("waybill_ingestion_backlog_limit_rows", 1.0),
            (r#"waybill_relay_deliveries_total{class="none",outcome="confirmed",sink="qdrant"}"#, 1.0),
            (r#"waybill_relay_commit_to_confirmed_seconds_count{sink="qdrant"}"#, 4.0),
            (r#"waybill_relay_commit_to_confirmed_seconds_sum{sink="qdrant"}"#, 0.001),
            (r#"waybill_relay_batch_keys_sum{sink="qdrant"}"#, 4.0),
            (r#"waybill_relay_lanes_owned{sink="qdrant"}"#, 64.0),
            (r#"waybill_relay_lanes_owned{sink="llm"}"#, 64.0),
            (r#"waybill_embedding_cache_lookups_total{result="miss"}"#, 3.0),
            (r#"waybill_embedding_cache_lookups_total{result="hit"}"#, 1.0),
            ("waybill_embedding_batch_texts_sum", 3.0),
            ("waybill_embedding_batch_fill_ratio_sum", 0.001),
            (r#"waybill_embedding_call_duration_seconds_count{outcome="ok"}"#, 1.0),
            ("waybill_embedding_call_duration_seconds_sum", 0.000_001),
            ("waybill_embedding_queue_capacity_texts", 1.0),
            (r#"waybill_qdrant_call_duration_seconds_count{operation="upsert",outcome="ok"}"#, 1.0),
            (r#"waybill_grpc_server_calls_total{code="OK",method="PutSource"}"#, 6.0),
            (r#"waybill_grpc_server_call_duration_seconds_count{method="PutSource"}"#, 6.0),
            ("waybill_postgres_pool_wait_seconds_count", 1.0),
            (r#"waybill_postgres_pool_connections{state="idle"}"#, 1.0),
            ("waybill_postgres_pool_max_connections", 1.0),
            (r#"waybill_component_up{component="qdrant"}"#, 2.0),
            (r#"waybill_component_up{component="provider"}"#, 2.0),
            ("waybill_process_start_time_seconds", 1.7e9),
        ])
        .await;
    }

    async fn the_model_is_asked(&mut self) {
        self.extract("q").await;
        // Of these, one is refused and one never answered.
        self.put("p", "c", "A silence lies over the harbour when the ferry has left.").await;
        self.extract("p").await;
        self.expect(&[
            (r#"waybill_llm_call_duration_seconds_count{outcome="ok"}"#, 1.0),
            (r#"waybill_llm_call_duration_seconds_count{outcome="permanent"}"#, 1.0),
            (r#"waybill_llm_tokens_total{direction="prompt"}"#, 100.0),
            (r#"waybill_llm_tokens_total{direction="completion"}"#, 20.0),
            ("waybill_llm_cost_usd_total", 0.000_000_14),
            (r#"waybill_llm_stage_duration_seconds_count{stage="queue"}"#, 3.0),
            (r#"waybill_llm_stage_duration_seconds_count{stage="call"}"#, 2.0),
            (r#"waybill_llm_stage_duration_seconds_count{stage="store"}"#, 1.0),
            ("waybill_llm_worker_calls_in_flight", 1.0),
            ("waybill_llm_worker_concurrency_target", 1.0),
            ("waybill_llm_queue_depth_messages", 1.0),
            ("waybill_llm_queue_capacity_messages", 1.0),
            (r#"waybill_llm_requests{state="running"}"#, 1.0),
            (r#"waybill_llm_requests{state="dead"}"#, 1.0),
            (r#"waybill_llm_requests_oldest_age_seconds{state="running"}"#, 0.1),
            (r#"waybill_jobs{state="open"}"#, 1.0),
            (r#"waybill_jobs{state="done"}"#, 1.0),
            (r#"waybill_job_duration_seconds_count{outcome="done"}"#, 1.0),
            (r#"waybill_relay_dead_letters{sink="llm"}"#, 1.0),
            (r#"waybill_relay_dead_letters_total{sink="llm"}"#, 1.0),
            (r#"waybill_redis_pool_wait_seconds_count{pool="relay"}"#, 1.0),
            (r#"waybill_redis_pool_wait_seconds_count{pool="extraction"}"#, 1.0),
            (r#"waybill_redis_pool_connections{pool="relay"}"#, 1.0),
            (r#"waybill_redis_pool_connections{pool="extraction"}"#, 1.0),
            ("waybill_redis_pool_max_connections", 1.0),
        ])
        .await;
    }

    async fn delivery_is_paused(&mut self) {
        let mut relay = self.world.relay_client();
        let sink = "qdrant".to_owned();
        let pause = PauseRequest { sink: sink.clone(), paused_by: "test".to_owned(), ..Default::default() };
        relay.pause(pause).await.unwrap();
        self.expect(&[(r#"waybill_relay_paused{sink="qdrant"}"#, 1.0)]).await;
        let delete = DeleteSourceRequest { project: "p".to_owned(), uri: "a".to_owned(), if_version: None };
        self.ingestion.delete_source(delete).await.unwrap();
        self.search().await;
        let begun = Instant::now();
        eventually("a put sees what waits", PATIENCE, async || {
            self.put("p", "d", &format!("The harbour is open again after {:?}.", begun.elapsed())).await;
            sum(&self.scrape().await, "waybill_ingestion_backlog_rows") > 0.0 || begun.elapsed() > MOVES_LIMIT
        })
        .await;
        self.expect(&[
            ("waybill_search_stale_hits_total", 1.0),
            ("waybill_ingestion_backlog_rows", 1.0),
            (r#"waybill_relay_lag_rows{sink="qdrant"}"#, 2.0),
            (r#"waybill_relay_lag_seconds{sink="qdrant"}"#, 0.1),
            (r#"waybill_relay_oldest_unconfirmed_age_seconds{sink="qdrant"}"#, 0.1),
        ])
        .await;
        relay.resume(ResumeRequest { sink, paused_by: String::new() }).await.unwrap();
        self.world.wait_until_equal().await;
    }

    async fn the_stores_drift(&mut self) {
        // Two rows that no relay hears of: one is said to be delivered, the other's next try is far off.
        let hidden = "
            ALTER TABLE entity DISABLE TRIGGER USER;
            INSERT INTO entity (id, project_id, type, canonical, aliases)
            SELECT derived_id(id, n), id, 't', n, '{}' FROM project, unnest(ARRAY['hidden', 'refused']) AS n WHERE name = 'p';
            ALTER TABLE entity ENABLE TRIGGER USER;
            INSERT INTO index_state (sink, kind, key, version)
            SELECT 'qdrant', 'entity', id, version FROM entity WHERE canonical = 'hidden';
            INSERT INTO outbox_retry (sink, lane, kind, key, project_id, attempts, next_at, error, error_class, first_failed_at)
            SELECT 'qdrant', 0, 'entity', id, project_id, 1, now() + interval '1 hour', 'e', 'unknown', now()
            FROM entity WHERE canonical = 'refused'";
        self.sql(hidden).await;
        let url = self.world.db.url.clone();
        let hold = "BEGIN; LOCK TABLE audit IN ACCESS SHARE MODE; SELECT txid_current(), pg_sleep(600)";
        let holder = tokio::spawn(async move { psql(&url, hold).await });
        self.expect(&[
            ("waybill_relay_retry_keys", 1.0),
            (r#"waybill_relay_verify_findings_total{kind="missing"}"#, 1.0),
            ("waybill_relay_verify_last_pass_timestamp_seconds", 1.7e9),
            ("waybill_postgres_vacuum_held_back_seconds", 2.0),
            ("waybill_postgres_dead_tuples", 1.0),
        ])
        .await;
        holder.abort();
        // Another relay takes some lanes, without having asked.
        let taken = "UPDATE outbox_cursor SET owner = gen_random_uuid(), epoch = epoch + 1, lease_until = now() + interval '1 second'
                     WHERE sink = 'qdrant' AND lane < 3";
        self.sql(taken).await;
        self.expect(&[(r#"waybill_relay_lanes_lost_total{sink="qdrant"}"#, 1.0)]).await;
    }

    async fn qdrant_hangs_and_dies(&mut self) {
        let mut watching = HealthClient::new(channel(self.world.ports.ingestion));
        let _watch = watching.watch(HealthCheckRequest::default()).await.unwrap();
        self.world.qdrant.signal(Signal::SIGSTOP).unwrap();
        self.put("p", "e", "Nobody answers the ferry when it calls.").await;
        self.expect(&[
            (r#"waybill_relay_in_flight_keys{sink="qdrant"}"#, 1.0),
            ("waybill_qdrant_calls_in_flight", 1.0),
            (r#"waybill_grpc_server_calls_in_flight{service="grpc.health.v1.Health"}"#, 1.0),
        ])
        .await;
        self.world.qdrant.kill9().await.unwrap();
        self.expect(&[
            (r#"waybill_relay_deliveries_total{class="transient",outcome="retried",sink="qdrant"}"#, 1.0),
            (r#"waybill_relay_breaker_state{sink="qdrant"}"#, 2.0),
            (r#"waybill_qdrant_call_duration_seconds_count{outcome="transient"}"#, 1.0),
        ])
        .await;
        eventually("relay and embedding both say that it is down", PATIENCE, async || {
            sum(&self.scrape().await, r#"waybill_component_up{component="qdrant"}"#) == 0.0
        })
        .await;
    }

    async fn the_model_fails(&mut self) {
        for number in 0..60 {
            self.put("r", &format!("f{number}"), &format!("Attempt {number} ends in failure, as the one before."))
                .await;
        }
        self.extract("r").await;
        self.expect(&[
            ("waybill_llm_breaker_state", 2.0),
            (r#"waybill_llm_requests{state="queued"}"#, 1.0),
            (r#"waybill_llm_requests_oldest_age_seconds{state="queued"}"#, 0.1),
        ])
        .await;
        let provider = r#"waybill_component_up{component="provider"}"#;
        eventually("that the model is left alone is said", PATIENCE, async || {
            // That of the embedding service is well.
            sum(&self.scrape().await, provider) == 1.0
        })
        .await;
        self.world.redis.flush().await.unwrap();
        self.expect(&[("waybill_llm_requests_orphaned_total", 1.0)]).await;
    }

    async fn the_relay_is_another(&mut self) {
        self.world.kill_relay().await;
        self.admins[0] = admin_of(&self.world.relay).await;
        self.expect(&[
            (r#"waybill_relay_dead_letters_total{sink="llm"}"#, 1.0),
            (r#"waybill_relay_verify_findings_total{kind="missing"}"#, 1.0),
        ])
        .await;
    }
}

fn channel(port: u16) -> Channel {
    waybill_runtime::grpc::channel(&format!("http://127.0.0.1:{port}")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_is_seen_in_the_metric_that_speaks_of_it() {
    let llm = LlmServer::start(mood).await;
    let mut watched = Watched::start(&llm).await;
    watched.everything_is_delivered().await;
    watched.the_model_is_asked().await;
    watched.delivery_is_paused().await;
    watched.the_stores_drift().await;
    watched.qdrant_hangs_and_dies().await;
    watched.the_model_fails().await;
    watched.the_relay_is_another().await;
    assert!(watched.still.is_empty(), "these stood still:\n{}", watched.still.join("\n"));
}
