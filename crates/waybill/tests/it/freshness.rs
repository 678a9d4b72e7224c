//! Reading one's own writes, and writes that are there wholly or not at all, with every part of
//! the system in a process of its own.

use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::task::JoinHandle;
use tonic::{Code, Request, Status, transport::Channel};
use tonic_types::StatusExt;
use waybill_api::{
    embedding::v1::{SearchMode, SearchRequest, SearchResponse, search_service_client::SearchServiceClient},
    ingestion::v1::{
        Acknowledge, CreateProjectRequest, DeleteSourceRequest, GetSourceRequest, ListSourcesRequest, MediaType,
        PutSourceRequest, PutSourceResponse, ingestion_service_client::IngestionServiceClient,
    },
};
use waybill_domain::CrashPoint;
use waybill_testkit::{Program, corpus, eventually, psql};
use waybill_vectors::DEFAULT_ALIAS;

use crate::world::{PATIENCE, World, serve};

/// Room for a relay that was stopped to take its lanes back, on a busy machine.
const SETTINGS: &str = "
                [ingestion]
                take_back_wait_ms = 120000
";

/// What is looked for: no other text has this word.
const NEEDLE: &str = "quetzalcoatlus";

fn channel(port: u16) -> Channel {
    waybill_runtime::grpc::channel(&format!("http://127.0.0.1:{port}")).unwrap()
}

fn ingestion(world: &World) -> IngestionServiceClient<Channel> {
    IngestionServiceClient::new(channel(world.ports.ingestion))
}

async fn start() -> World {
    let world = World::start_with(SETTINGS).await;
    ingestion(&world).create_project(CreateProjectRequest { name: "p".to_owned() }).await.unwrap();
    world
}

fn text(uri: &str, body: &str) -> PutSourceRequest {
    PutSourceRequest {
        project: "p".to_owned(),
        uri: uri.to_owned(),
        media_type: MediaType::Text.into(),
        body: body.into(),
        ..PutSourceRequest::default()
    }
}

fn asking(mode: Acknowledge, timeout: Duration, request: PutSourceRequest) -> PutSourceRequest {
    PutSourceRequest { acknowledge: mode.into(), index_timeout: Some(timeout.try_into().unwrap()), ..request }
}

async fn put(world: &World, request: PutSourceRequest) -> Result<PutSourceResponse, Status> {
    ingestion(world).put_source(request).await.map(tonic::Response::into_inner)
}

fn put_in_background(world: &World, request: PutSourceRequest) -> JoinHandle<Result<PutSourceResponse, Status>> {
    let mut client = ingestion(world);
    tokio::spawn(async move { client.put_source(request).await.map(tonic::Response::into_inner) })
}

async fn search(world: &World, tokens: &[&str], timeout: Duration) -> Result<SearchResponse, Status> {
    let mut request = Request::new(SearchRequest {
        project: "p".to_owned(),
        query: NEEDLE.to_owned(),
        mode: SearchMode::Lexical.into(),
        at_least_as_fresh: tokens.iter().map(|&token| token.to_owned()).collect(),
        ..SearchRequest::default()
    });
    request.set_timeout(timeout);
    SearchServiceClient::new(channel(world.ports.embedding)).search(request).await.map(tonic::Response::into_inner)
}

/// The texts that a search finds.
async fn found(world: &World, tokens: &[&str]) -> Vec<String> {
    search(world, tokens, PATIENCE).await.unwrap().hits.into_iter().map(|hit| hit.text).collect()
}

