//! The whole system under torture. For development only.
//!
//! Every service and every store runs as a process of its own, two relays among them, with a
//! proxy on each way between two. Clients write, delete and search, and know what must be
//! there; meanwhile a schedule made from a seed kills, freezes, cuts and wipes. At the end
//! Postgres, Qdrant and Redis are compared key by key.
//!
//! What a seed fixes is the schedule and what clients choose. Processes and networks keep
//! their own time, so a replay meets the same faults, and not always in the same instant.

mod calls;
mod clients;
mod compare;
mod faults;
mod history;
mod oracle;
mod process;
mod report;
mod strike;
mod transaction;
mod warden;
mod watch;
mod world;

use std::{fs, sync::Arc, time::Duration};

use anyhow::Context as _;
use serde_json::json;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tonic::Request;
use waybill_api::{
    embedding::v1::SearchMode,
    extraction::v1::{StartExtractionRequest, extraction_service_client::ExtractionServiceClient},
    ingestion::v1::{CreateProjectRequest, ingestion_service_client::IngestionServiceClient},
};
use waybill_runtime::grpc::channel;
use waybill_testkit::psql;

pub use compare::{Comparison, Fault as Broken, Finding};
pub use faults::{Action, Fault, Link, Menu, Process, schedule};
pub use report::Report;
pub use world::Place;

use crate::{
    calls::{Answer, Calls},
    clients::{CLIENTS, Client, Shared},
    compare::compare,
    history::History,
    oracle::Oracle,
    strike::{Striker, Wipes},
    watch::Deliveries,
    world::{World, fresh_dir},
};

/// The project that everything is in.
pub(crate) const PROJECT: &str = "torture";

/// Sources whose uris begin so are read for facts.
pub(crate) const FACTS_PREFIX: &str = "facts/";

/// How long after the last fault the stores may differ.
const EQUAL_WITHIN: Duration = Duration::from_secs(30);

/// Between two comparisons.
const COMPARE_EVERY: Duration = Duration::from_millis(500);

/// Once equal, the stores must stay so: what is still on its way has arrived by then.
const STAYS_EQUAL: Duration = Duration::from_secs(3);

/// Keys that are waited for, of each comparison: the history shows the first.
const WAITED_FOR: usize = 3;

/// How long the clients' last searches may take in all.
const LAST_SEARCHES: Duration = Duration::from_secs(60);

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// What the schedule and the clients' choices are made from.
    pub seed: u64,
    /// How long faults and clients go on.
    pub length: Duration,
    /// Whether the live collection is wiped now and then, and mended by the relays' own
    /// comparisons. Without, these comparisons are off, and nothing but delivery is relied on.
    pub wipes: bool,
    /// Where everything is.
    pub place: Place,
    /// What to type to have it again, for the report.
    pub command: String,
}

/// Runs it, until it is over or `stop`, and says what came of it. A promise that was broken is
/// in the report, not an error.
///
/// # Errors
/// If something can't be started, or a fault can't be done.
pub async fn run(options: &Options, stop: CancellationToken) -> anyhow::Result<Report> {
    fresh_dir(&options.place.dir)?;
    let history = Arc::new(History::begin(&options.place.dir.join("history.jsonl"))?);
    let world = Arc::new(World::start(&options.place, options.wipes, Arc::clone(&history)).await?);
    prepare(&world).await?;
    let menu = Menu { wipes: options.wipes, qdrant_is_ours: options.place.qdrant.is_none() };
    let schedule = schedule(options.seed, options.length, menu);
    history.note("torture", "begins", json!({ "seed": options.seed, "faults": schedule.len() }));

    let (oracle, wipes, deliveries) = (Arc::new(Oracle::default()), Arc::new(Wipes::default()), Arc::default());
    let clients_stop = CancellationToken::new();
    let watch_stop = CancellationToken::new();
    let mut watching = JoinSet::new();
    watching.spawn(watch::relays(Arc::clone(&world), Arc::clone(&deliveries), watch_stop.clone()));
    watching.spawn(watch::progress(Arc::clone(&history), options.length, watch_stop.clone()));
    if options.wipes {
        watching.spawn(watch::scrubs(Arc::clone(&world), Arc::clone(&wipes), Arc::clone(&history), watch_stop.clone()));
    }
    let watched = tokio::spawn({
        let (world, stopping) = (Arc::clone(&world), watch_stop.clone());
        async move { world.watch(stopping).await }
    });
    let shared = Shared {
        seed: options.seed,
        world: Arc::clone(&world),
        oracle: Arc::clone(&oracle),
        history: Arc::clone(&history),
        stopping: clients_stop.clone(),
    };
    let mut clients = JoinSet::new();
    for index in 0..CLIENTS {
        let calls = Calls::connect(&world.ingestion_url, &world.search_url)?;
        clients.spawn(Client::new(index, calls, shared.clone()).run());
    }

    let begun = Instant::now();
    let striker = Arc::new(Striker {
        world: Arc::clone(&world),
        oracle: Arc::clone(&oracle),
        history: Arc::clone(&history),
        wipes: Arc::clone(&wipes),
        heal: CancellationToken::new(),
    });
    striker.run(schedule, options.length, stop.clone()).await?;
    let length = begun.elapsed();
    let healed = Instant::now();
    history.note("torture", "healed", json!({}));
    clients_stop.cancel();
    while let Some(ended) = clients.join_next().await {
        ended?;
    }
    eprintln!("[{:5.0} s] no fault is left, comparing the stores", history.now().as_secs_f64());

    let (comparison, equal_after) = compare_until_equal(&world, &oracle, &deliveries, &history, healed).await;
    for finding in &comparison.findings {
        history.note("comparison", "differs", json!(finding));
    }
    last_searches(&world, &oracle, &history).await?;
    watch_stop.cancel();
    while let Some(ended) = watching.join_next().await {
        ended?;
    }
    watched.await??;
    let outbox_rows = outbox_rows(&world).await?;
    world.end().await?;
    history.flush()?;

    let report = Report {
        command: options.command.clone(),
        seed: options.seed,
        length,
        ended_early: stop.is_cancelled(),
        faults: history.counts("fault: "),
        operations: operations(&history),
        outbox_rows,
        confirmed: deliveries.by_sink(),
        equal_after,
        equal_within: EQUAL_WITHIN,
        comparison,
        violations: history.violations(),
        violation_count: history.violation_count(),
        history: history.path().to_owned(),
    };
    let path = options.place.dir.join("report.md");
    fs::write(&path, report.markdown()).with_context(|| format!("write {}", path.display()))?;
    Ok(report)
}

