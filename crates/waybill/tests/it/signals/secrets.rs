//! What must never stand in a log: the text of documents, prompts, keys and passwords.

use serde_json::Value;
use waybill_testkit::{Program, Signal, TestPostgres, eventually};

use super::http;
use crate::llm_server::{LlmServer, Mood};
use crate::place::{Place, STOP_LIMIT, UP_LIMIT};

/// Planted, each where it belongs.
const IN_TEXT: &str = "quintessential-marmalade";
const IN_TITLE: &str = "vermilion-trapdoor";
const IN_QUERY: &str = "perpendicular-walrus";
const IN_PROMPT: &str = "unspeakable-instruction";
const API_KEY: &str = "sk-planted-0123456789abcdef";
const COLLECTOR_KEY: &str = "planted-collector-key";

#[tokio::test(flavor = "multi_thread")]
async fn people_s_lines_hold_no_text_and_no_secret() {
    let lines = noisy_life("human").await;
    assert!(lines.iter().any(|line| line.contains(" INFO ") || line.contains(" WARN ")), "{lines:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_lines_hold_no_text_and_no_secret() {
    let lines = noisy_life("json").await;
    let objects: Vec<Value> = lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert!(objects.len() > 10, "{lines:#?}");
    for object in &objects {
        for field in ["timestamp", "level", "target", "message"] {
            assert!(object[field].is_string(), "{field} is missing: {object}");
        }
    }
    // What goes wrong while a request is handled names the import's call, through outbox and queue.
    let given_up =
        objects.iter().find(|object| object["message"] == "request given up").expect("a request is given up");
    for field in ["trace_id", "span_id", "request_id"] {
        assert!(given_up[field].as_str().is_some_and(|id| !id.is_empty()), "{field} is missing: {given_up}");
    }
}

/// Runs everything with secrets planted everywhere, has things fail, and returns what was logged.
async fn noisy_life(format: &str) -> Vec<String> {
    let place = Place::new();
    let postgres = TestPostgres::volatile().await.unwrap();
    let db = postgres.database().await.unwrap();
    let password = db.url.split_once("://").and_then(|(_, rest)| rest.split_once('@')).unwrap().0;
    let password = password.split_once(':').unwrap().1.to_owned();
    // Of the first passage, the model says nothing that could be used; then it refuses.
    let llm = LlmServer::start(|_, calls| if calls == 0 { Mood::Rubbish } else { Mood::Refuse }).await;
    let mut up = place
        .up_with(&[
            ("DATABASE_URL", &db.url),
            ("WAYBILL_LOG", "info"),
            ("WAYBILL_LOG__FORMAT", format),
            ("WAYBILL_EXTRACTION__PROVIDER", "openai"),
            ("WAYBILL_EXTRACTION__OPENAI__BASE_URL", &llm.url),
            ("WAYBILL_EXTRACTION__OPENAI__API_KEY", API_KEY),
            ("WAYBILL_EXTRACTION__RETRY_BASE_MS", "10"),
            // Nobody is there: that is said, without the key.
            ("WAYBILL_TELEMETRY__OTLP_ENDPOINT", "http://127.0.0.1:9"),
            ("WAYBILL_TELEMETRY__OTLP_HEADERS", &format!("x-key={COLLECTOR_KEY}")),
        ])
        .await;
    let docs = place.dir().join("docs");
    std::fs::create_dir_all(&docs).unwrap();
    let document = format!("# {IN_TITLE}\n\nThe {IN_TEXT} of the house stands on the second shelf.\n");
    std::fs::write(docs.join("a.md"), document).unwrap();
    place.run(&["import", docs.to_str().unwrap(), "--project", "p", "--wait"]).await.expect_code(0);
    place.run(&["search", IN_QUERY, "--project", "p"]).await.expect_code(0);
    place.run(&["extract", "--project", "p", "--instructions", IN_PROMPT]).await;
    place.run(&["search", IN_QUERY, "--project", "there-is-none"]).await;
    let admin = place.endpoints()["admin"].as_str().unwrap().to_owned();
    eventually("the request was given up", UP_LIMIT, async || {
        http::get(&admin, "/metrics").await.1.contains(r#"waybill_relay_dead_letters{sink="llm"} 1"#)
    })
    .await;
    let told = [http::get(&admin, "/metrics").await.1, http::get(&admin, "/healthz?verbose=1").await.1];
    // A store that goes away makes others talk, too.
    drop(postgres);
    eventually("it is said that postgres is away", UP_LIMIT, async || {
        http::get(&admin, "/healthz").await.1.contains("postgres is down")
    })
    .await;
    stop(&mut up).await;
    let lines = up.output();
    for planted in [IN_TEXT, IN_TITLE, IN_QUERY, IN_PROMPT, API_KEY, &password, COLLECTOR_KEY] {
        for line in lines.iter().chain(&told) {
            assert!(!line.contains(planted), "{planted:?} is in:\n{line}");
        }
    }
    lines
}

async fn stop(up: &mut Program) {
    up.signal(Signal::SIGTERM).unwrap();
    up.line("stopping, a second signal", STOP_LIMIT).await.unwrap();
    // At once: whether it ends well without its database is another test's.
    up.signal(Signal::SIGINT).unwrap();
    up.wait(STOP_LIMIT).await.unwrap();
}
