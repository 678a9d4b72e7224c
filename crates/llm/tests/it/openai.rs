use std::time::Duration;

use serde_json::{Value, json};
use waybill_domain::ErrorClass;
use waybill_llm::{
    Answer, Dropped, ExtractionSettings, ExtractionTask, LlmError, LlmProvider, OpenAi, OpenAiConfig, Rules, Usage,
    limits::MAX_ANSWER_BYTES,
};

use crate::server::{Reply, Request, Server};

const KEY: &str = "sk-very-secret";

pub(crate) fn task() -> ExtractionTask {
    ExtractionTask {
        text: "Acme was founded in Zürich in 1999.".to_owned(),
        headings: vec!["History".to_owned()],
        title: "Acme".to_owned(),
        settings: ExtractionSettings { enabled: true, ..ExtractionSettings::default() },
    }
}

pub(crate) fn good() -> String {
    json!({"facts": [{
        "kind": "founding", "statement": "Acme was founded in 1999.", "subject": "Acme", "predicate": "founded in",
        "object": "1999", "confidence": 0.9, "quote": "founded in Zürich in 1999",
        "entities": [{"kind": "company", "name": "Acme", "role": "subject"}],
    }]})
    .to_string()
}

pub(crate) fn config(url: &str) -> OpenAiConfig {
    OpenAiConfig {
        base_url: format!("{url}/v1/"),
        model: "m".to_owned(),
        api_key: Some(KEY.into()),
        ..OpenAiConfig::default()
    }
}

/// Makes one call to a server that replies so.
async fn call(
    reply: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static,
) -> (Result<Answer, LlmError>, Vec<Request>) {
    let server = Server::start(reply).await;
    let provider = OpenAi::new(&config(&server.url)).unwrap();
    let answer = provider.extract(&task()).await;
    if let Err(error) = &answer {
        let printed = format!("{error} {error:?} {:?}", error.excerpt());
        assert!(!printed.contains(KEY), "{printed}");
    }
    (answer, server.requests())
}

#[tokio::test]
async fn a_good_answer_is_read() {
    let (answer, requests) = call(|_, _| Reply::completion(&good())).await;
    let answer = answer.unwrap();
    assert_eq!(answer.extraction.facts.len(), 1);
    assert_eq!(answer.extraction.facts[0].quote, "founded in Zürich in 1999");
    assert_eq!(answer.usage, Usage { prompt_tokens: 100, completion_tokens: 20 });
    assert_eq!((&*answer.model, answer.repaired), ("m", false));

    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].line, "POST /v1/chat/completions HTTP/1.1");
    assert_eq!(requests[0].header("authorization"), Some("Bearer sk-very-secret"));
    let body = &requests[0].body;
    assert_eq!((&body["stream"], &body["max_tokens"]), (&json!(false), &json!(3072)));
    assert_eq!(body["response_format"]["type"], "json_schema");
    assert_eq!(body["response_format"]["json_schema"]["schema"]["properties"]["facts"]["maxItems"], 16);
    assert!(body["messages"][1]["content"].as_str().unwrap().contains("Zürich in 1999."));
}

#[tokio::test]
async fn a_task_may_name_its_model() {
    let server = Server::start(|_, _| Reply::completion(&good())).await;
    let provider = OpenAi::new(&OpenAiConfig { json_schema: false, ..config(&server.url) }).unwrap();
    let mut task = task();
    task.settings.model = Some("other".to_owned());
    assert_eq!(provider.extract(&task).await.unwrap().model, "other");
    let body = &server.requests()[0].body;
    assert_eq!(body["model"], "other");
    assert!(body.get("response_format").is_none());
}

#[tokio::test]
async fn an_answer_with_text_around_it_needs_no_repair() {
    let (answer, requests) = call(|_, _| Reply::completion(&format!("Sure:\n```json\n{}\n```\nDone.", good()))).await;
    assert!(!answer.unwrap().repaired);
    assert_eq!(requests.len(), 1);
}

