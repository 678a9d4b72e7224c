//! Facts found by a real language model, through the whole system. Run by
//! `cargo xtask test --llm`, which has a small one; its facts may be wrong, so what is
//! checked is what must hold of any model.
#![expect(clippy::unwrap_used, reason = "a helper of a test may panic like the test itself")]

#[expect(dead_code, reason = "made for the tests that kill its parts")]
#[path = "../it/world.rs"]
mod world;

use std::time::{Duration, Instant};

use waybill_llm_queue::{LlmQueue, QueueConfig};
use waybill_testkit::{Program, eventually, psql};

use crate::world::{PATIENCE, World, serve};

/// Twice what it takes on a machine that is busy with something else.
const LLM_PATIENCE: Duration = Duration::from_secs(1_800);

/// Short, so that each is one chunk and takes seconds.
const PASSAGES: [&str; 6] = [
    "Ada Lovelace was an English mathematician. She was born on 10 December 1815 in London.",
    "The Rhine rises in the Swiss Alps and flows into the North Sea. It is 1,233 kilometres long.",
    "Acme GmbH was founded in Zürich in 1999. Today it employs 400 people – most of them engineers.",
    "Water boils at 100 degrees Celsius at sea level. On Mount Everest it boils at about 71 degrees.",
    "Python was created by Guido van Rossum.\nVersion 1.0 was released in January 1994.",
    "東京は日本の首都です。人口は約1400万人です。",
];

/// Enough for every fact of these passages.
const FACTS_MAX: usize = 4;

/// Less than that takes: answers are cut off, most of them behind their first fact.
const FEW_TOKENS: u32 = 350;

fn settings(tokens: &str) -> String {
    let variable = |name: &str| {
        std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run this test by `cargo xtask test --llm`"))
    };
    format!(
        r#"
                [extraction]
                provider = "openai"
                concurrency_start = 1
                concurrency_max = 1
                attempts_max = 1
                [extraction.openai]
                base_url = "{}"
                model = "{}"
                timeout_ms = 300000
                facts_max = {FACTS_MAX}
                entities_per_fact_max = 3
                {tokens}
"#,
        variable("WAYBILL_TEST_LLM_URL"),
        variable("WAYBILL_TEST_LLM_MODEL"),
    )
}

async fn rows(world: &World, sql: &str) -> Vec<String> {
    psql(&world.db.url, sql).await.unwrap().lines().map(str::to_owned).collect()
}

async fn count(world: &World, sql: &str) -> usize {
    rows(world, sql).await[0].parse().unwrap()
}

/// Has the facts of all passages found, by a worker of its own, and checks what came of it.
async fn extract(world: &World, what: &str) {
    let worker = serve(&world.config(), "extraction").await;
    let endpoint = format!("http://127.0.0.1:{}", world.ports.extraction);
    let args = ["extract", "--project", "p", "--json", "--endpoint", &endpoint];
    let began = Instant::now();
    let mut extract = Program::start(env!("CARGO_BIN_EXE_waybill"), args, [("NO_COLOR", "1")]).unwrap();
    let status = extract.wait(LLM_PATIENCE).await.unwrap();
    let took = began.elapsed();
    // 1: some requests are dead. Which may be, if there is a reason.
    assert!(matches!(status.code(), Some(0 | 1)), "{:#?}", extract.output());

    let last = "(SELECT id FROM job ORDER BY created_at DESC LIMIT 1)";
    let of_job = format!("FROM llm_request r WHERE r.job_id = {last}");
    let total = count(world, &format!("SELECT count(*) {of_job}")).await;
    let done = count(world, &format!("SELECT count(*) {of_job} AND r.state = 'done'")).await;
    let reasons = rows(
        world,
        &format!("SELECT r.last_error_class, r.last_error {of_job} AND r.state = 'dead' AND r.last_error <> ''"),
    )
    .await;
    assert_eq!((total, done + reasons.len()), (PASSAGES.len(), total), "done, or dead with a reason: {reasons:#?}");
    let uncounted =
        format!("SELECT count(*) {of_job} AND r.state = 'done' AND least(prompt_tokens, completion_tokens) <= 0");
    assert_eq!(count(world, &uncounted).await, 0, "the tokens of every answer are counted");

    let facts = rows(
        world,
        "SELECT left(c.text, 30), e.type, e.statement, e.quote, e.quote_start, e.quote_end
           FROM extraction e JOIN chunk c ON c.id = e.chunk_id ORDER BY c.text, e.quote_start",
    )
    .await;
    let elsewhere = "SELECT count(*) FROM extraction e JOIN chunk c ON c.id = e.chunk_id
        WHERE substring(convert_to(c.text, 'UTF8') FROM e.quote_start + 1 FOR e.quote_end - e.quote_start)
              <> convert_to(e.quote, 'UTF8')";
    assert_eq!(
        count(world, elsewhere).await,
        0,
        "every quote stands in its chunk where it is said to stand: {facts:#?}"
    );
    let crowded = "SELECT count(*) FROM (SELECT FROM extraction GROUP BY chunk_id HAVING count(*) > ";
    assert_eq!(count(world, &format!("{crowded}{FACTS_MAX}) c")).await, 0, "no more facts than asked for: {facts:#?}");

    let queue = LlmQueue::connect(&QueueConfig::new(world.redis.url())).unwrap();
    eventually("redis holds nothing left over", PATIENCE, async || {
        queue.stats().await.is_ok_and(|stats| stats.iter().all(|s| s.length == 0 && s.pending == 0))
    })
    .await;
    world.wait_until_equal().await;

    let tokens = count(world, &format!("SELECT sum(r.completion_tokens) {of_job}")).await;
    let prompt = count(world, &format!("SELECT sum(r.prompt_tokens) {of_job}")).await;
    let dropped = count(world, &format!("SELECT sum(r.facts_dropped) {of_job}")).await;
    let truncated = count(world, &format!("SELECT count(*) {of_job} AND r.facts_dropped_by ? 'truncated'")).await;
    let entities = count(world, "SELECT count(*) FROM entity").await;
    eprintln!(
        "{what}: {done} of {total} done ({truncated} truncated), {} dead, {} facts, {entities} entities, {dropped} dropped; {prompt} + {tokens} \
         tokens in {:.1} s, {:.1} written a second",
        reasons.len(),
        facts.len(),
        took.as_secs_f64(),
        tokens as f64 / took.as_secs_f64(),
    );
    for line in facts.iter().chain(&reasons) {
        eprintln!("  {line}");
    }
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_model_finds_facts_that_stand_where_they_are_said_to() {
    let few_tokens = format!("max_tokens = {FEW_TOKENS}");
    let world = World::start_with(&settings(&few_tokens)).await;
    let folder = world.dir.path().join("passages");
    std::fs::create_dir_all(&folder).unwrap();
    for (number, passage) in PASSAGES.iter().enumerate() {
        std::fs::write(folder.join(format!("{number}.txt")), passage).unwrap();
    }
    let mut import = world.import(&folder);
    assert!(import.wait(PATIENCE).await.unwrap().success(), "{:?}", import.output());

    extract(&world, "answers cut off").await;
    let config = std::fs::read_to_string(world.config()).unwrap();
    std::fs::write(world.config(), config.replace(&few_tokens, "")).unwrap();
    extract(&world, "answers of the usual length").await;
}
