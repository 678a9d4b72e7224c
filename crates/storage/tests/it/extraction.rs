use std::time::Duration;

use serde_json::json;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;
use waybill_domain::{ErrorClass, JobId, JobState, Kind, ProjectId};
use waybill_storage::{
    extractions::{self, FactFilter, NewEntity, NewFact, Outcome},
    hydrate,
    jobs::{self, NewJob},
    points,
    requests::{self, Failure, QueuedRequest},
};
use waybill_testkit::eventually;

use crate::support::{Fixture, source};

/// A project with one source of these passages, and a job over all of them.
async fn started(passages: &[&str]) -> (Fixture, JobId) {
    let t = Fixture::new().await;
    t.put(source(t.project, "docs/a", passages)).await;
    t.forget_outbox().await;
    let id = JobId::derive(t.project, "first");
    assert!(start(&t, id, "").await);
    (t, id)
}

fn job(t: &Fixture, id: JobId, uri_prefix: &str) -> NewJob {
    NewJob {
        id,
        project_id: t.project,
        uri_prefix: uri_prefix.to_owned(),
        priority: "normal".to_owned(),
        settings: json!({"enabled": true, "priority": "low"}),
        follow: false,
    }
}

async fn start(t: &Fixture, id: JobId, uri_prefix: &str) -> bool {
    jobs::start(&t.db, &job(t, id, uri_prefix), None).await.unwrap()
}

async fn request(t: &Fixture) -> Uuid {
    t.sql("SELECT id FROM llm_request ORDER BY id LIMIT 1").await.parse().unwrap()
}

fn fact(statement: &str, quote: &str, entities: &[(&str, &str)]) -> NewFact {
    NewFact {
        kind: "statement".to_owned(),
        statement: statement.to_owned(),
        subject: None,
        predicate: None,
        object: None,
        confidence: 0.5,
        quote: quote.to_owned(),
        range: 0..quote.len(),
        entities: entities
            .iter()
            .map(|(canonical, name)| NewEntity {
                kind: "name".to_owned(),
                canonical: (*canonical).to_owned(),
                name: (*name).to_owned(),
                role: "mention".to_owned(),
            })
            .collect(),
    }
}

fn outcome(facts: Vec<NewFact>) -> Outcome {
    Outcome {
        facts,
        facts_dropped: [("quote_not_found", 2)].into(),
        model: "m".to_owned(),
        prompt_version: "1".to_owned(),
        ..Outcome::default()
    }
}

fn failure(class: ErrorClass) -> Failure {
    Failure {
        message: "no".to_owned(),
        class,
        excerpt: Some("{".to_owned()),
        model: "m".to_owned(),
        prompt_version: "1".to_owned(),
        trace_id: None,
        spent: requests::Spent::default(),
    }
}

#[tokio::test]
async fn a_job_makes_a_request_and_an_outbox_row_for_each_chunk_once() {
    let (t, id) = started(&["one", "two", "three"]).await;
    assert_eq!(t.number("SELECT count(*) FROM llm_request WHERE state = 'pending'").await, 3);
    assert_eq!(t.sql("SELECT DISTINCT sink, kind FROM outbox").await, "llm|llm_request");
    assert_eq!(t.number("SELECT count(*) FROM outbox").await, 3);
    assert!(!start(&t, id, "").await, "the same job again");
    assert_eq!(t.number("SELECT count(*) FROM outbox").await, 3);
    assert!(start(&t, JobId::generate(), "other/").await);
    assert_eq!(t.number("SELECT count(*) FROM llm_request").await, 3, "no source begins so");

    let job = jobs::get(&t.db, id).await.unwrap().unwrap();
    assert_eq!((job.state, job.counts.pending, job.counts.open()), (JobState::Queued, 3, 3));
}

#[tokio::test]
async fn only_what_is_pending_makes_outbox_rows_whoever_writes_it() {
    let (t, _) = started(&["one"]).await;
    t.forget_outbox().await;
    for state in ["running", "done"] {
        t.sql(&format!("UPDATE llm_request SET state = '{state}'")).await;
    }
    assert_eq!(t.outbox_keys().await, Vec::<String>::new());
    t.sql("UPDATE llm_request SET state = 'pending'").await;
    assert_eq!(t.outbox_keys().await.len(), 1);
    let truncated = waybill_testkit::psql(&t.database.url, "TRUNCATE llm_request CASCADE").await.unwrap_err();
    assert!(format!("{truncated:#}").contains("is refused"), "{truncated:#}");
}