/// Rows of a table.
async fn count(world: &World, table: &str) -> usize {
    psql(&world.db.url, &format!("COPY (SELECT count(*) FROM {table}) TO STDOUT"))
        .await
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

/// A text of some thousand chunks: enough that a kill comes in the middle.
fn long() -> String {
    corpus::documents(11, 600).map(|document| document.body).collect::<Vec<_>>().join("\n\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_with_a_token_sees_its_write() {
    let world = start().await;
    // Held to the end: somebody else's transaction, with an xid, that has written to the outbox.
    psql(&world.db.url, "CREATE TABLE go (n int); INSERT INTO project (id, name) VALUES (gen_random_uuid(), 'other')")
        .await
        .unwrap();
    let open = tokio::spawn({
        let url = world.db.url.clone();
        let sql = "BEGIN; INSERT INTO outbox (sink, lane, kind, key, project_id)
                   SELECT 'qdrant', 0, 'chunk', gen_random_uuid(), gen_random_uuid();
                   DO $$ BEGIN WHILE NOT EXISTS (SELECT FROM go) LOOP PERFORM pg_sleep(0.01); END LOOP; END $$; COMMIT";
        async move { psql(&url, sql).await }
    });
    let running = "COPY (SELECT count(*) FROM pg_locks WHERE relation = 'go'::regclass AND granted) TO STDOUT";
    eventually("the transaction is open", PATIENCE, async || psql(&world.db.url, running).await.unwrap().trim() == "1")
        .await;

    for n in 0..10 {
        let body = format!("The {NEEDLE} number {n}.");
        let put = put(&world, text("a", &body)).await.unwrap();
        assert_eq!(found(&world, &[&put.freshness_token]).await, [body], "at once, and nothing older");
    }
    let last = put(&world, text("b", &format!("Another {NEEDLE}."))).await.unwrap().freshness_token;
    let endpoint = format!("http://127.0.0.1:{}", world.ports.embedding);
    let args = ["search", NEEDLE, "--project", "p", "--endpoint", &endpoint, "--json", "--at-least-as-fresh", &last];
    let mut command = Program::start(env!("CARGO_BIN_EXE_waybill"), args, [("NO_COLOR", "1")]).unwrap();
    assert!(command.wait(PATIENCE).await.unwrap().success());
    assert!(command.output().join("\n").contains("Another"), "{:?}", command.output());

    let delete = DeleteSourceRequest { project: "p".to_owned(), uri: "b".to_owned(), if_version: None };
    let deleted = ingestion(&world).delete_source(delete).await.unwrap().into_inner();
    assert_eq!(found(&world, &[&deleted.freshness_token]).await, [format!("The {NEEDLE} number 9.")]);
    let indexed = asking(Acknowledge::Indexed, PATIENCE, text("c", &format!("One more {NEEDLE}.")));
    let indexed = put(&world, indexed).await.unwrap();
    assert_eq!(found(&world, &[]).await.len(), 2, "it is indexed, so no token is needed");

    // The relay stands still.
    world.relay.signal(Signal::SIGSTOP).unwrap();
    let late = put(&world, text("a", &format!("The {NEEDLE}, later."))).await.unwrap().freshness_token;
    let refused = search(&world, &[&late], Duration::from_secs(3)).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::DeadlineExceeded, "NOT_FRESH_IN_TIME"));
    assert!(refused.message().contains("has not confirmed \"a\""), "{}", refused.message());
    assert_eq!(
        found(&world, &[&indexed.freshness_token]).await,
        [format!("One more {NEEDLE}.")],
        "who needs less gets it"
    );
    world.relay.signal(Signal::SIGCONT).unwrap();
    assert!(found(&world, &[&late]).await.contains(&format!("The {NEEDLE}, later.")));

    psql(&world.db.url, "INSERT INTO go VALUES (1)").await.unwrap();
    open.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn all_or_nothing_is_there_wholly_or_leaves_nothing() {
    let mut world = start().await;
    let plain = put(&world, text("plain", "Something else.")).await.unwrap();
    found(&world, &[&plain.freshness_token]).await;
    let before = world.points().await;
    assert_eq!(before, world.rows().await);

    // Half of it is in the vector store when the model goes away.
    let body = format!("{NEEDLE}.\n\n{}", long());
    let request = asking(Acknowledge::AllOrNothing, Duration::from_secs(20), text("long", &body));
    let aborted = put_in_background(&world, request.clone());
    eventually("points are written", PATIENCE, async || world.points().await.len() > before.len() + 64).await;
    world.embedding.kill9().await.unwrap();
    let written = world.points().await.len();
    assert!(written < world.rows().await.len(), "the kill came in the middle");

    // Nobody sees it.
    let get = GetSourceRequest { project: "p".to_owned(), uri: "long".to_owned(), with_text: false };
    assert_eq!(ingestion(&world).get_source(get.clone()).await.unwrap_err().code(), Code::NotFound);
    let list = ListSourcesRequest { project: "p".to_owned(), ..ListSourcesRequest::default() };
    assert_eq!(ingestion(&world).list_sources(list).await.unwrap().into_inner().sources.len(), 1);
    assert_eq!(reason(&put(&world, text("long", "Other.")).await.unwrap_err()), "SOURCE_PROVISIONAL");

    eventually("it is taken back in Postgres", PATIENCE, async || count(&world, "source").await == 1).await;
    assert!(!aborted.is_finished(), "its points are still there");
    world.embedding = serve(&world.config(), "embedding").await;
    let aborted = aborted.await.unwrap().unwrap_err();
    assert_eq!((aborted.code(), reason(&aborted).as_str()), (Code::Aborted, "TAKEN_BACK"), "{aborted:?}");
    // At once: that is what ABORTED says.
    assert_eq!(world.points().await, before);
    assert_eq!(world.rows().await, before);
    assert_eq!(count(&world, "chunk").await, before.len());

    // Now it has time.
    let request = asking(Acknowledge::AllOrNothing, PATIENCE, request);
    let done = put_in_background(&world, request);
    eventually("points are written", PATIENCE, async || world.points().await.len() > before.len() + 64).await;
    if !done.is_finished() {
        assert_eq!(found(&world, &[]).await, [""; 0], "points are there, and no search shows them");
    }
    let done = done.await.unwrap().unwrap();
    assert_eq!(world.points().await, world.rows().await, "all of it is confirmed when it answers");
    assert!(!found(&world, &[]).await.is_empty());
    assert_eq!(ingestion(&world).get_source(get).await.unwrap().into_inner().version, done.version);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_whose_process_was_killed_is_taken_back_after_a_restart() {
    let mut world = start().await;
    let plain = put(&world, text("plain", "Something else.")).await.unwrap();
    found(&world, &[&plain.freshness_token]).await;
    let before = world.points().await;

    let request = asking(Acknowledge::AllOrNothing, Duration::from_secs(10), text("long", &long()));
    let request = PutSourceRequest { request_id: "r1".to_owned(), ..request };
    let put = put_in_background(&world, request.clone());
    eventually("points are written", PATIENCE, async || world.points().await.len() > before.len() + 64).await;
    world.ingestion.kill9().await.unwrap();
    assert!(put.await.unwrap().is_err());
    let waiting = count(&world, "source WHERE provisional_until IS NOT NULL").await;
    assert_eq!(waiting, 1, "nobody is left who would confirm it");

    world.ingestion = serve(&world.config(), "ingestion").await;
    world.ingestion.line("took provisional sources back", PATIENCE).await.unwrap();
    assert_eq!((count(&world, "source").await, count(&world, "put_request").await), (1, 0));
    world.wait_until_equal().await;
    assert_eq!(world.points().await, before);

    let again = self::put(&world, asking(Acknowledge::AllOrNothing, PATIENCE, request)).await.unwrap();
    assert_eq!(world.points().await, world.rows().await, "the retry does it anew");
    assert!(again.chunks_added > 64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_while_it_takes_back_leaves_nothing() {
    let mut world = start().await;
    let plain = put(&world, text("plain", "Something else.")).await.unwrap();
    found(&world, &[&plain.freshness_token]).await;
    let before = world.points().await;

    // The vector store shows a part when the time is up, and the process dies when Postgres has
    // forgotten all of it.
    world.ingestion.kill9().await.unwrap();
    world.ingestion = world.serve_with_crash("ingestion", CrashPoint::Compensation).await;
    let request = asking(Acknowledge::AllOrNothing, Duration::from_secs(10), text("long", &long()));
    let request = PutSourceRequest { request_id: "r1".to_owned(), ..request };
    let put = put_in_background(&world, request.clone());
    eventually("points are written", PATIENCE, async || world.points().await.len() > before.len() + 64).await;
    world.relay.signal(Signal::SIGSTOP).unwrap();
    let ended = world.ingestion.wait(PATIENCE).await.unwrap();
    assert_eq!(ended.signal(), Some(Signal::SIGABRT as i32), "{:?}", world.ingestion.output());
    assert!(put.await.unwrap().is_err());
    assert_eq!(world.rows().await, before);
    assert!(world.points().await.len() > before.len(), "points are left");

    // The rest is in the outbox, and nobody has to be told.
    world.relay.signal(Signal::SIGCONT).unwrap();
    world.wait_until_equal().await;
    assert_eq!(world.points().await, before);
    world.ingestion = serve(&world.config(), "ingestion").await;
    let again = self::put(&world, asking(Acknowledge::AllOrNothing, PATIENCE, request)).await.unwrap();
    assert_eq!(world.points().await, world.rows().await, "the retry does it anew");
    assert!(again.chunks_added > 64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_not_answered_from_a_collection_that_was_made_anew() {
    let nothing_is_looked_for = "
                [relay.scrub]
                period_s = 0
                check_s = 0
";
    let world = World::start_with(nothing_is_looked_for).await;
    ingestion(&world).create_project(CreateProjectRequest { name: "p".to_owned() }).await.unwrap();
    let (old, new) = (format!("An old {NEEDLE}."), format!("A new {NEEDLE}."));
    let old_put = put(&world, text("old", &old)).await.unwrap();
    assert_eq!(found(&world, &[&old_put.freshness_token]).await, [old.as_str()]);

    let live = world.vectors.alias_target(DEFAULT_ALIAS).await.unwrap().unwrap();
    world.vectors.delete_collection(&live).await.unwrap();
    let gone = search(&world, &[&old_put.freshness_token], PATIENCE).await.unwrap_err();
    assert_eq!((gone.code(), reason(&gone).as_str()), (Code::Unavailable, "COLLECTION_LOST"));

    // The next delivery makes a collection, with nothing else in it.
    let new_put = put(&world, text("new", &new)).await.unwrap();
    assert!(found(&world, &[&new_put.freshness_token]).await.contains(&new));
    let both = found(&world, &[&old_put.freshness_token, &new_put.freshness_token]).await;
    assert!(both.contains(&old) && both.contains(&new), "{both:?}");
}
