use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use waybill_domain::ErrorClass;
use waybill_models::{
    EmbeddingProvider, ModelError, OpenAiConfig, ProviderConfig, ProviderKind, Purpose, TeiConfig, build,
};

use crate::server::{Reply, Request, Server};

/// Makes a text's vector: its number, which stands behind the last space, and two more.
fn vector(text: &Value) -> Value {
    let number = text.as_str().unwrap().rsplit(' ').next().unwrap().parse().unwrap_or(0.0);
    json!([number, 0.5, -0.25])
}

fn texts(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("text {number}")).collect()
}

/// Answers as OpenAI does, but in the reverse order.
pub(crate) fn openai_answer(request: &Request) -> Value {
    let inputs = request.body["input"].as_array().unwrap();
    let data: Vec<Value> = inputs
        .iter()
        .enumerate()
        .rev()
        .map(|(index, text)| json!({"object": "embedding", "index": index, "embedding": vector(text)}))
        .collect();
    json!({"object": "list", "data": data, "model": "m", "usage": {"total_tokens": 1}})
}

fn tei_info() -> Value {
    json!({
        "model_id": "BAAI/bge-small-en", "model_type": {"embedding": {"pooling": "mean"}},
        "max_input_length": 512, "max_client_batch_size": 3, "version": "1.8.0",
    })
}

/// Answers as TEI does.
pub(crate) fn tei_answer(request: &Request) -> Value {
    if request.line.starts_with("GET /info") {
        return tei_info();
    }
    request.body["inputs"].as_array().unwrap().iter().map(vector).collect()
}

pub(crate) fn openai(url: &str) -> ProviderConfig {
    let openai = OpenAiConfig {
        base_url: format!("{url}/v1"),
        model: "m".to_owned(),
        dimensions: Some(3),
        batch: 4,
        ..OpenAiConfig::default()
    };
    ProviderConfig { kind: ProviderKind::OpenAi, openai, ..ProviderConfig::default() }
}

pub(crate) fn tei(url: &str) -> ProviderConfig {
    let tei = TeiConfig { base_url: url.to_owned(), dimensions: Some(3), ..TeiConfig::default() };
    ProviderConfig { kind: ProviderKind::Tei, tei, ..ProviderConfig::default() }
}

async fn embed(provider: &Arc<dyn EmbeddingProvider>, count: usize) -> Vec<Vec<f32>> {
    provider.embed(&texts(count), Purpose::Document).await.unwrap()
}

/// Starts one server of each kind that does `reply` to every embedding request, and
/// returns what the providers make of it.
async fn failures(reply: impl Fn() -> Reply + Clone + Send + Sync + 'static) -> Vec<ModelError> {
    let mut errors = Vec::new();
    let again = reply.clone();
    let server = Server::start(move |_| again()).await;
    let provider = build(&openai(&server.url)).await.unwrap();
    errors.push(provider.embed(&texts(2), Purpose::Query).await.unwrap_err());

    let server = Server::start(
        move |request| {
            if request.line.starts_with("GET /info") { Reply::ok(&tei_info()) } else { reply() }
        },
    )
    .await;
    let provider = build(&tei(&server.url)).await.unwrap();
    errors.push(provider.embed(&texts(2), Purpose::Query).await.unwrap_err());
    errors
}

#[tokio::test]
async fn openai_vectors_come_in_the_order_of_the_texts() {
    let server = Server::start(|request| Reply::ok(&openai_answer(request))).await;
    let provider = build(&openai(&server.url)).await.unwrap();
    assert_eq!((provider.info().name.as_str(), provider.info().dimensions), ("m", 3));
    let vectors = embed(&provider, 10).await;
    for (number, vector) in vectors.iter().enumerate() {
        assert_eq!(vector, &[number as f32, 0.5, -0.25]);
    }
    let requests = server.requests();
    let mut counts: Vec<usize> = requests.iter().map(|request| request.count("input")).collect();
    counts.sort_unstable();
    assert_eq!(counts, [2, 4, 4]);
    for request in requests {
        assert!(request.line.starts_with("POST /v1/embeddings HTTP/1.1"), "{}", request.line);
        assert_eq!(request.body["model"], "m");
        assert_eq!(request.body["encoding_format"], "float");
        assert!(request.body.get("dimensions").is_none());
        assert_eq!(request.header("authorization"), None);
    }
}

