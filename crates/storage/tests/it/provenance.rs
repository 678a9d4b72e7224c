//! Which job made what, and what became of each passage.

use std::{collections::BTreeMap, time::Duration};

use serde_json::json;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;
use waybill_domain::{ErrorClass, JobId, Kind, SourceId, SourceState};
use waybill_storage::{
    extractions::{self, FactFilter, NewEntity, NewFact, Outcome, REJECT_STEP},
    hydrate,
    jobs::{self, NewJob},
    requests::{self, EntitiesState, EntityCounts, Failure, RequestFilter, RequestState, Spent},
    sources::{self, SourceFilter},
};
use waybill_testkit::{eventually, psql};

use crate::support::{Fixture, source};

const PATIENCE: Duration = Duration::from_secs(20);

async fn start(t: &Fixture, headers: Option<&str>) -> JobId {
    let job = NewJob {
        id: JobId::generate(),
        project_id: t.project,
        uri_prefix: String::new(),
        priority: "normal".to_owned(),
        settings: json!({}),
        follow: false,
    };
    assert!(jobs::start(&t.db, &job, headers).await.unwrap());
    job.id
}

/// The request to read the chunk with this text, which must be one of one job.
async fn request(t: &Fixture, job: JobId, text: &str) -> Uuid {
    let sql = format!(
        "SELECT r.id FROM llm_request r JOIN chunk c ON c.id = r.chunk_id
         WHERE r.job_id = '{}' AND c.text = '{text}'",
        job.as_uuid()
    );
    t.sql(&sql).await.parse().unwrap()
}

fn fact(statement: &str, confidence: f32, entities: &[&str]) -> NewFact {
    NewFact {
        kind: "statement".to_owned(),
        statement: statement.to_owned(),
        subject: None,
        predicate: None,
        object: None,
        confidence,
        quote: "a".to_owned(),
        range: 0..1,
        entities: entities
            .iter()
            .map(|name| NewEntity {
                kind: "name".to_owned(),
                canonical: name.to_lowercase(),
                name: (*name).to_owned(),
                role: "mention".to_owned(),
            })
            .collect(),
    }
}

fn outcome(facts: Vec<NewFact>) -> Outcome {
    Outcome { facts, model: "m".to_owned(), prompt_version: "1".to_owned(), ..Outcome::default() }
}

fn failure(tokens: i64) -> Failure {
    Failure {
        message: "no".to_owned(),
        class: ErrorClass::Transient,
        excerpt: None,
        model: "m".to_owned(),
        prompt_version: "1".to_owned(),
        trace_id: None,
        spent: Spent { prompt_tokens: tokens, completion_tokens: 1, cost: 0.5 },
    }
}

#[tokio::test]
async fn a_source_and_its_chunks_carry_the_run_that_made_them() {
    let t = Fixture::new().await;
    let (first, second) = (Uuid::now_v7(), Uuid::now_v7());
    let by = |passages: &[&str], job| {
        let mut item = source(t.project, "docs/a", passages);
        item.key.job_id = Some(job);
        item
    };
    t.put(by(&["one", "two"], first)).await;
    t.put(by(&["one", "two"], second)).await;
    let unchanged = t.sql("SELECT job_id FROM source").await;
    assert_eq!(unchanged, first.to_string(), "a run that changes nothing makes nothing");
    // In front, so that the chunks that stay lie elsewhere.
    t.put(by(&["three", "one", "two"], second)).await;
    let made = t.sql("SELECT text, job_id FROM chunk ORDER BY ordinal").await;
    assert_eq!(made, format!("three|{second}\none|{first}\ntwo|{first}"));
    let stored = sources::get(&t.db, SourceId::derive(t.project, "docs/a"), false).await.unwrap().unwrap();
    assert_eq!(stored.job_id, Some(second));
    let chunk: Uuid = t.sql("SELECT id FROM chunk WHERE text = 'one'").await.parse().unwrap();
    assert_eq!(hydrate::rows(&t.db, &[(Kind::Chunk, chunk)]).await.unwrap()[0].job_id, Some(first));
}

