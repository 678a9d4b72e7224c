//! Bad input to each call of the service answers with the right code and names the field, writes
//! nothing, and hurts no call that follows.

use tonic::{Code, Status};
use waybill_api::extraction::v1::{
    CancelJobRequest, ExtractionSettings, FailureClass, GetEntityRequest, GetExtractionRequest, GetJobRequest,
    GetWorkerStatusRequest, ListEntitiesRequest, ListExtractionsRequest, ListJobsRequest, RejectExtractionsRequest,
    ReportFailureRequest, StartExtractionRequest, SubmitResponseRequest, WatchJobRequest,
};

use crate::support::{Fixture, begin, expect, failure, submit};

const NOBODY: &str = "00000000-0000-7000-8000-000000000000";

/// Longer than anything that is meant.
fn long() -> String {
    "a".repeat(100_000)
}

/// Texts that are no ids.
fn no_ids() -> Vec<String> {
    let texts = ["", "x", "\0", "00000000-0000-7000-8000-00000000000\0", "00000000-0000-7000-8000-0000000000000"];
    texts.into_iter().map(str::to_owned).chain([long()]).collect()
}

/// Texts that name no project, and how they are refused.
fn no_projects() -> Vec<(String, Code)> {
    let malformed = ["", "No Name", "p\0", "-p"].into_iter().map(str::to_owned).chain([long()]);
    malformed.map(|name| (name, Code::InvalidArgument)).chain([("nobody".to_owned(), Code::NotFound)]).collect()
}

fn no_page_tokens() -> Vec<String> {
    ["x", "\0", "AZmFrZQ", "-1"].into_iter().map(str::to_owned).chain([long()]).collect()
}

const NO_PAGE_SIZES: [i32; 4] = [-1, i32::MIN, 1_001, i32::MAX];

/// What was refused: which call, how, and why it should be.
struct Refused(Vec<(String, Status, Code, String)>);

impl Refused {
    fn add<T>(&mut self, what: &str, answer: Result<T, Status>, code: Code, field: &str) {
        let what: String = what.chars().take(80).collect();
        let Err(status) = answer else { panic!("{what} is not refused") };
        self.0.push((what, status, code, field.to_owned()));
    }