#[tokio::test]
async fn rubbish_is_repaired_once() {
    let reply = |number: usize, _: &Request| match number {
        0 => Reply::completion("{\"facts\": [oops"),
        _ => Reply::completion(&good()),
    };
    let (answer, requests) = call(reply).await;
    let answer = answer.unwrap();
    assert!(answer.repaired);
    assert_eq!(answer.extraction.facts.len(), 1);
    assert_eq!(answer.usage, Usage { prompt_tokens: 200, completion_tokens: 40 });
    let messages = requests[1].body["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 4);
    assert_eq!(messages[2], json!({"role": "assistant", "content": "{\"facts\": [oops"}));
    assert!(messages[3]["content"].as_str().unwrap().contains("no valid JSON"));
}

#[tokio::test]
async fn rubbish_twice_is_a_bad_answer() {
    let (answer, requests) = call(|_, _| Reply::completion(&format!("no\0 {KEY} {}", "é".repeat(1_000)))).await;
    let error = answer.unwrap_err();
    assert!(matches!(error, LlmError::BadAnswer { .. }), "{error:?}");
    assert_eq!(error.class(), ErrorClass::Transient);
    let excerpt = error.excerpt().unwrap();
    assert_eq!(excerpt.chars().count(), 300);
    assert!(excerpt.starts_with("no  [redacted] éé"), "{excerpt}");
    assert!(!error.to_string().contains('é') && !format!("{error:?}").contains('é'));
    assert_eq!(requests.len(), 2);
    assert_eq!(error.usage(), Usage { prompt_tokens: 200, completion_tokens: 40 }, "both answers were paid for");
}

#[tokio::test]
async fn an_answer_cut_before_its_first_fact_is_asked_for_in_short() {
    let reply = |number: usize, _: &Request| match number {
        0 => Reply::finished(&good()[..40], "length"),
        _ => Reply::completion(&good()),
    };
    let (answer, requests) = call(reply).await;
    assert!(answer.unwrap().repaired);
    assert!(requests[1].body["messages"][3]["content"].as_str().unwrap().contains("most important"));
    let (answer, requests) = call(|_, _| Reply::finished(&good()[..40], "length")).await;
    assert!(matches!(answer.unwrap_err(), LlmError::BadAnswer { .. }));
    assert_eq!(requests.len(), 2);
}

/// An answer with one whole fact, and then this.
fn begun(tail: &str) -> String {
    good().replace("]}]}", &format!("]}}, {tail}"))
}

#[tokio::test]
async fn the_whole_facts_of_a_cut_answer_count_and_cost_no_second_request() {
    // The server may say why the answer ends or not; it may break before it is cut.
    for (tail, reason) in [(r#"{"kind": "fou"#, "length"), (r#"{"kind": "fou"#, "stop"), ("{oops, and on", "length")] {
        let (answer, requests) = call(move |_, _| Reply::finished(&begun(tail), reason)).await;
        let answer = answer.unwrap();
        assert_eq!(answer.extraction.facts.len(), 1, "{tail}");
        assert_eq!(answer.extraction.dropped, Dropped { truncated: 1, ..Dropped::default() }, "{tail}");
        assert_eq!((answer.repaired, requests.len()), (false, 1), "{tail}");
    }
}

#[tokio::test]
async fn a_broken_answer_is_repaired_and_its_whole_facts_are_kept_if_that_fails() {
    let broken = begun(r#"{"kind": oops}]}"#);
    for second in [good(), broken.clone(), "no".to_owned()] {
        let is_good = second == good();
        let first = broken.clone();
        let reply = move |number: usize, _: &Request| Reply::completion(if number == 0 { &first } else { &second });
        let (answer, requests) = call(reply).await;
        let answer = answer.unwrap();
        assert_eq!((answer.extraction.facts.len(), requests.len(), answer.repaired), (1, 2, true));
        assert_eq!(answer.extraction.dropped.truncated, u32::from(!is_good));
        assert_eq!(answer.usage.completion_tokens, 40);
    }
    let reply = move |number: usize, _: &Request| match number {
        0 => Reply::completion(&broken),
        _ => Reply::error(400, "", "context length exceeded"),
    };
    assert_eq!(call(reply).await.0.unwrap().extraction.facts.len(), 1);
}

#[tokio::test]
async fn what_goes_beyond_what_was_asked_for_is_dropped() {
    let mut many: Value = serde_json::from_str(&good()).unwrap();
    let fact = many["facts"][0].clone();
    many["facts"] = vec![fact; 5].into();
    many["facts"][0]["entities"] = (0..4).map(|number| json!({"kind": "k", "name": format!("n{number}")})).collect();
    let server = Server::start(move |_, _| Reply::completion(&many.to_string())).await;
    let config = OpenAiConfig { facts_max: 3, entities_per_fact_max: 2, ..config(&server.url) };
    let extraction = OpenAi::new(&config).unwrap().extract(&task()).await.unwrap().extraction;
    let entities: Vec<_> = extraction.facts.iter().map(|fact| fact.entities.len()).collect();
    let dropped = extraction.dropped;
    assert_eq!((entities, dropped.too_many, dropped.entities.too_many), (vec![2, 1, 1], 2, 2));
    let body = &server.requests()[0].body;
    assert_eq!(body["max_tokens"], 512 + 3 * 160);
    assert!(body["messages"][0]["content"].as_str().unwrap().contains("At most 3 facts"));
}

#[tokio::test]
async fn a_server_that_refuses_a_schema_gets_a_weaker_one_from_then_on() {
    // As OpenAI, vLLM and llama.cpp say it; the last two refuse bounds alone.
    for (message, takes) in [
        ("Unknown parameter: 'response_format'.", "none"),
        ("The provided JSON schema contains features not supported by xgrammar.", "plain"),
        ("Failed to initialize samplers: failed to parse grammar", "plain"),
    ] {
        let form = |request: &Request| match request.body.get("response_format") {
            None => "none",
            Some(format) if format.to_string().contains("maxLength") => "bounded",
            Some(_) => "plain",
        };
        let server = Server::start(move |_, request| match form(request) {
            form if form == takes || form == "none" => Reply::completion(&good()),
            _ => Reply::error(400, "", message),
        })
        .await;
        let provider = OpenAi::new(&config(&server.url)).unwrap();
        for _ in 0..2 {
            assert_eq!(provider.extract(&task()).await.unwrap().extraction.facts.len(), 1);
        }
        let forms: Vec<_> = server.requests().iter().map(form).collect();
        let expected =
            if takes == "none" { vec!["bounded", "plain", "none", "none"] } else { vec!["bounded", "plain", "plain"] };
        assert_eq!(forms, expected, "{message}");
    }
}

#[tokio::test]
async fn a_server_that_refuses_everything_is_asked_no_more_than_three_times() {
    let (answer, requests) = call(|_, _| Reply::error(400, "", "schema")).await;
    assert_eq!(answer.unwrap_err().class(), ErrorClass::Permanent);
    assert_eq!(requests.len(), 3);
}

#[tokio::test]
async fn silence_is_a_timeout() {
    let server = Server::start(|_, _| Reply::Silence).await;
    let provider = OpenAi::new(&OpenAiConfig { timeout_ms: 50, ..config(&server.url) }).unwrap();
    let error = provider.extract(&task()).await.unwrap_err();
    assert!(matches!(error, LlmError::Timeout), "{error:?}");
    assert_eq!(error.class(), ErrorClass::Transient);
}

#[tokio::test]
async fn a_throttling_server_says_how_long_to_wait() {
    for (status, headers, wait) in [
        (429, "retry-after: 7\r\n", Some(Duration::from_secs(7))),
        (429, "", None),
        (503, "retry-after: 3\r\n", Some(Duration::from_secs(3))),
    ] {
        let (answer, requests) = call(move |_, _| Reply::error(status, headers, "slow down")).await;
        let error = answer.unwrap_err();
        assert_eq!((error.class(), error.retry_after()), (ErrorClass::Throttled, wait));
        assert_eq!(requests.len(), 1);
    }
}

#[tokio::test]
async fn a_failing_server_is_unavailable() {
    for status in [500, 502, 503, 408] {
        let (answer, _) = call(move |_, _| Reply::error(status, "", "it broke")).await;
        let error = answer.unwrap_err();
        assert!(matches!(&error, LlmError::Unavailable(reason) if reason.contains("it broke")), "{error:?}");
        assert_eq!(error.class(), ErrorClass::Transient);
    }
}

#[tokio::test]
async fn a_server_that_is_gone_is_unavailable() {
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let provider = OpenAi::new(&config(&format!("http://{closed}"))).unwrap();
    let error = provider.extract(&task()).await.unwrap_err();
    assert!(matches!(error, LlmError::Unavailable(_)), "{error:?}");
}

#[tokio::test]
async fn a_refusal_is_permanent_and_never_shows_the_key() {
    for status in [400, 401, 403, 404, 422] {
        let (answer, requests) = call(move |_, _| Reply::error(status, "", &format!("wrong key: {KEY}"))).await;
        let error = answer.unwrap_err();
        assert!(matches!(&error, LlmError::Refused { status: got, .. } if *got == status), "{error:?}");
        assert_eq!(error.class(), ErrorClass::Permanent);
        assert!(error.to_string().contains("wrong key: [redacted]"), "{error}");
        assert_eq!(requests.len(), 1);
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (answer, requests) = call(|_, _| Reply::error(302, "location: http://127.0.0.1:1/\r\n", "")).await;
    assert_eq!(answer.unwrap_err().class(), ErrorClass::Permanent);
    assert_eq!(requests.len(), 1);
}

#[tokio::test]
async fn a_line_cut_in_the_middle_is_transient() {
    for reply in [Reply::Truncated as fn(String) -> Reply, Reply::Unannounced] {
        let (answer, _) = call(move |_, _| reply("{\"choices\": [{\"mess".to_owned())).await;
        let error = answer.unwrap_err();
        assert!(matches!(error, LlmError::Unavailable(_)), "{error:?}");
    }
}

#[tokio::test]
async fn an_oversized_answer_is_not_read_to_its_end() {
    let body = "x".repeat(MAX_ANSWER_BYTES + 1);
    let announced = body.clone();
    let (answer, _) = call(move |_, _| Reply::Answer(200, "", announced.clone())).await;
    assert!(matches!(answer.unwrap_err(), LlmError::TooLarge));
    let (answer, _) = call(move |_, _| Reply::Unannounced(body.clone())).await;
    let error = answer.unwrap_err();
    assert!(matches!(error, LlmError::TooLarge), "{error:?}");
    assert_eq!(error.class(), ErrorClass::Permanent);
}

#[tokio::test]
async fn an_answer_that_is_no_completion_is_bad() {
    for body in [r#"{"choices": []}"#, r#"{"hello": 1}"#, "<html>"] {
        let (answer, requests) = call(move |_, _| Reply::Answer(200, "", body.to_owned())).await;
        let error = answer.unwrap_err();
        assert!(matches!(error, LlmError::BadAnswer { .. }), "{error:?}");
        assert_eq!(requests.len(), 1);
    }
}

#[tokio::test]
async fn an_answer_without_content_is_repaired() {
    let reply = |number: usize, _: &Request| match number {
        0 => Reply::Answer(200, "", r#"{"choices": [{"message": {"content": null}}]}"#.to_owned()),
        _ => Reply::completion(&good()),
    };
    let (answer, requests) = call(reply).await;
    let answer = answer.unwrap();
    assert!(answer.repaired);
    assert_eq!(answer.usage.prompt_tokens, 100);
    // No empty message of the model's, and no second one of the user's behind the first.
    assert_eq!(requests[1].body["messages"].as_array().unwrap().len(), 2);
    assert!(requests[1].body["messages"][1]["content"].as_str().unwrap().ends_with("leave the answer empty."));
}

#[tokio::test]
async fn a_refused_repair_leaves_the_task_to_be_tried_again() {
    let reply = |number: usize, _: &Request| match number {
        0 => Reply::completion("rubbish"),
        _ => Reply::error(400, "", "context length exceeded"),
    };
    let error = call(reply).await.0.unwrap_err();
    assert_eq!((error.class(), error.excerpt()), (ErrorClass::Transient, Some("rubbish")));
    assert_eq!(error.usage(), Usage { prompt_tokens: 100, completion_tokens: 20 });
}

#[tokio::test]
async fn a_repair_that_fails_is_that_failure_and_the_first_answer_was_paid_for() {
    let reply = |number: usize, _: &Request| match number {
        0 => Reply::completion("rubbish"),
        _ => Reply::error(429, "retry-after: 7\r\n", "slow down"),
    };
    let error = call(reply).await.0.unwrap_err();
    assert!(matches!(error.cause(), LlmError::Throttled { .. }), "{error:?}");
    assert_eq!((error.class(), error.retry_after()), (ErrorClass::Throttled, Some(Duration::from_secs(7))));
    assert_eq!(error.usage(), Usage { prompt_tokens: 100, completion_tokens: 20 });
}

#[tokio::test]
async fn rules_answer_without_a_server() {
    let provider: Box<dyn LlmProvider> = Box::new(Rules::new());
    let answer = provider.extract(&task()).await.unwrap();
    assert_eq!((provider.name(), &*answer.model), ("rules", provider.model()));
    assert_eq!(answer.extraction.facts[0].quote, task().text);
    assert_eq!(answer.usage, Usage::default());
}
