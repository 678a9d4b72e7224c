//! `waybill doctor` on a system that is well, one that is not, and none at all.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::Value;

use crate::place::Place;
use crate::program::{assert_has, run_with};

fn verdict(report: &Value, part: &str, subject: &str) -> (String, String) {
    let found = report[part].as_array().unwrap().iter().find(|checkup| checkup["subject"] == subject);
    let found = found.unwrap_or_else(|| panic!("nothing about {subject} of {part}: {report:#}"));
    (found["verdict"].as_str().unwrap().to_owned(), found["fix"].as_str().unwrap().to_owned())
}

/// Sends a command to the Redis that `up` runs.
fn redis(place: &Place, command: &str) -> String {
    let stores = std::fs::read_to_string(place.data_dir().join("stores.json")).unwrap();
    let stores: Value = serde_json::from_str(&stores).unwrap();
    let url = stores["redis"].as_str().unwrap().strip_prefix("redis://").unwrap();
    let (credentials, address) = url.rsplit_once('@').unwrap_or(("", url));
    let password = credentials.rsplit_once(':').map_or("", |(_, password)| password);
    let mut stream = TcpStream::connect(address.trim_end_matches('/').split('/').next().unwrap()).unwrap();
    let auth = if password.is_empty() { String::new() } else { format!("AUTH {password}\r\n") };
    stream.write_all(format!("{auth}{command}\r\nQUIT\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(!answer.contains("-ERR") && !answer.contains("-NOAUTH"), "{answer}");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_system_that_is_well_is_told_from_one_that_is_not() {
    let place = Place::new();
    let _up = place.up().await;
    let report = place.json(&["doctor"]).await;
    for (part, subject) in [
        ("postgres", "schema"),
        ("postgres", "rights"),
        ("postgres", "durability"),
        ("postgres", "vacuum"),
        ("postgres", "clock"),
        ("redis", "eviction"),
        ("redis", "rights"),
        ("qdrant", "version"),
        ("services", "ingestion"),
        ("services", "relay"),
    ] {
        assert_eq!(verdict(&report, part, subject).0, "good", "{part} {subject}: {report:#}");
    }
    let human = place.run(&["doctor"]).await.expect_code(0);
    assert_has(&human.stdout, &["postgres", "good", "redis", "qdrant", "services"]);

    redis(&place, "CONFIG SET maxmemory 100000000");
    redis(&place, "CONFIG SET maxmemory-policy allkeys-lru");
    let sick = place.run(&["doctor", "--json"]).await.expect_code(1);
    let (verdict, fix) = verdict(&serde_json::from_str(&sick.stdout).unwrap(), "redis", "eviction");
    assert_eq!(verdict, "bad");
    assert_has(&fix, &["noeviction"]);
}

#[test]
fn what_is_not_there_is_said_with_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let nobody = [
        ("DATABASE_URL", "postgres://me:hunter2@127.0.0.1:1/x"),
        ("REDIS_URL", "redis://127.0.0.1:1"),
        ("QDRANT_URL", "http://127.0.0.1:1"),
        ("WAYBILL_DATABASE__ACQUIRE_TIMEOUT_MS", "200"),
        ("WAYBILL_ADMIN__TLS__CERT_FILE", "/nowhere/tls.crt"),
        ("WAYBILL_ADMIN__TLS__KEY_FILE", "/nowhere/tls.key"),
    ];
    let report = run_with(home.path(), &["doctor", "--json"], &nobody).expect_code(1);
    assert!(!report.stdout.contains("hunter2"), "{}", report.stdout);
    let report: Value = serde_json::from_str(&report.stdout).unwrap();
    for (part, key) in [("postgres", "database.url"), ("redis", "redis.url"), ("qdrant", "qdrant.url")] {
        let (verdict, fix) = verdict(&report, part, "connection");
        assert_eq!(verdict, "bad");
        assert_has(&fix, &[key]);
    }
    assert_eq!(verdict(&report, "services", "embedding").0, "bad");
    let (verdict, fix) = verdict(&report, "configuration", "admin.tls");
    assert_eq!(verdict, "bad");
    assert_has(&fix, &["name a"]);
    assert_has(&report["configuration"].to_string(), &["admin.tls.cert_file", "/nowhere/tls.crt"]);
    let nothing = run_with(home.path(), &["doctor"], &[]).expect_code(1);
    assert_has(&nothing.stdout, &["DATABASE_URL", "REDIS_URL", "QDRANT_URL", "BAD"]);
}