#[tokio::test]
async fn openai_asks_for_the_dimensions_it_was_not_told() {
    let server = Server::start(|request| Reply::ok(&openai_answer(request))).await;
    let mut config = openai(&server.url);
    config.openai.dimensions = None;
    assert_eq!(build(&config).await.unwrap().info().dimensions, 3);
}

#[tokio::test]
async fn openai_sends_key_prefix_and_dimensions_when_told_to() {
    let server = Server::start(|request| Reply::ok(&openai_answer(request))).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key");
    std::fs::write(&file, "sk-secret\n").unwrap();
    let mut config = openai(&server.url);
    config.openai.api_key_file = Some(file);
    config.openai.send_dimensions = true;
    config.openai.query_prefix = "query: ".to_owned();
    let provider = build(&config).await.unwrap();
    provider.embed(&texts(1), Purpose::Query).await.unwrap();
    let request = server.requests().remove(0);
    assert_eq!(request.header("authorization"), Some("Bearer sk-secret"));
    assert_eq!(request.body["dimensions"], 3);
    assert_eq!(request.body["input"], json!(["query: text 0"]));
}

#[tokio::test]
async fn tei_vectors_come_in_batches_that_the_server_takes() {
    let server = Server::start(|request| Reply::ok(&tei_answer(request))).await;
    let mut config = tei(&server.url);
    config.tei.dimensions = None;
    let provider = build(&config).await.unwrap();
    let info = provider.info();
    assert_eq!((info.name.as_str(), info.dimensions), ("BAAI/bge-small-en", 3));
    assert_eq!(info.max_tokens, 512);
    let vectors = embed(&provider, 7).await;
    assert_eq!(vectors.len(), 7);
    assert_eq!(vectors[6], [6.0, 0.5, -0.25]);
    for request in server.requests().iter().filter(|request| request.line.starts_with("POST")) {
        assert!(request.line.starts_with("POST /embed HTTP/1.1"), "{}", request.line);
        assert!(request.count("inputs") <= 3);
        assert_eq!(request.body["normalize"], true);
        assert_eq!(request.body["truncate"], true);
    }
}

#[tokio::test]
async fn throttling_says_how_long_to_wait() {
    let body = json!({"error": {"message": "slow down"}}).to_string();
    let reply = move || Reply::Answer(429, "retry-after: 7\r\n", body.clone());
    for error in failures(reply).await {
        assert_eq!(error.class(), ErrorClass::Throttled, "{error}");
        assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
    }
}

#[tokio::test]
async fn throttling_may_leave_the_wait_open() {
    for error in failures(|| Reply::Answer(429, "", String::new())).await {
        assert_eq!((error.class(), error.retry_after()), (ErrorClass::Throttled, None), "{error}");
    }
}

#[tokio::test]
async fn a_server_error_is_transient() {
    let body = json!({"error": {"message": "out of memory"}}).to_string();
    for error in failures(move || Reply::Answer(500, "", body.clone())).await {
        assert_eq!(error.class(), ErrorClass::Transient, "{error}");
        assert!(error.to_string().contains("out of memory"), "{error}");
    }
}

#[tokio::test]
async fn a_refused_request_is_permanent_and_says_why() {
    let body = json!({"error": "no such model"}).to_string();
    for error in failures(move || Reply::Answer(404, "", body.clone())).await {
        assert_eq!(error.class(), ErrorClass::Permanent, "{error}");
        assert!(matches!(error, ModelError::Rejected { status: 404, .. }));
        assert!(error.to_string().contains("no such model"), "{error}");
    }
}

