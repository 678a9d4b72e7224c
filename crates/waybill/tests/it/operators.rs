//! What operators do to a relay that is a process of its own: pausing, draining, and having
//! delivered again what was given up.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use uuid::Uuid;
use waybill_api::{
    extraction::v1::JobState,
    relay::v1::{
        DeadLetterFilter, DisposeDeadLettersRequest, DrainRequest, DrainResponse, GetStatusRequest, ResumeRequest,
        SinkStatus,
    },
};
use waybill_domain::TextHash;
use waybill_testkit::{eventually, psql};
use waybill_vectors::DEFAULT_ALIAS;

use crate::{
    extraction::{Library, settings},
    llm_server::{LlmServer, Mood},
    program::{Ran, assert_has},
    world::{PATIENCE, World, write_corpus},
};

/// Some 120 chunks.
const DOCUMENTS: usize = 30;

async fn import(world: &World, seed: u64) {
    let folder = world.dir.path().join("corpus");
    write_corpus(&folder, seed, DOCUMENTS);
    let mut import = world.import(&folder);
    assert!(import.wait(PATIENCE).await.unwrap().success(), "{:?}", import.output());
}

async fn status(world: &World, sink: &str) -> Option<(SinkStatus, String)> {
    let answer = world.relay_client().get_status(GetStatusRequest { with_lanes: false }).await.ok()?.into_inner();
    Some((answer.sinks.into_iter().find(|status| status.sink == sink)?, answer.instance))
}

fn object(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:#?}"))
}