#[tokio::test]
async fn an_answer_is_stored_once_and_finishes_its_request() {
    let (t, id) = started(&["Ada met Bob."]).await;
    let request = request(&t).await;
    let open = requests::open(&t.db, request, "1-0").await.unwrap().unwrap();
    assert_eq!((open.text.as_str(), open.title.as_str(), open.attempts), ("Ada met Bob.", "Title", 0));

    let facts = vec![
        fact("Ada met Bob", "Ada met Bob.", &[("ada", "Ada"), ("bob", "Bob")]),
        fact("ada  MET bob", "Ada met Bob.", &[]),
    ];
    assert!(extractions::complete(&t.db, request, &outcome(facts.clone()), None).await.unwrap());
    assert!(!extractions::complete(&t.db, request, &outcome(facts), None).await.unwrap(), "a late second answer");
    assert_eq!(t.number("SELECT count(*) FROM extraction").await, 1, "one statement is one fact");
    assert_eq!(t.sql("SELECT canonical FROM entity ORDER BY 1").await, "ada\nbob");
    assert!(requests::open(&t.db, request, "2-0").await.unwrap().is_none());
    let job = jobs::get(&t.db, id).await.unwrap().unwrap();
    assert_eq!((job.state, job.counts.done, job.facts, job.facts_dropped), (JobState::Done, 1, 1, 2));

    let filter = FactFilter { job_id: Some(id), ..FactFilter::all(t.project) };
    let listed = extractions::list_facts(&t.db, &filter, Uuid::nil(), 10).await.unwrap();
    assert_eq!((listed.len(), listed[0].quote.as_str()), (1, "Ada met Bob."));
    let ada = extractions::list_entities(&t.db, t.project, "ada", Uuid::nil(), 10).await.unwrap();
    assert_eq!((ada.len(), ada[0].facts), (1, 1));
    let of_ada = FactFilter { entities: vec![ada[0].id], ..filter };
    assert_eq!(extractions::list_facts(&t.db, &of_ada, Uuid::nil(), 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn reading_a_chunk_again_replaces_by_difference() {
    let (t, _) = started(&["Ada met Bob."]).await;
    let first = request(&t).await;
    let facts = vec![fact("stays", "Ada", &[("ada", "Ada")]), fact("goes", "Bob", &[("bob", "Bob")])];
    assert!(extractions::complete(&t.db, first, &outcome(facts), None).await.unwrap());
    let stays = t.sql("SELECT id, version FROM extraction WHERE statement = 'stays'").await;

    let again = JobId::generate();
    assert!(start(&t, again, "").await);
    let second: Uuid = t.sql("SELECT id FROM llm_request WHERE state = 'pending'").await.parse().unwrap();
    let facts = vec![fact("stays", "Ada", &[("ada", "ADA")]), fact("comes", "met", &[])];
    assert!(extractions::complete(&t.db, second, &outcome(facts), None).await.unwrap());
    assert_eq!(t.sql("SELECT statement FROM extraction ORDER BY 1").await, "comes\nstays");
    assert_eq!(t.sql("SELECT id, version FROM extraction WHERE statement = 'stays'").await, stays);
    assert_eq!(t.sql("SELECT aliases FROM entity WHERE canonical = 'ada'").await, "{ADA,Ada}");
    assert_eq!(t.number("SELECT count(*) FROM extraction_entity").await, 1);
}

#[tokio::test]
async fn what_redis_lost_is_pending_again_unless_it_is_finished() {
    let (t, id) = started(&["one", "two"]).await;
    t.sql("UPDATE llm_request SET state = 'queued', stream_id = '1-0'").await;
    t.forget_outbox().await;
    let lost = requests::with_redis(&t.db, 0.0, Uuid::nil(), 10).await.unwrap();
    assert_eq!(lost.len(), 2);
    // One is answered, between the look and the update.
    requests::open(&t.db, lost[0].id, "1-0").await.unwrap().unwrap();
    assert!(extractions::complete(&t.db, lost[0].id, &outcome(Vec::new()), None).await.unwrap());
    assert_eq!(requests::lost(&t.db, &lost).await.unwrap(), 1);
    assert_eq!(t.outbox_keys().await, [lost[1].id.to_string()]);
    // It got another message meanwhile: the old one is nothing to it.
    requests::open(&t.db, lost[1].id, "2-0").await.unwrap().unwrap();
    let old = QueuedRequest { stream_id: "1-0".to_owned(), ..lost[1].clone() };
    assert_eq!(requests::lost(&t.db, &[old]).await.unwrap(), 0);
    assert_eq!(jobs::get(&t.db, id).await.unwrap().unwrap().state, JobState::Running);
}

#[tokio::test]
async fn a_request_that_is_given_up_leaves_a_dead_letter_and_holds_nothing_up() {
    let (t, id) = started(&["one", "two"]).await;
    let request = request(&t).await;
    requests::open(&t.db, request, "1-0").await.unwrap().unwrap();
    assert_eq!(requests::failed(&t.db, request, &failure(ErrorClass::Throttled), false).await.unwrap(), Some(0));
    assert_eq!(requests::failed(&t.db, request, &failure(ErrorClass::Transient), true).await.unwrap(), Some(1));
    assert!(requests::bury(&t.db, request, &failure(ErrorClass::Permanent)).await.unwrap());
    assert!(!requests::bury(&t.db, request, &failure(ErrorClass::Permanent)).await.unwrap());
    assert_eq!(
        t.sql("SELECT error, error_class, attempts, excerpt, model FROM dead_letter").await,
        "no|permanent|1|{|m"
    );
    assert_eq!(jobs::get(&t.db, id).await.unwrap().unwrap().state, JobState::Running, "the other chunk is open");
}

#[tokio::test]
async fn a_cancelled_job_takes_no_answer() {
    let (t, id) = started(&["one"]).await;
    let request = request(&t).await;
    requests::open(&t.db, request, "1-0").await.unwrap().unwrap();
    assert!(jobs::cancel(&t.db, id).await.unwrap());
    assert!(!requests::is_open(&t.db, request).await.unwrap());
    assert!(!extractions::complete(&t.db, request, &outcome(vec![fact("f", "one", &[])]), None).await.unwrap());
    assert_eq!(t.number("SELECT count(*) FROM extraction").await, 0);
    assert_eq!(jobs::get(&t.db, id).await.unwrap().unwrap().state, JobState::Cancelled);
    assert!(!jobs::cancel(&t.db, JobId::generate()).await.unwrap());
}

#[tokio::test]
async fn what_goes_with_a_chunk_goes() {
    let (t, id) = started(&["Ada met Bob."]).await;
    let request = request(&t).await;
    requests::open(&t.db, request, "1-0").await.unwrap().unwrap();
    t.sql("DELETE FROM source").await;
    assert!(!extractions::complete(&t.db, request, &outcome(vec![fact("f", "Ada", &[])]), None).await.unwrap());
    assert_eq!(jobs::get(&t.db, id).await.unwrap().unwrap().counts.open(), 0);
}

#[tokio::test]
async fn facts_and_entities_are_mirrored_whoever_writes_them() {
    let (t, _) = started(&["Ada met Bob."]).await;
    let request = request(&t).await;
    let facts = vec![fact("Ada met Bob", "Ada met Bob.", &[("ada", "Ada")])];
    assert!(extractions::complete(&t.db, request, &outcome(facts), None).await.unwrap());
    let rows = "SELECT kind, count(*) FROM outbox WHERE sink = 'qdrant' GROUP BY kind ORDER BY kind";
    t.forget_outbox().await;
    t.sql("UPDATE extraction SET confidence = 1; UPDATE entity SET aliases = aliases || '{A}'").await;
    assert_eq!(t.sql(rows).await, "entity|1\nextraction|1");
    t.forget_outbox().await;
    // Its metadata is the fact's too.
    t.sql("UPDATE source SET metadata = '{\"lang\": \"en\"}'").await;
    assert_eq!(t.sql(rows).await, "chunk|1\nextraction|1");
    t.forget_outbox().await;
    t.sql("DELETE FROM project").await;
    assert_eq!(t.sql(rows).await, "chunk|1\nentity|1\nextraction|1");
}

#[tokio::test]
async fn a_fact_is_hydrated_with_its_quote_where_it_stands_in_the_source() {
    let (t, _) = started(&["First.", "Ada met Bob."]).await;
    let request: Uuid = t
        .sql("SELECT r.id FROM llm_request r JOIN chunk c ON c.id = r.chunk_id WHERE c.ordinal = 1")
        .await
        .parse()
        .unwrap();
    let facts = vec![NewFact { range: 4..7, ..fact("Ada met Bob", "met", &[("ada", "Ada")]) }];
    assert!(extractions::complete(&t.db, request, &outcome(facts), None).await.unwrap());
    let id = |sql: &'static str| async { t.sql(sql).await.parse::<Uuid>().unwrap() };
    let (fact, entity) = (id("SELECT id FROM extraction").await, id("SELECT id FROM entity").await);
    let keys = [(Kind::Extraction, fact), (Kind::Entity, entity), (Kind::Chunk, fact)];
    let rows = hydrate::rows(&t.db, &keys).await.unwrap();
    assert_eq!(rows.len(), 2, "an id is looked for as what it is");
    assert_eq!((rows[0].text.as_str(), rows[0].quote.as_str()), ("Ada met Bob", "met"));
    let (start, end) = (rows[0].start_byte, rows[0].end_byte);
    assert_eq!(t.sql(&format!("SELECT substr(text, {} + 1, {end} - {start}) FROM source", start)).await, "met");
    assert_eq!(rows[1].text, "Ada (name)");
    let points = points::load(&t.db, &keys).await.unwrap();
    let texts: Vec<&str> = points.iter().map(|point| point.text.as_str()).collect();
    assert_eq!(texts, ["Ada met Bob", "Ada (name)"]);
}

#[tokio::test]
async fn a_rejected_fact_goes_with_entities_that_nothing_else_mentions() {
    let (t, _) = started(&["Ada met Bob."]).await;
    let request = request(&t).await;
    let facts = vec![fact("one", "Ada", &[("ada", "Ada")]), fact("two", "Bob", &[("ada", "Ada"), ("bob", "Bob")])];
    assert!(extractions::complete(&t.db, request, &outcome(facts), None).await.unwrap());
    let two: Uuid = t.sql("SELECT id FROM extraction WHERE statement = 'two'").await.parse().unwrap();
    let elsewhere = extractions::reject(&t.db, ProjectId::from_uuid(Uuid::nil()), &[two], None).await.unwrap();
    assert_eq!(elsewhere, 0, "another project's");
    t.forget_outbox().await;
    assert_eq!(extractions::reject(&t.db, t.project, &[two, Uuid::nil()], None).await.unwrap(), 1);
    assert_eq!(t.sql("SELECT statement FROM extraction").await, "one");
    assert_eq!(t.sql("SELECT canonical FROM entity").await, "ada");
    assert_eq!(t.outbox_keys().await.len(), 2, "a fact and an entity");
    let ada = extractions::list_entities(&t.db, t.project, "ada", Uuid::nil(), 1).await.unwrap().remove(0);
    assert_eq!(extractions::entity(&t.db, t.project, ada.id).await.unwrap(), Some(ada));
}

#[tokio::test]
async fn a_job_that_follows_reads_what_comes_later_until_it_is_cancelled() {
    let t = Fixture::new().await;
    t.put(source(t.project, "docs/a", &["one"])).await;
    let id = JobId::generate();
    assert!(jobs::start(&t.db, &NewJob { follow: true, ..job(&t, id, "docs/") }, None).await.unwrap());
    t.put(source(t.project, "docs/a", &["one", "two"])).await;
    t.put(source(t.project, "other/b", &["three"])).await;
    let texts = "SELECT c.text, r.priority FROM llm_request r JOIN chunk c ON c.id = r.chunk_id ORDER BY 1";
    assert_eq!(t.sql(texts).await, "one|normal\ntwo|low", "the job's own priority is that of what follows");
    assert_eq!(jobs::get(&t.db, id).await.unwrap().unwrap().counts.open(), 2);
    assert!(jobs::cancel(&t.db, id).await.unwrap());
    t.put(source(t.project, "docs/a", &["one", "two", "four"])).await;
    assert_eq!(t.number("SELECT count(*) FROM llm_request").await, 2);
}

#[tokio::test]
async fn a_chunk_that_is_being_written_when_a_job_begins_to_follow_is_read() {
    let t = Fixture::new().await;
    t.put(source(t.project, "docs/a", &["one"])).await;
    let mut writer = PgConnection::connect(&t.database.url).await.unwrap();
    let mut open = writer.begin().await.unwrap();
    sqlx::query(
        "INSERT INTO chunk (id, project_id, source_id, ordinal, text, text_hash, start_byte, end_byte, token_count)
         SELECT gen_random_uuid(), project_id, id, 1, 'two', sha256('two'), 0, 3, 1 FROM source",
    )
    .execute(&mut *open)
    .await
    .unwrap();
    let id = JobId::generate();
    let start = tokio::spawn({
        let (db, job) = (t.db.clone(), NewJob { follow: true, ..job(&t, id, "") });
        async move { jobs::start(&db, &job, None).await }
    });
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%FOR UPDATE%'";
    eventually("the start waits for the writer", Duration::from_secs(20), async || t.number(waiting).await == 1).await;
    open.commit().await.unwrap();
    assert!(start.await.unwrap().unwrap());
    assert_eq!(t.number("SELECT count(*) FROM llm_request").await, 2);
}