/// Makes the project, and has facts read in a part of it.
async fn prepare(world: &World) -> anyhow::Result<()> {
    let mut ingestion = IngestionServiceClient::new(channel(&world.ingestion_url)?);
    ingestion.create_project(CreateProjectRequest { name: PROJECT.to_owned() }).await.context("create the project")?;
    let mut extraction = ExtractionServiceClient::new(channel(&world.extraction_url)?);
    let request = StartExtractionRequest {
        project: PROJECT.to_owned(),
        uri_prefix: FACTS_PREFIX.to_owned(),
        follow: true,
        ..StartExtractionRequest::default()
    };
    extraction.start_extraction(Request::new(request)).await.context("start the extraction")?;
    Ok(())
}

/// Compares until nothing differs and goes on not to, or the time is up. Returns the last
/// comparison, and how long after `healed` the stores were equal.
async fn compare_until_equal(
    world: &World,
    oracle: &Oracle,
    deliveries: &Deliveries,
    history: &History,
    healed: Instant,
) -> (Comparison, Option<Duration>) {
    let mut equal_since: Option<Instant> = None;
    loop {
        let begun = Instant::now();
        let outcome = compare(world, oracle).await;
        // What a relay says of its backlog is part of it: a row that nobody delivers is work left.
        let idle = deliveries.ask(&world.relay_urls[0]).await;
        let is_idle = matches!(idle, Ok(true));
        let is_over = begun.duration_since(healed) > EQUAL_WITHIN;
        match outcome {
            Ok(comparison) if comparison.findings.is_empty() && is_idle => {
                let since = *equal_since.get_or_insert(begun);
                if begun.duration_since(since) >= STAYS_EQUAL {
                    return (comparison, Some(since.duration_since(healed)).filter(|after| *after <= EQUAL_WITHIN));
                }
            }
            Ok(comparison) => {
                let first: Vec<_> = comparison.findings.iter().take(WAITED_FOR).collect();
                let waits = json!({ "keys": comparison.findings.len(), "idle": format!("{idle:?}"), "first": first });
                history.note("comparison", "waits", waits);
                if is_over {
                    return (comparison, None);
                }
                if equal_since.take().is_some() {
                    eprintln!("the stores were equal, and {} keys differ again", comparison.findings.len());
                }
            }
            Err(error) if is_over => {
                eprintln!("the stores can't be compared: {error:#}");
                return (Comparison::default(), None);
            }
            Err(_) => equal_since = None,
        }
        sleep(COMPARE_EVERY).await;
    }
}

/// Searches for each source by its own word: it must be found, and nothing else by that word.
async fn last_searches(world: &World, oracle: &Oracle, history: &History) -> anyhow::Result<()> {
    let calls = Calls::connect(&world.ingestion_url, &world.search_url)?;
    let until = Instant::now() + LAST_SEARCHES;
    for (uri, content) in oracle.present() {
        let hits = loop {
            match calls.search(&content.word, SearchMode::Lexical).await {
                Answer::Clear(found) => break found.hits,
                _ if Instant::now() < until => sleep(COMPARE_EVERY).await,
                other => anyhow::bail!("the last search for {} was answered {other:?}", content.word),
            }
        };
        history.count("last searches");
        let found = hits.iter().any(|hit| hit.source_uri == uri && hit.text.contains(&content.word));
        let others = hits.iter().filter(|hit| hit.source_uri != uri && hit.text.contains(&content.word)).count();
        if !found || others > 0 {
            let text = format!("the last search for {} finds {uri}: {found}, and {others} other sources", content.word);
            history.violation("torture", text, json!({}));
        }
    }
    Ok(())
}

async fn outbox_rows(world: &World) -> anyhow::Result<u64> {
    // Rows are removed in time, and the sequence stays.
    let text = psql(&world.db_url, "SELECT last_value FROM outbox_seq").await?;
    text.trim().parse().context("read the outbox's sequence")
}

fn operations(history: &History) -> Vec<(String, u64)> {
    let is_own = |name: &String| name != "faults" && !name.starts_with("fault: ");
    history.counts("").into_iter().filter(|(name, _)| is_own(name)).collect()
}