fn objects(ran: &Ran) -> Vec<Value> {
    ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The dead letters, once there are `count` of them.
async fn letters(world: &World, count: usize) -> Vec<Value> {
    let mut letters = Vec::new();
    eventually(&format!("there are {count} dead letters"), PATIENCE, async || {
        letters = objects(&world.run(&["dlq", "ls", "--json", "-n", "10000"]).await.expect_code(0));
        letters.len() == count
    })
    .await;
    letters
}

async fn number(world: &World, sql: &str) -> usize {
    psql(&world.db.url, &format!("COPY ({sql}) TO STDOUT")).await.unwrap().trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_survives_the_relay_and_a_drain_says_so() {
    let mut world = World::start().await;
    let paused = ["relay", "pause", "qdrant", "--reason", "moving house", "--by", "ada"];
    let first = world.run(&paused).await.expect_code(0);
    assert_has(&first.stdout, &["qdrant is paused", "waybill relay resume qdrant"]);
    world.relay.line("paused: nothing is delivered", PATIENCE).await.unwrap();
    let again = world.run(&["relay", "pause", "qdrant", "--reason", "x", "--json"]).await.expect_code(0);
    assert_eq!(object(&again)["changed"], false, "{again:?}");
    assert_eq!(object(&again)["pause"]["paused_by"], "ada", "the first keeps it: {again:?}");

    import(&world, 1).await;
    world.kill_relay().await;
    eventually("the new relay holds the lanes and could deliver", PATIENCE, async || {
        status(&world, "qdrant").await.is_some_and(|(status, instance)| {
            status.owners.iter().any(|owner| owner.instance == instance && owner.lane_count == 64)
        })
    })
    .await;
    let rows = world.rows().await.len();
    let stuck = world.run(&["relay", "drain", "qdrant", "--timeout", "2s", "--json"]).await.expect_code(1);
    assert_has(&stuck.stderr, &["qdrant is paused by ada", "moving house", "waybill relay resume qdrant"]);
    let left = object(&stuck);
    assert_eq!((&left["drained"], &left["lag_rows"]), (&false.into(), &rows.into()), "{left}");
    assert_eq!(left["pause"]["reason"], "moving house");
    assert_eq!((world.points().await.len(), world.confirmed().await), (0, 0), "nothing was delivered");
    let shown = world.run(&["status"]).await.expect_code(0);
    assert_has(&shown.stdout, &["RETRIES", "DEAD", "paused by ada", "(moving house)"]);
    let shown = object(&world.run(&["status", "--json"]).await.expect_code(0));
    let sinks = shown["sinks"].as_array().unwrap();
    let of = |name: &str| sinks.iter().find(|sink| sink["sink"] == name).unwrap();
    assert_eq!(of("qdrant")["pause"]["paused_by"], "ada", "{shown}");
    assert_eq!((&of("llm")["pause"], &of("llm")["breaker"]), (&Value::Null, &"closed".into()), "{shown}");

    // The other sink is not held up, and drains.
    let other = world.run(&["relay", "drain", "llm", "--timeout", "1m"]).await.expect_code(0);
    assert_has(&other.stdout, &["llm drained: 0 rows"]);

    // A drain that is under way sees it through.
    let request = DrainRequest { sink: "qdrant".to_owned(), ..DrainRequest::default() };
    let mut stream = world.relay_client().drain(request).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    assert_eq!((first.done, first.drained, first.lag_rows), (false, false, rows.try_into().unwrap()));
    assert_eq!(first.pause.unwrap().paused_by, "ada");
    world.relay_client().resume(ResumeRequest { sink: "qdrant".to_owned(), ..ResumeRequest::default() }).await.unwrap();
    let mut messages: Vec<DrainResponse> = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        messages.push(message);
    }
    let last = messages.pop().unwrap();
    assert_eq!((last.done, last.drained, last.lag_rows, last.pause), (true, true, 0, None));
    assert!(messages.iter().all(|message| !message.done && !message.drained), "{messages:?}");
    world.wait_until_equal().await;
    let none = world.run(&["relay", "resume", "qdrant"]).await.expect_code(0);
    assert_has(&none.stdout, &["qdrant was not paused"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_up_is_listed_redriven_cleared_and_discarded() {
    let world = World::start().await;
    import(&world, 2).await;
    world.wait_until_equal().await;
    let none = world.run(&["dlq", "ls"]).await.expect_code(0);
    assert_has(&none.stderr, &["no dead letters"]);

    // Written past the ingestion service: no text of this length is embedded, ever.
    let key = *world.rows().await.keys().next().unwrap();
    let long = format!("UPDATE chunk SET text = repeat('long ', 20000), text_hash = sha256('long') WHERE id = '{key}'");
    psql(&world.db.url, &long).await.unwrap();
    let letter = letters(&world, 1).await.remove(0);
    assert_eq!((&letter["key"], &letter["error_class"]), (&key.to_string().into(), &"permanent".into()), "{letter}");
    assert_eq!((&letter["project"], &letter["attempts"]), (&"p".into(), &1.into()), "{letter}");
    assert_has(letter["error"].as_str().unwrap(), &["65536"]);
    let id = letter["id"].as_str().unwrap();
    let table = world.run(&["dlq", "ls", "--class", "permanent", "--since", "1h"]).await.expect_code(0);
    assert_has(&table.stdout, &["LAST FAILURE", id, "chunk", "p: ", "65536"]);
    let whole = world.run(&["dlq", "show", id]).await.expect_code(0);
    assert_has(&whole.stdout, &[id, &key.to_string(), "65536", "first failure"]);
    for other in [["--sink", "llm"], ["--until", "1h"], ["--text", "no such error"], ["--kind", "entity"]] {
        let other = world.run(&[["dlq", "ls"], other].concat()).await.expect_code(0);
        assert!(other.stdout.is_empty(), "{other:?}");
        assert_has(&other.stderr, &["no dead letters like that"]);
    }

    // What is not mended is given up again, under another id.
    let redriven = world.run(&["dlq", "redrive", id, "--json"]).await.expect_code(0);
    assert_eq!(object(&redriven)["count"], 1);
    let again = letters(&world, 1).await.remove(0);
    assert_eq!(again["key"], letter["key"]);
    assert_ne!(again["id"], letter["id"]);
    let gone = world.run(&["dlq", "show", id]).await.expect_code(1);
    assert_has(&gone.stderr, &["no dead letter", "waybill dlq ls"]);

    // Mended by a change of the key: the later success clears the letter.
    let short = format!("UPDATE chunk SET text = 'short', text_hash = sha256('short') WHERE id = '{key}'");
    psql(&world.db.url, &short).await.unwrap();
    letters(&world, 0).await;
    world.wait_until_equal().await;

    // The relay believes that Qdrant shows this one: a redrive delivers it all the same.
    world.vectors.delete(DEFAULT_ALIAS, &[key], i64::MAX, Duration::from_secs(10)).await.unwrap();
    assert!(!world.points().await.contains_key(&key));
    insert_letters(&world, "lost", &format!("SELECT '{key}'::uuid")).await;
    let redriven = world.run(&["dlq", "redrive", "--text", "LOST", "--sink", "qdrant"]).await.expect_code(0);
    assert_has(&redriven.stdout, &["1 redriven"]);
    world.wait_until_equal().await;

    two_at_once(&world).await;

    insert_letters(&world, "bulk", "SELECT gen_random_uuid() FROM generate_series(1, 3)").await;
    let wrong = world.run(&["dlq", "discard"]).await.expect_code(2);
    assert_has(&wrong.stderr, &["which dead letters?", "--all"]);
    let wrong = world.run(&["dlq", "discard", "--text", "bulk"]).await.expect_code(2);
    assert_has(&wrong.stderr, &["discard 3 dead letters?", "--yes"]);
    assert_eq!(letters(&world, 3).await.len(), 3, "nothing was discarded");
    let kept = world.run(&["dlq", "discard", "--text", "other", "--yes"]).await.expect_code(0);
    assert_has(&kept.stdout, &["0 discarded"]);
    let discarded = world.run(&["dlq", "discard", "--all", "--yes"]).await.expect_code(0);
    assert_has(&discarded.stdout, &["3 discarded"]);
    letters(&world, 0).await;
}

/// Inserts letters of chunks with this error.
async fn insert_letters(world: &World, error: &str, keys: &str) {
    let sql = format!(
        "INSERT INTO dead_letter (sink, kind, key, project_id, error, error_class, attempts)
         SELECT 'qdrant', 'chunk', key, (SELECT id FROM project WHERE name = 'p'), '{error}', 'unknown', 10
         FROM ({keys}) AS k (key)"
    );
    psql(&world.db.url, &sql).await.unwrap();
}

/// More letters than are taken in one step, redriven by two at once: each goes to one of them.
async fn two_at_once(world: &World) {
    insert_letters(world, "bulk", "SELECT gen_random_uuid() FROM generate_series(1, 1700)").await;
    // For keys without rows: what a redrive queues is counted in the log.
    let queued = "SELECT count(*) FROM outbox WHERE key NOT IN (SELECT id FROM chunk)";
    let before = number(world, queued).await;
    let redrive = async || {
        let filter = DeadLetterFilter { text: "bulk".to_owned(), ..DeadLetterFilter::default() };
        let request = DisposeDeadLettersRequest { filter: Some(filter), ..DisposeDeadLettersRequest::default() };
        let mut stream = world.relay_client().redrive_dead_letters(request).await.unwrap().into_inner();
        let mut counts = Vec::new();
        while let Some(message) = stream.message().await.unwrap() {
            counts.push((message.count, message.done));
        }
        let last = *counts.last().unwrap();
        assert!(last.1 && counts.is_sorted() && counts.iter().filter(|count| count.1).count() == 1, "{counts:?}");
        last.0
    };
    let (first, second) = tokio::join!(redrive(), redrive());
    assert_eq!(first + second, 1_700, "{first} and {second}");
    assert_eq!(number(world, queued).await - before, 1_700, "each is queued once");
    letters(world, 0).await;
    world.run(&["relay", "drain", "qdrant"]).await.expect_code(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_was_given_up_is_sent_again_and_answered() {
    let refuses = Arc::new(AtomicBool::new(true));
    let server = LlmServer::start({
        let refuses = Arc::clone(&refuses);
        move |passage, _| match TextHash::of(passage).as_bytes()[0] {
            byte if byte.is_multiple_of(16) && refuses.load(Ordering::SeqCst) => Mood::Refuse,
            _ => Mood::Answer(Duration::from_millis(5)),
        }
    })
    .await;
    // The sweep that finds lost messages would put right what a redrive got wrong.
    let settings = settings(&server.url).replace("sweep_every_ms = 200", "sweep_every_ms = 3600000");
    let library = Library::open_with(&settings, 3).await;
    let id = library.start().await;
    let job = library.wait(&id).await;
    let dead = usize::try_from(job.dead_count).unwrap();
    assert!(dead > 0 && job.done_count > 0, "{job:?}");
    let letters = letters(&library.world, dead).await;
    for letter in &letters {
        let what = (&letter["sink"], &letter["kind"], &letter["error_class"], &letter["model"]);
        assert_eq!(what, (&"llm".into(), &"llm_request".into(), &"permanent".into(), &"test".into()), "{letter}");
    }

    refuses.store(false, Ordering::SeqCst);
    let calls = server.calls();
    let redriven = library.world.run(&["dlq", "redrive", "--sink", "llm", "--json"]).await.expect_code(0);
    assert_eq!(object(&redriven)["count"], dead);
    eventually("each request is done", PATIENCE, async || {
        library.job(&id).await.done_count == job.done_count + job.dead_count
    })
    .await;
    assert_eq!(server.calls(), calls + dead, "each is asked for once more, and no other");
    let after = library.job(&id).await;
    assert_eq!((after.state(), after.dead_count), (JobState::Done, 0), "{after:?}");
    self::letters(&library.world, 0).await;
    library.world.wait_until_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_is_none_is_refused_and_one_that_is_unknown_is_passed_over() {
    let world = World::start().await;
    let wrong = world.run(&["dlq", "redrive", "nonsense"]).await.expect_code(1);
    assert_has(&wrong.stderr, &["ids[0]", "nonsense"]);
    let unknown = Uuid::from_u128(7).to_string();
    let none = world.run(&["dlq", "redrive", &unknown]).await.expect_code(0);
    assert_has(&none.stdout, &["0 redriven"]);
    assert_has(&none.stderr, &["waybill dlq ls"]);
    let wrong = world.run(&["dlq", "ls", "--since", "yesterday"]).await.expect_code(2);
    assert_has(&wrong.stderr, &["2h", "2026-"]);
    let wrong = world.run(&["relay", "drain", "qdrant", "--timeout", "25h"]).await.expect_code(1);
    assert_has(&wrong.stderr, &["timeout", "24 hours"]);
    crate::operators_bad_input::check(&mut world.relay_client()).await;
}