#[tokio::test]
async fn a_source_is_extracting_while_requests_for_its_chunks_are_open() {
    let t = Fixture::new().await;
    t.put(source(t.project, "a", &["one", "two"])).await;
    t.put(source(t.project, "b", &[])).await;
    let state = async |uri: &str| {
        let one = sources::get(&t.db, SourceId::derive(t.project, uri), false).await.unwrap().unwrap().state;
        let listed = sources::list(&t.db, t.project, &SourceFilter::default(), None, 10).await.unwrap();
        assert_eq!(listed.sources.iter().find(|source| source.uri == uri).unwrap().state, one);
        one
    };
    assert_eq!(state("a").await, SourceState::Chunked);
    let job = start(&t, None).await;
    assert_eq!(state("a").await, SourceState::Extracting);
    t.confirm_all().await;
    assert_eq!(state("a").await, SourceState::Extracting, "the index has it, the facts are missing");
    assert_eq!(state("b").await, SourceState::Indexed, "another source's requests are nothing to it");
    let only = |state| SourceFilter { uri_prefix: String::new(), state: Some(state) };
    for (wanted, uri) in [(SourceState::Extracting, "a"), (SourceState::Indexed, "b")] {
        let page = sources::list(&t.db, t.project, &only(wanted), None, 10).await.unwrap();
        assert_eq!(page.sources.iter().map(|source| source.uri.as_str()).collect::<Vec<_>>(), [uri]);
    }
    let one = request(&t, job, "one").await;
    assert!(extractions::complete(&t.db, one, &outcome(Vec::new()), None).await.unwrap());
    assert_eq!(state("a").await, SourceState::Extracting, "the other chunk is open");
    assert!(requests::bury(&t.db, request(&t, job, "two").await, &failure(0)).await.unwrap());
    assert_eq!(state("a").await, SourceState::Indexed, "nothing is open");
}

#[tokio::test]
async fn entities_have_a_state_of_their_own_that_comes_with_their_rows() {
    let t = Fixture::new().await;
    t.put(source(t.project, "docs/a", &["all", "some", "lost", "none", "open"])).await;
    let job = start(&t, None).await;
    let (ada, nobody) = ([fact("f", 1.0, &["Ada"])], [fact("f", 1.0, &[])]);
    for (text, facts, dropped) in [
        ("all", &ada, BTreeMap::new()),
        ("some", &ada, BTreeMap::from([("name_too_long", 2), ("unknown_type", 1)])),
        ("lost", &nobody, BTreeMap::from([("empty_name", 1)])),
        ("none", &nobody, BTreeMap::new()),
    ] {
        let outcome = Outcome {
            entities_dropped: dropped,
            facts_dropped: BTreeMap::from([("quote_not_found", 3)]),
            ..outcome(facts.to_vec())
        };
        assert!(extractions::complete(&t.db, request(&t, job, text).await, &outcome, None).await.unwrap());
    }
    let filter = RequestFilter { project_id: t.project, job_id: Some(job), chunk_id: None, state: None };
    let listed = requests::list(&t.db, filter, Uuid::nil(), 10).await.unwrap();
    let of = |id: Uuid| listed.iter().find(|request| request.id == id).unwrap();
    let seen = async |text: &str| {
        let request = of(request(&t, job, text).await);
        let reasons = request.entities_dropped.iter().map(|(reason, count)| format!("{reason} {count}"));
        (request.state, request.entities_state, reasons.collect::<Vec<_>>().join(", "), request.facts)
    };
    assert_eq!(seen("all").await, (RequestState::Done, EntitiesState::Complete, String::new(), 1));
    let some = (RequestState::Done, EntitiesState::Partial, "name_too_long 2, unknown_type 1".to_owned(), 1);
    assert_eq!(seen("some").await, some);
    assert_eq!(seen("lost").await, (RequestState::Done, EntitiesState::None, "empty_name 1".to_owned(), 1));
    assert_eq!(seen("none").await, (RequestState::Done, EntitiesState::None, String::new(), 1));
    assert_eq!(seen("open").await, (RequestState::Pending, EntitiesState::None, String::new(), 0));
    assert_eq!(listed.iter().find(|request| request.facts == 1).unwrap().facts_dropped["quote_not_found"], 3);
    let counted = jobs::get(&t.db, job).await.unwrap().unwrap();
    assert_eq!(counted.entities, EntityCounts { none: 3, partial: 1, complete: 1 });
    assert_eq!(counted.facts_dropped, 12);

    let early = "UPDATE llm_request SET entities_state = 'complete' WHERE state = 'pending'";
    let early = psql(&t.database.url, early).await.unwrap_err();
    assert!(format!("{early:#}").contains("llm_request_entities_done"), "{early:#}");
}

