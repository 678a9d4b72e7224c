//! Workers in other processes: begin, hand in, report.

use serde_json::json;
use tonic::Code;
use waybill_api::extraction::v1::{CancelJobRequest, FailureClass, GetJobRequest};

use crate::support::{Fixture, begin, expect, failure, submit};

/// An answer with a fact of each sort: kept, kept under another statement, without its quote,
/// too long, and without a statement.
fn answer() -> String {
    let facts = json!([
        {"kind": "claim", "statement": "Ada programmed.", "quote": "Ada  wrote the first program.", "confidence": 0.9,
         "entities": [{"kind": "person", "name": "Ada", "role": "subject"}]},
        {"kind": "claim", "statement": "ada  programmed.", "quote": "Ada wrote"},
        {"kind": "claim", "statement": "Carl slept.", "quote": "Carl slept."},
        {"kind": "claim", "statement": "s".repeat(3_000), "quote": "Bob"},
        {"kind": "claim", "quote": "Bob read it"},
    ]);
    format!("Here you are:\n```json\n{}\n```", json!({"facts": facts}))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_read_with_distrust_and_stored() {
    let t = Fixture::new(1).await;
    let mut client = t.client.clone();
    let job = t.start().await;
    let claimed = t.claim("w").await;
    let begun = client.begin_request(begin(&claimed, "w")).await.unwrap().into_inner();
    assert!(begun.wanted);
    assert_eq!((begun.project.as_str(), begun.title.as_str()), ("p", "A title"));
    assert_eq!(begun.headings, ["One", "Two"]);
    assert_eq!(begun.text, "1. Ada wrote the first program. Bob read it twice.");
    let roles: Vec<&str> = begun.messages.iter().map(|message| message.role.as_str()).collect();
    assert_eq!(roles, ["system", "user"]);
    assert!(begun.messages[1].content.contains(&begun.text) && begun.answer_schema.contains("\"facts\""));
    assert_eq!((begun.attempt, begun.attempts_max, begun.lease.unwrap().seconds), (1, 2, 30));
    assert_eq!(t.sql("SELECT state FROM llm_request").await, "running");

    let stored = client.submit_response(submit(&claimed, "w", &answer())).await.unwrap().into_inner();
    assert!(!stored.already_done);
    assert_eq!(stored.fact_count, 1, "two of the same statement are one");
    let dropped = stored.dropped.unwrap();
    assert_eq!((dropped.quote_not_found, dropped.too_long, dropped.malformed, dropped.too_many), (1, 1, 1, 0));
    let facts = "SELECT e.statement, e.quote, substr(c.text, e.quote_start + 1, e.quote_end - e.quote_start) = e.quote,
                        e.model, e.prompt_version FROM extraction e JOIN chunk c ON c.id = e.chunk_id";
    assert_eq!(
        t.sql(facts).await,
        format!("Ada programmed.|Ada wrote the first program.|t|m|{}", waybill_llm::PROMPT_VERSION)
    );
    assert_eq!(t.sql("SELECT canonical FROM entity").await, "ada");
    assert_eq!(t.messages().await, (0, 0), "the service has removed the message");
    let job = client.get_job(GetJobRequest { id: job.id }).await.unwrap().into_inner();
    assert_eq!((job.done_count, job.fact_count, job.dropped_fact_count), (1, 1, 3));
    assert_eq!((job.prompt_tokens, job.completion_tokens), (100, 20));

    // The answer to the call was lost, and it is made again; or another worker has it too.
    let rows = t.rows().await;
    for worker in ["w", "another"] {
        let again = client.submit_response(submit(&claimed, worker, &answer())).await.unwrap().into_inner();
        assert!(again.already_done, "{worker}");
    }
    assert_eq!(t.rows().await, rows);
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_lost_the_message_writes_nothing() {
    let t = Fixture::new(1).await;
    let mut client = t.client.clone();
    t.start().await;
    let claimed = t.claim("old").await;
    client.begin_request(begin(&claimed, "old")).await.unwrap();
    let other = t.take_over("new").await;
    assert_eq!(other.stream_id, claimed.stream_id);
    let rows = t.rows().await;
    let reason = "taken over by worker \"new\": drop the answer";
    let lost = client.begin_request(begin(&claimed, "old")).await.unwrap_err();
    expect("begin", &lost, Code::FailedPrecondition, "", reason);
    let lost = client.submit_response(submit(&claimed, "old", &answer())).await.unwrap_err();
    expect("submit", &lost, Code::FailedPrecondition, "", reason);
    let permanent = FailureClass::Permanent.into();
    let lost = client.report_failure(failure(&claimed, "old", permanent)).await.unwrap_err();
    expect("report", &lost, Code::FailedPrecondition, "", reason);

    t.queue.hand_back(std::slice::from_ref(&other)).await.unwrap();
    let lost = client.submit_response(submit(&claimed, "new", &answer())).await.unwrap_err();
    expect("given back", &lost, Code::FailedPrecondition, "", "in nobody's hands");
    let mut wrong = submit(&claimed, "new", &answer());
    wrong.message_id = "1-1".to_owned();
    let lost = client.submit_response(wrong).await.unwrap_err();
    expect("another message", &lost, Code::FailedPrecondition, "", "no message 1-1");
    assert_eq!(t.rows().await, rows);
    assert_eq!(t.messages().await, (1, 1));

    // The next one goes on where the first was.
    let next = t.take_over("next").await;
    let stored = client.submit_response(submit(&next, "next", &answer())).await.unwrap().into_inner();
    assert_eq!(stored.fact_count, 1);
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_only_good_for_its_own_request() {
    let t = Fixture::new(2).await;
    let mut client = t.client.clone();
    t.start().await;
    let (one, two) = (t.claim("w").await, t.claim("w").await);
    let mut mixed = submit(&one, "w", &answer());
    mixed.request_id = two.message.request_id.to_string();
    let status = client.submit_response(mixed).await.unwrap_err();
    expect("mixed", &status, Code::FailedPrecondition, "", "no message");
    assert_eq!(t.sql("SELECT count(*) FROM extraction").await, "0");
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_none_can_be_mended() {
    let t = Fixture::new(1).await;
    let mut client = t.client.clone();
    t.start().await;
    let claimed = t.claim("w").await;
    client.begin_request(begin(&claimed, "w")).await.unwrap();
    let rows = t.rows().await;
    for wrong in ["", "I found nothing.", "{\"facts\": [", "{\"facts\": 7}", "[]"] {
        let status = client.submit_response(submit(&claimed, "w", wrong)).await.unwrap_err();
        expect(wrong, &status, Code::InvalidArgument, "answer_json", "Ask the model again");
    }
    assert_eq!(t.rows().await, rows);
    let stored = client.submit_response(submit(&claimed, "w", "{\"facts\": []}")).await.unwrap().into_inner();
    assert_eq!((stored.already_done, stored.fact_count), (false, 0));
    assert_eq!(t.sql("SELECT state FROM llm_request").await, "done");
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_nobody_wants_leaves_no_message() {
    let t = Fixture::new(3).await;
    let mut client = t.client.clone();
    let job = t.start().await;
    let (one, two, three) = (t.claim("w").await, t.claim("w").await, t.claim("w").await);
    client.begin_request(begin(&two, "w")).await.unwrap();
    client.cancel_job(CancelJobRequest { id: job.id }).await.unwrap();
    assert!(!client.begin_request(begin(&one, "w")).await.unwrap().into_inner().wanted);
    let late = client.submit_response(submit(&two, "w", &answer())).await.unwrap().into_inner();
    assert!(late.already_done);
    let report = failure(&three, "w", FailureClass::Transient.into());
    let reported = client.report_failure(report).await.unwrap().into_inner();
    assert_eq!((reported.attempts, reported.given_up), (0, false));
    assert_eq!(t.messages().await, (0, 0));
    assert_eq!(t.sql("SELECT count(*) FROM extraction").await, "0");
    assert_eq!(t.sql("SELECT DISTINCT state FROM llm_request").await, "cancelled");
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_cost_attempts_until_the_request_is_dead() {
    let t = Fixture::new(1).await;
    let mut client = t.client.clone();
    t.start().await;
    let claimed = t.claim("w").await;
    // Throttled: at no cost, and it need not even have been begun.
    let throttled = FailureClass::Throttled.into();
    let reported = client.report_failure(failure(&claimed, "w", throttled)).await.unwrap().into_inner();
    assert_eq!((reported.attempts, reported.given_up), (0, false));
    assert_eq!(t.sql("SELECT last_error, last_error_class FROM llm_request").await, "it broke|throttled");

    // It is there for the next at once, although nobody was silent.
    let lease = std::time::Duration::from_secs(30);
    let next = t.queue.reclaim("x", claimed.priority, lease, 1).await.unwrap().pop().unwrap();
    let transient = FailureClass::Transient.into();
    let mut report = failure(&next, "x", transient);
    report.retry_after = Some(prost_types::Duration { seconds: 20, nanos: 0 });
    let reported = client.report_failure(report).await.unwrap().into_inner();
    assert_eq!((reported.attempts, reported.given_up), (1, false));
    let waits = t.queue.reclaim("y", claimed.priority, lease, 1).await.unwrap();
    assert!(waits.is_empty(), "it waits for 20 of the lease's 30 seconds");
    let sooner = std::time::Duration::from_secs(10);
    let next = t.queue.reclaim("y", claimed.priority, sooner, 1).await.unwrap().pop().unwrap();

    let begun = client.begin_request(begin(&next, "y")).await.unwrap().into_inner();
    assert_eq!((begun.attempt, begun.attempts_max), (2, 2));
    let reported = client.report_failure(failure(&next, "y", transient)).await.unwrap().into_inner();
    assert_eq!((reported.attempts, reported.given_up), (2, true));
    let letter = "SELECT error, error_class, attempts, model FROM dead_letter";
    assert_eq!(t.sql(letter).await, "it broke|transient|2|m");
    assert_eq!(t.sql("SELECT state FROM llm_request").await, "dead");
    assert_eq!(t.messages().await, (0, 0));
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_permanent_failure_ends_the_request_at_once() {
    let t = Fixture::new(1).await;
    let mut client = t.client.clone();
    t.start().await;
    let claimed = t.claim("w").await;
    let report = failure(&claimed, "w", FailureClass::Permanent.into());
    let reported = client.report_failure(report).await.unwrap().into_inner();
    assert_eq!((reported.attempts, reported.given_up), (1, true));
    assert_eq!(t.sql("SELECT error_class FROM dead_letter").await, "permanent");
    assert_eq!(t.messages().await, (0, 0));
    t.stop().await;
}