#[tokio::test]
async fn no_answer_in_time_is_transient() {
    let server = Server::start(|_| Reply::Silence).await;
    let mut config = openai(&server.url);
    config.openai.timeout_ms = 50;
    let provider = build(&config).await.unwrap();
    let error = provider.embed(&texts(1), Purpose::Query).await.unwrap_err();
    assert!(matches!(error, ModelError::Timeout { timeout_ms: 50, .. }), "{error}");
    assert_eq!(error.class(), ErrorClass::Transient);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_transient() {
    let server = Server::start(|_| Reply::Silence).await;
    let url = server.url.clone();
    drop(server);
    let Err(error) = build(&tei(&url)).await else { panic!("the provider connected") };
    // The socket may close a moment after the drop; either way nobody answers.
    assert_eq!(error.class(), ErrorClass::Transient, "{error}");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_transient() {
    for error in failures(|| Reply::Truncated("[[1.0,".to_owned())).await {
        assert_eq!(error.class(), ErrorClass::Transient, "{error}");
    }
}

async fn bad_answers(openai_body: Value, tei_body: Value) -> Vec<String> {
    let mut problems = Vec::new();
    let server = Server::start(move |_| Reply::ok(&openai_body)).await;
    let provider = build(&openai(&server.url)).await.unwrap();
    let first = provider.embed(&texts(2), Purpose::Document).await.unwrap_err();
    let server = Server::start(move |request| {
        Reply::ok(if request.line.starts_with("GET /info") { &tei_body[0] } else { &tei_body[1] })
    })
    .await;
    let provider = build(&tei(&server.url)).await.unwrap();
    let second = provider.embed(&texts(2), Purpose::Document).await.unwrap_err();
    for error in [first, second] {
        assert_eq!(error.class(), ErrorClass::Permanent, "{error}");
        assert!(matches!(error, ModelError::BadAnswer { .. }), "{error}");
        problems.push(error.to_string());
    }
    problems
}

#[tokio::test]
async fn a_wrong_number_of_vectors_is_refused() {
    let one = json!({"data": [{"index": 0, "embedding": [1.0, 2.0, 3.0]}]});
    for problem in bad_answers(one, json!([tei_info(), [[1.0, 2.0, 3.0]]])).await {
        assert!(problem.contains("1 vectors for 2 texts"), "{problem}");
    }
}

#[tokio::test]
async fn vectors_of_a_wrong_length_are_refused() {
    let short = json!({"data": [
        {"index": 0, "embedding": [1.0, 2.0, 3.0]}, {"index": 1, "embedding": [1.0, 2.0]},
    ]});
    let problems = bad_answers(short, json!([tei_info(), [[1.0, 2.0, 3.0], [1.0, 2.0]]])).await;
    for problem in problems {
        assert!(problem.contains("a vector of 2 numbers, not 3"), "{problem}");
    }
}

#[tokio::test]
async fn numbers_that_are_not_finite_are_refused() {
    let huge = json!({"data": [
        {"index": 0, "embedding": [1.0, 2.0, 3.0]}, {"index": 1, "embedding": [1.0, 2.0, 1e300]},
    ]});
    let problems = bad_answers(huge, json!([tei_info(), [[1.0, 2.0, 3.0], [1.0, 1e300, 3.0]]]));
    for problem in problems.await {
        assert!(problem.contains("not finite") || problem.contains("JSON"), "{problem}");
    }
}

#[tokio::test]
async fn an_index_that_comes_twice_or_points_nowhere_is_refused() {
    for (index, problem) in [(0, "index 0 came twice"), (9, "index 9 of 2 texts")] {
        let body = json!({"data": [
            {"index": 0, "embedding": [1.0, 2.0, 3.0]},
            {"index": index, "embedding": [1.0, 2.0, 3.0]},
        ]});
        let server = Server::start(move |_| Reply::ok(&body)).await;
        let provider = build(&openai(&server.url)).await.unwrap();
        let error = provider.embed(&texts(2), Purpose::Document).await.unwrap_err();
        assert!(error.to_string().contains(problem), "{error}");
    }
}

#[tokio::test]
async fn an_endless_answer_is_not_read_to_its_end() {
    let body = " ".repeat((64 << 20) + 1);
    let server = Server::start(move |_| Reply::Answer(200, "", body.clone())).await;
    let provider = build(&openai(&server.url)).await.unwrap();
    let error = provider.embed(&texts(1), Purpose::Document).await.unwrap_err();
    assert!(error.to_string().contains("longer than"), "{error}");
    assert_eq!(error.class(), ErrorClass::Permanent);
}

#[tokio::test]
async fn a_key_that_the_server_repeats_stays_secret() {
    let body = json!({"error": {"message": "bad key sk-secret"}}).to_string();
    let server = Server::start(move |_| Reply::Answer(401, "", body.clone())).await;
    let mut config = openai(&server.url);
    config.openai.api_key = Some("sk-secret".into());
    let provider = build(&config).await.unwrap();
    let error = provider.embed(&texts(1), Purpose::Document).await.unwrap_err();
    assert!(!format!("{error} {error:?} {config:?}").contains("sk-secret"), "{error}");
}
