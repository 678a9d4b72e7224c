//! What people are told when a service is not there.

use std::fs;
use std::net::TcpListener;

use crate::program::{assert_has, run, run_with};

/// Returns an address at which nobody listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[test]
fn an_endpoint_that_does_not_answer_ends_with_3_and_a_hint() {
    let home = tempfile::tempdir().unwrap();
    let url = nobody();
    for args in [
        vec!["search", "x"],
        vec!["status"],
        vec!["projects", "ls"],
        vec!["sources", "ls"],
        vec!["import", "."],
        vec!["extract"],
        vec!["jobs"],
        vec!["jobs", "x", "--watch"],
        vec!["jobs", "--cancel", "x"],
        vec!["facts"],
        vec!["facts", "--entities"],
        vec!["relay", "pause", "qdrant", "--reason", "x"],
        vec!["relay", "resume", "qdrant"],
        vec!["relay", "drain", "qdrant"],
        vec!["dlq", "ls"],
        vec!["dlq", "show", "x"],
        vec!["dlq", "redrive", "--all"],
        vec!["dlq", "discard", "--all"],
    ] {
        let args = [args.as_slice(), &["--endpoint", &url]].concat();
        let failed = run(home.path(), &args).expect_code(3);
        assert_has(&failed.stderr, &[&url, "efused", "--endpoint"]);
        assert!(failed.stdout.is_empty(), "{}", failed.stdout);
    }
}

#[test]
fn a_dead_up_is_named() {
    let home = tempfile::tempdir().unwrap();
    let url = nobody();
    let data_dir = home.path().join(".local/share/waybill");
    fs::create_dir_all(&data_dir).unwrap();
    let services = ["ingestion", "embedding", "extraction", "relay"].map(|name| format!("\"{name}\": \"{url}\""));
    let endpoints = format!("{{\"pid\": 4242, {}}}", services.join(", "));
    fs::write(data_dir.join("endpoints.json"), endpoints).unwrap();
    for args in [vec!["search", "x"], vec!["jobs"]] {
        let failed = run(home.path(), &args).expect_code(3);
        assert_has(&failed.stderr, &[&url, "4242", "endpoints.json", "waybill up"]);
    }
}

#[test]
fn what_is_no_url_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let bad = run(home.path(), &["status", "--endpoint", "localhost:7704"]).expect_code(2);
    assert_has(&bad.stderr, &["localhost:7704", "http://"]);
    let bad = run_with(home.path(), &["status"], &[("WAYBILL_ENDPOINT", "x")]).expect_code(2);
    assert_has(&bad.stderr, &["http://"]);
}