#[tokio::test]
async fn requests_are_listed_by_job_chunk_and_state_in_pages() {
    let t = Fixture::new().await;
    t.put(source(t.project, "docs/a", &["one", "two", "three"])).await;
    let (job, other) = (start(&t, None).await, start(&t, None).await);
    assert!(requests::bury(&t.db, request(&t, job, "two").await, &failure(7)).await.unwrap());
    let all = RequestFilter { project_id: t.project, job_id: Some(job), chunk_id: None, state: None };
    let first = requests::list(&t.db, all, Uuid::nil(), 2).await.unwrap();
    let rest = requests::list(&t.db, all, first[1].id, 2).await.unwrap();
    assert_eq!((first.len(), rest.len()), (2, 1));
    assert!(first.iter().chain(&rest).all(|request| request.job_id == job && request.source_uri == "docs/a"));

    let dead = RequestFilter { state: Some(RequestState::Dead), ..all };
    let dead = requests::list(&t.db, dead, Uuid::nil(), 10).await.unwrap();
    assert_eq!(dead.len(), 1);
    assert_eq!((dead[0].last_error.as_deref(), dead[0].last_error_class.as_deref()), (Some("no"), Some("transient")));
    assert_eq!((dead[0].prompt_tokens, dead[0].completion_tokens), (7, 1));
    let of_chunk = RequestFilter { job_id: None, chunk_id: Some(dead[0].chunk_id), ..all };
    let mut jobs: Vec<JobId> =
        requests::list(&t.db, of_chunk, Uuid::nil(), 10).await.unwrap().iter().map(|request| request.job_id).collect();
    jobs.sort_unstable();
    let mut expected = vec![job, other];
    expected.sort_unstable();
    assert_eq!(jobs, expected);
    let nothing = RequestFilter { job_id: None, ..all };
    assert!(requests::list(&t.db, nothing, Uuid::nil(), 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_a_failed_call_used_up_is_counted_whatever_became_of_its_request() {
    let t = Fixture::new().await;
    t.put(source(t.project, "docs/a", &["one"])).await;
    let job = start(&t, None).await;
    let id = request(&t, job, "one").await;
    requests::open(&t.db, id, "1-0").await.unwrap().unwrap();
    assert_eq!(requests::failed(&t.db, id, &failure(10), true).await.unwrap(), Some(1));
    let answer = Outcome { prompt_tokens: 100, completion_tokens: 20, cost: 2.0, ..outcome(Vec::new()) };
    assert!(jobs::cancel(&t.db, job).await.unwrap());
    assert_eq!(requests::failed(&t.db, id, &failure(30), true).await.unwrap(), None, "nobody wants it any more");
    assert!(!extractions::complete(&t.db, id, &answer, None).await.unwrap());
    let job = jobs::get(&t.db, job).await.unwrap().unwrap();
    assert_eq!((job.prompt_tokens, job.completion_tokens, job.cost), (40, 2, 1.0));
    assert_eq!(t.sql("SELECT attempts, state FROM llm_request").await, "1|cancelled");
}

#[tokio::test]
async fn a_request_carries_the_headers_of_who_made_it_pending() {
    let t = Fixture::new().await;
    t.put(source(t.project, "docs/a", &["one"])).await;
    let job = start(&t, Some(r#"{"traceparent":"first"}"#)).await;
    let id = request(&t, job, "one").await;
    let headers = async || requests::pending(&t.db, &[id]).await.unwrap().remove(0).headers;
    assert_eq!(headers().await.as_deref(), Some(r#"{"traceparent":"first"}"#));
    // A sweep has no trace of its own.
    t.sql("UPDATE llm_request SET state = 'running'").await;
    t.sql("UPDATE llm_request SET state = 'pending'").await;
    assert_eq!(headers().await.as_deref(), Some(r#"{"traceparent":"first"}"#));
    t.sql("UPDATE llm_request SET state = 'running'").await;
    t.sql("SET waybill.headers = '{\"traceparent\":\"second\"}'; UPDATE llm_request SET state = 'pending'").await;
    assert_eq!(headers().await.as_deref(), Some(r#"{"traceparent":"second"}"#));
}

#[tokio::test]
async fn facts_are_rejected_by_what_is_true_of_all_of_them() {
    let t = Fixture::new().await;
    t.put(source(t.project, "docs/a", &["one"])).await;
    t.put(source(t.project, "other/b", &["two"])).await;
    let job = start(&t, None).await;
    let facts = |name: &str| {
        vec![fact(&format!("sure {name}"), 0.9, &["Ada"]), fact(&format!("unsure {name}"), 0.2, &["Ada", "Bob"])]
    };
    for text in ["one", "two"] {
        assert!(extractions::complete(&t.db, request(&t, job, text).await, &outcome(facts(text)), None).await.unwrap());
    }
    let left = async || t.sql("SELECT statement FROM extraction ORDER BY 1").await;
    let all = FactFilter::all(t.project);
    let reject = async |filter: &FactFilter| extractions::reject_step(&t.db, filter, Uuid::nil(), None).await.unwrap();
    for miss in [
        FactFilter { kind: Some("other".to_owned()), ..all.clone() },
        FactFilter { job_id: Some(JobId::generate()), ..all.clone() },
        FactFilter { chunk_id: Some(Uuid::nil()), ..all.clone() },
        FactFilter { confidence_below: Some(0.2), ..all.clone() },
        FactFilter { uri_prefix: "doc/".to_owned(), ..all.clone() },
    ] {
        assert_eq!(reject(&miss).await, (0, None), "{miss:?}");
        assert!(extractions::list_facts(&t.db, &miss, Uuid::nil(), 10).await.unwrap().is_empty(), "{miss:?}");
    }
    let bob = extractions::list_entities(&t.db, t.project, "bob", Uuid::nil(), 1).await.unwrap()[0].id;
    let meant = FactFilter {
        uri_prefix: "docs/".to_owned(),
        entities: vec![bob],
        kind: Some("statement".to_owned()),
        job_id: Some(job),
        confidence_below: Some(0.5),
        ..all.clone()
    };
    let listed = extractions::list_facts(&t.db, &meant, Uuid::nil(), 10).await.unwrap();
    assert_eq!(listed.iter().map(|fact| fact.statement.as_str()).collect::<Vec<_>>(), ["unsure one"]);
    assert_eq!(reject(&meant).await, (1, None));
    assert_eq!(left().await, "sure one\nsure two\nunsure two");
    assert_eq!(t.sql("SELECT canonical FROM entity ORDER BY 1").await, "ada\nbob");
    assert_eq!(reject(&FactFilter { entities: vec![bob], ..all.clone() }).await, (1, None));
    assert_eq!(t.sql("SELECT canonical FROM entity ORDER BY 1").await, "ada");
    assert_eq!(reject(&all).await, (2, None));
    assert_eq!(left().await, "");
}

#[tokio::test]
async fn many_facts_are_rejected_in_bounded_steps() {
    let t = Fixture::new().await;
    t.put(source(t.project, "docs/a", &["one"])).await;
    let job = start(&t, None).await;
    t.sql(&format!(
        "INSERT INTO extraction (id, project_id, chunk_id, job_id, type, statement, confidence, quote, quote_start,
                                 quote_end, model, prompt_version)
         SELECT gen_random_uuid(), c.project_id, c.id, '{}', 's', n::text, 0.5, 'o', 0, 1, 'm', '1'
         FROM chunk c CROSS JOIN generate_series(1, 2500) AS n",
        job.as_uuid()
    ))
    .await;
    let (filter, mut after, mut counts) = (FactFilter::all(t.project), Some(Uuid::nil()), Vec::new());
    while let Some(from) = after {
        let (count, next) = extractions::reject_step(&t.db, &filter, from, None).await.unwrap();
        counts.push(count);
        after = next;
    }
    assert_eq!((counts.as_slice(), REJECT_STEP), (&[1_000, 1_000, 500][..], 1_000));
    assert_eq!(t.number("SELECT count(*) FROM extraction").await, 0);
}

/// Has who makes an entity wait between its look for one and its row, as long as somebody holds
/// the advisory lock 7: an index that asks for the lock, before the primary key in the order in
/// which Postgres fills the indexes.
const GATE: &str = "
    ALTER TABLE entity DROP CONSTRAINT entity_pkey CASCADE;
    CREATE FUNCTION gate(id uuid) RETURNS uuid LANGUAGE plpgsql IMMUTABLE AS
        'BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN id; END';
    CREATE INDEX gate ON entity (gate(id));
    ALTER TABLE entity ADD PRIMARY KEY (id)";

#[tokio::test]
async fn two_workers_make_the_same_entity_at_once() {
    let t = Fixture::new().await;
    t.put(source(t.project, "docs/a", &["one", "two"])).await;
    let job = start(&t, None).await;
    t.sql(GATE).await;
    let mut holder = PgConnection::connect(&t.database.url).await.unwrap();
    sqlx::query("SELECT pg_advisory_lock(7)").execute(&mut holder).await.unwrap();
    let mut workers = Vec::new();
    for (text, name) in [("one", "Ada"), ("two", "ADA")] {
        let (db, id) = (t.db.clone(), request(&t, job, text).await);
        let outcome = outcome(vec![fact(text, 1.0, &[name])]);
        workers.push(tokio::spawn(async move { extractions::complete(&db, id, &outcome, None).await }));
    }
    let at_the_gate = "SELECT count(*) FROM pg_stat_activity
                       WHERE datname = current_database() AND wait_event = 'advisory' AND query LIKE 'INSERT INTO entity%'";
    eventually("neither has seen the other's entity", PATIENCE, async || t.number(at_the_gate).await == 2).await;
    sqlx::query("SELECT pg_advisory_unlock(7)").execute(&mut holder).await.unwrap();
    for worker in workers {
        assert!(worker.await.unwrap().unwrap());
    }
    assert_eq!(t.sql("SELECT canonical, aliases FROM entity").await, "ada|{ADA,Ada}");
    assert_eq!(t.number("SELECT count(*) FROM extraction_entity").await, 2);
}

#[tokio::test]
async fn an_entity_that_is_mentioned_while_its_last_fact_is_rejected_stays() {
    let t = Fixture::new().await;
    t.put(source(t.project, "docs/a", &["one", "two"])).await;
    let job = start(&t, None).await;
    let (one, two) = (request(&t, job, "one").await, request(&t, job, "two").await);
    assert!(extractions::complete(&t.db, one, &outcome(vec![fact("one", 1.0, &["Ada"])]), None).await.unwrap());
    let fact_id: Uuid = t.sql("SELECT id FROM extraction").await.parse().unwrap();
    // A worker in the middle of its transaction: it has found the entity, and links a fact to it.
    let mut worker = PgConnection::connect(&t.database.url).await.unwrap();
    let mut open = worker.begin().await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
        "INSERT INTO extraction (id, project_id, chunk_id, job_id, type, statement, confidence, quote, quote_start,
                                 quote_end, model, prompt_version)
         SELECT gen_random_uuid(), project_id, chunk_id, job_id, 's', 'two', 1, 'o', 0, 1, 'm', '1'
         FROM llm_request WHERE id = '{two}';
         INSERT INTO extraction_entity SELECT f.id, e.id, 'mention' FROM extraction f, entity e WHERE f.statement = 'two'"
    )))
    .execute(&mut *open)
    .await
    .unwrap();
    let rejection = tokio::spawn({
        let (db, project) = (t.db.clone(), t.project);
        async move { extractions::reject(&db, project, &[fact_id], None).await }
    });
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%entity%'";
    eventually("the rejection waits for the worker", PATIENCE, async || t.number(waiting).await == 1).await;
    open.commit().await.unwrap();
    assert_eq!(rejection.await.unwrap().unwrap(), 1);
    assert_eq!(t.sql("SELECT canonical FROM entity").await, "ada");
    assert_eq!(t.number("SELECT count(*) FROM extraction_entity").await, 1);
}