    fn check(self) {
        for (what, status, code, field) in self.0 {
            expect(&what, &status, code, &field, "");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_calls_about_jobs_are_refused() {
    use Code::InvalidArgument;

    let t = Fixture::new(1).await;
    let mut client = t.client.clone();
    let job = t.start().await;
    let rows = t.rows().await;
    let mut refused = Refused(Vec::new());
    for id in no_ids() {
        let get = GetJobRequest { id: id.clone() };
        refused.add(&format!("get {id:?}"), client.get_job(get).await, InvalidArgument, "id");
        let watch = WatchJobRequest { id: id.clone() };
        refused.add(&format!("watch {id:?}"), client.watch_job(watch).await, InvalidArgument, "id");
        let cancel = CancelJobRequest { id: id.clone() };
        refused.add(&format!("cancel {id:?}"), client.cancel_job(cancel).await, InvalidArgument, "id");
    }
    let id = NOBODY.to_owned();
    refused.add("get", client.get_job(GetJobRequest { id: id.clone() }).await, Code::NotFound, "job");
    refused.add("watch", client.watch_job(WatchJobRequest { id: id.clone() }).await, Code::NotFound, "job");
    refused.add("cancel", client.cancel_job(CancelJobRequest { id }).await, Code::NotFound, "job");

    let good = || StartExtractionRequest { project: "p".to_owned(), ..StartExtractionRequest::default() };
    for (project, code) in no_projects() {
        let what = format!("project {project:?}");
        let start = StartExtractionRequest { project: project.clone(), ..good() };
        refused.add(&what, client.start_extraction(start).await, code, "project");
        let list = ListJobsRequest { project, ..ListJobsRequest::default() };
        refused.add(&what, client.list_jobs(list).await, code, "project");
    }
    for page_size in NO_PAGE_SIZES {
        let list = ListJobsRequest { project: "p".to_owned(), page_size, ..ListJobsRequest::default() };
        refused.add(&format!("{page_size} jobs"), client.list_jobs(list).await, InvalidArgument, "page_size");
    }
    for priority in [-1, 4, i32::MAX] {
        let start = StartExtractionRequest { priority, ..good() };
        let what = format!("priority {priority}");
        refused.add(&what, client.start_extraction(start).await, InvalidArgument, "priority");
    }
    let settings = |instructions: &str, fact: &[String], entity: &[String]| StartExtractionRequest {
        settings: Some(ExtractionSettings {
            instructions: instructions.to_owned(),
            fact_types: fact.to_vec(),
            entity_types: entity.to_vec(),
            ..ExtractionSettings::default()
        }),
        ..good()
    };
    let many = vec!["a".to_owned(); 65];
    let cases = [
        ("NUL in the prefix", StartExtractionRequest { uri_prefix: "\0".to_owned(), ..good() }, "uri_prefix"),
        ("a long prefix", StartExtractionRequest { uri_prefix: long(), ..good() }, "uri_prefix"),
        ("NUL in the request id", StartExtractionRequest { request_id: "a\0".to_owned(), ..good() }, "request_id"),
        ("a long request id", StartExtractionRequest { request_id: long(), ..good() }, "request_id"),
        ("long instructions", settings(&long(), &[], &[]), "settings"),
        ("NUL in the instructions", settings("a\0", &[], &[]), "settings"),
        ("many fact types", settings("", &many, &[]), "settings"),
        ("many entity types", settings("", &[], &many), "settings"),
        ("a long type", settings("", &[long()], &[]), "settings"),
        ("an empty type", settings("", &[], &[String::new()]), "settings"),
        ("NUL in a type", settings("", &["a\0".to_owned()], &[]), "settings"),
    ];
    for (what, request, field) in cases {
        refused.add(what, client.start_extraction(request).await, InvalidArgument, field);
    }
    refused.check();
    assert_eq!(t.rows().await, rows, "nothing is half-written");

    let list = ListJobsRequest { project: "p".to_owned(), page_size: 1_000, ..ListJobsRequest::default() };
    assert_eq!(client.list_jobs(list).await.unwrap().into_inner().jobs.len(), 1);
    let watched = client.watch_job(WatchJobRequest { id: job.id.clone() }).await.unwrap().into_inner().message().await;
    assert_eq!(watched.unwrap().unwrap().id, job.id);
    let edge = StartExtractionRequest { request_id: "r".repeat(128), uri_prefix: "u".to_owned(), ..good() };
    assert_eq!(client.start_extraction(edge).await.unwrap().into_inner().pending_count, 1);
    let status = client.get_worker_status(GetWorkerStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.provider.as_str(), status.in_flight), ("rules", 0));
    client.cancel_job(CancelJobRequest { id: job.id }).await.unwrap();
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_calls_about_facts_and_entities_are_refused() {
    use Code::InvalidArgument;

    let t = Fixture::new(1).await;
    let mut client = t.client.clone();
    t.start().await;
    let claimed = t.claim("w").await;
    let answer = r#"{"facts": [{"statement": "Ada wrote.", "quote": "Ada wrote", "entities": [{"name": "Ada"}]}]}"#;
    client.submit_response(submit(&claimed, "w", answer)).await.unwrap();
    let rows = t.rows().await;

    let mut refused = Refused(Vec::new());
    let p = || "p".to_owned();
    let facts = || ListExtractionsRequest { project: p(), ..ListExtractionsRequest::default() };
    let entities = || ListEntitiesRequest { project: p(), ..ListEntitiesRequest::default() };
    for (project, code) in no_projects() {
        let what = format!("project {project:?}");
        let id = || NOBODY.to_owned();
        let (a, b, c) = (project.clone(), project.clone(), project.clone());
        let list = ListExtractionsRequest { project: project.clone(), ..facts() };
        refused.add(&what, client.list_extractions(list).await, code, "project");
        let get = GetExtractionRequest { project: a, id: id() };
        refused.add(&what, client.get_extraction(get).await, code, "project");
        let reject = RejectExtractionsRequest { project: b, ids: vec![id()], filter: None };
        refused.add(&what, client.reject_extractions(reject).await, code, "project");
        let get = GetEntityRequest { project: c, id: id() };
        refused.add(&what, client.get_entity(get).await, code, "project");
        let list = ListEntitiesRequest { project, ..entities() };
        refused.add(&what, client.list_entities(list).await, code, "project");
    }
    for page_size in NO_PAGE_SIZES {
        let what = format!("a page of {page_size}");
        let list = ListExtractionsRequest { page_size, ..facts() };
        refused.add(&what, client.list_extractions(list).await, InvalidArgument, "page_size");
        let list = ListEntitiesRequest { page_size, ..entities() };
        refused.add(&what, client.list_entities(list).await, InvalidArgument, "page_size");
    }
    for page_token in no_page_tokens() {
        let what = format!("token {page_token:?}");
        let list = ListExtractionsRequest { page_token: page_token.clone(), ..facts() };
        refused.add(&what, client.list_extractions(list).await, InvalidArgument, "page_token");
        let list = ListEntitiesRequest { page_token, ..entities() };
        refused.add(&what, client.list_entities(list).await, InvalidArgument, "page_token");
    }
    for id in no_ids() {
        let what = format!("id {id:?}");
        if !id.is_empty() {
            // Empty stands for all.
            let list = ListExtractionsRequest { chunk_id: id.clone(), ..facts() };
            refused.add(&what, client.list_extractions(list).await, InvalidArgument, "chunk_id");
            let list = ListExtractionsRequest { job_id: id.clone(), ..facts() };
            refused.add(&what, client.list_extractions(list).await, InvalidArgument, "job_id");
        }
        let get = GetExtractionRequest { project: p(), id: id.clone() };
        refused.add(&what, client.get_extraction(get).await, InvalidArgument, "id");
        let get = GetEntityRequest { project: p(), id: id.clone() };
        refused.add(&what, client.get_entity(get).await, InvalidArgument, "id");
        let reject = RejectExtractionsRequest { project: p(), ids: vec![NOBODY.to_owned(), id], filter: None };
        refused.add(&what, client.reject_extractions(reject).await, InvalidArgument, "ids[1]");
    }
    for count in [0, 1_001] {
        let reject = RejectExtractionsRequest { project: p(), ids: vec![NOBODY.to_owned(); count], filter: None };
        refused.add(&format!("{count} ids"), client.reject_extractions(reject).await, InvalidArgument, "ids");
    }
    for entity in ["a\0".to_owned(), long()] {
        let list = ListExtractionsRequest { entity: entity.clone(), ..facts() };
        let what = format!("entity {entity:?}");
        refused.add(&what, client.list_extractions(list).await, InvalidArgument, "entity");
    }
    let get = GetExtractionRequest { project: p(), id: NOBODY.to_owned() };
    refused.add("no fact", client.get_extraction(get).await, Code::NotFound, "extraction");
    let get = GetEntityRequest { project: p(), id: NOBODY.to_owned() };
    refused.add("no entity", client.get_entity(get).await, Code::NotFound, "entity");
    refused.check();
    assert_eq!(t.rows().await, rows, "nothing is half-written");

    let found = client.list_extractions(ListExtractionsRequest { entity: "ADA".to_owned(), ..facts() }).await.unwrap();
    let fact = found.into_inner().extractions.pop().unwrap();
    let get = GetExtractionRequest { project: p(), id: fact.id.clone() };
    assert_eq!(client.get_extraction(get).await.unwrap().into_inner().statement, "Ada wrote.");
    let entity = client.list_entities(entities()).await.unwrap().into_inner().entities.pop().unwrap();
    let get = GetEntityRequest { project: p(), id: entity.id };
    assert_eq!(client.get_entity(get).await.unwrap().into_inner().extractions.len(), 1);
    let reject = RejectExtractionsRequest { project: p(), ids: vec![NOBODY.to_owned(), fact.id], filter: None };
    assert_eq!(client.reject_extractions(reject).await.unwrap().into_inner().rejected_count, 1);
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_calls_of_workers_are_refused() {
    use Code::InvalidArgument;

    let t = Fixture::new(1).await;
    let mut client = t.client.clone();
    t.start().await;
    let claimed = t.claim("w").await;
    let rows = t.rows().await;
    let transient = FailureClass::Transient.into();
    let mut refused = Refused(Vec::new());
    // What the three have in common.
    let ids = no_ids().into_iter().map(|text| ("request_id", text));
    let messages = ["", "1", "*", "-", "1-1\0", "1-1 ", "18446744073709551616-0"].into_iter().map(str::to_owned);
    let messages = messages.chain([long()]).map(|text| ("message_id", text));
    let workers = ["", "a\0", "a\nb", "handed-back"].into_iter().map(str::to_owned);
    let workers = workers.chain([long()]).map(|text| ("worker", text));
    for (field, text) in ids.chain(messages).chain(workers) {
        let what = format!("{field} {text:?}");
        let (mut b, mut s, mut r) = (begin(&claimed, "w"), submit(&claimed, "w", "{}"), failure(&claimed, "w", 1));
        let slots = match field {
            "request_id" => [&mut b.request_id, &mut s.request_id, &mut r.request_id],
            "message_id" => [&mut b.message_id, &mut s.message_id, &mut r.message_id],
            _ => [&mut b.worker, &mut s.worker, &mut r.worker],
        };
        for slot in slots {
            slot.clone_from(&text);
        }
        refused.add(&what, client.begin_request(b).await, InvalidArgument, field);
        refused.add(&what, client.submit_response(s).await, InvalidArgument, field);
        refused.add(&what, client.report_failure(r).await, InvalidArgument, field);
    }
    let answer = || submit(&claimed, "w", "{\"facts\": []}");
    let cases = [
        ("no model", SubmitResponseRequest { model: String::new(), ..answer() }, "model"),
        ("a long model", SubmitResponseRequest { model: long(), ..answer() }, "model"),
        ("NUL in the model", SubmitResponseRequest { model: "m\0".to_owned(), ..answer() }, "model"),
        ("a long prompt version", SubmitResponseRequest { prompt_version: long(), ..answer() }, "prompt_version"),
        ("a long answer", SubmitResponseRequest { answer_json: " ".repeat((1 << 20) + 1), ..answer() }, "answer_json"),
        ("NUL as an answer", SubmitResponseRequest { answer_json: "\0".to_owned(), ..answer() }, "answer_json"),
        ("negative tokens", SubmitResponseRequest { prompt_tokens: -1, ..answer() }, "prompt_tokens"),
        ("many tokens", SubmitResponseRequest { completion_tokens: i64::MAX, ..answer() }, "completion_tokens"),
    ];
    for (what, request, field) in cases {
        refused.add(what, client.submit_response(request).await, InvalidArgument, field);
    }
    let report = || failure(&claimed, "w", transient);
    let negative = Some(prost_types::Duration { seconds: -1, nanos: 0 });
    let cases = [
        ("no class", ReportFailureRequest { class: 0, ..report() }, "class"),
        ("an unknown class", ReportFailureRequest { class: 4, ..report() }, "class"),
        ("a negative class", ReportFailureRequest { class: i32::MIN, ..report() }, "class"),
        ("no message", ReportFailureRequest { message: String::new(), ..report() }, "message"),
        ("a long message", ReportFailureRequest { message: long(), ..report() }, "message"),
        ("NUL in the message", ReportFailureRequest { message: "\0".to_owned(), ..report() }, "message"),
        ("a long model", ReportFailureRequest { model: long(), ..report() }, "model"),
        ("a negative wait", ReportFailureRequest { retry_after: negative, ..report() }, "retry_after"),
    ];
    for (what, request, field) in cases {
        refused.add(what, client.report_failure(request).await, InvalidArgument, field);
    }
    let unknown = SubmitResponseRequest { request_id: NOBODY.to_owned(), ..answer() };
    refused.add("an unknown request", client.submit_response(unknown).await, Code::NotFound, "request");
    refused.check();
    assert_eq!(t.rows().await, rows, "nothing is half-written");
    assert_eq!(t.messages().await, (1, 1));

    assert!(client.begin_request(begin(&claimed, "w")).await.unwrap().into_inner().wanted);
    let edge = SubmitResponseRequest { model: "m".repeat(256), prompt_tokens: 1_000_000_000, ..answer() };
    assert!(!client.submit_response(edge).await.unwrap().into_inner().already_done);
    t.stop().await;
}
