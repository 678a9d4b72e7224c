//! Configuration: shown without secrets, refused before anything is bound.

use std::fs;
use std::net::TcpListener;

use waybill_testkit::Authority;

use crate::program::{assert_has, run, run_with};

#[test]
fn the_effective_configuration_hides_secrets() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("waybill.toml");
    fs::write(&file, "[qdrant]\nurl = \"http://q:6334\"\napi_key = \"opensesame\"\n").unwrap();
    let file = file.to_str().unwrap();
    let variables = [("DATABASE_URL", "postgres://me:hunter2@db/waybill")];
    let shown = run_with(home.path(), &["config", "--config", file], &variables).expect_code(0);
    assert_has(
        &shown.stdout,
        &["postgres://me:[hidden]@db/waybill", "http://q:6334", "# environment: DATABASE_URL", file],
    );
    for secret in ["hunter2", "opensesame"] {
        assert!(!shown.stdout.contains(secret), "{}", shown.stdout);
    }
}

#[test]
fn what_is_shown_can_be_read_again() {
    let home = tempfile::tempdir().unwrap();
    let shown = run(home.path(), &["config"]).expect_code(0);
    let file = home.path().join("again.toml");
    fs::write(&file, &shown.stdout).unwrap();
    let again = run(home.path(), &["config", "--config", file.to_str().unwrap()]).expect_code(0);
    let body = |text: &str| text.split_once("\n\n").unwrap().1.to_owned();
    assert_eq!(body(&again.stdout), body(&shown.stdout));
}

#[test]
fn our_own_variable_beats_the_common_one_and_both_beat_the_file() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("waybill.toml");
    fs::write(&file, "[database]\nurl = \"postgres://file/x\"\n").unwrap();
    let args = ["config", "--config", file.to_str().unwrap()];
    let shown = run_with(home.path(), &args, &[("DATABASE_URL", "postgres://common/x")]);
    assert_has(&shown.stdout, &["postgres://common/x"]);
    let variables = [("DATABASE_URL", "postgres://common/x"), ("WAYBILL_DATABASE__URL", "postgres://own/x")];
    assert_has(&run_with(home.path(), &args, &variables).stdout, &["postgres://own/x"]);
}

#[test]
fn a_bad_value_names_key_value_origin_and_fix() {
    let home = tempfile::tempdir().unwrap();
    let variables = [("WAYBILL_DATABASE__MAX_CONNECTIONS", "many")];
    let bad = run_with(home.path(), &["config", "--check"], &variables).expect_code(2);
    assert_has(&bad.stderr, &["database.max_connections", "many", "WAYBILL_DATABASE__MAX_CONNECTIONS", "whole number"]);

    let file = home.path().join("waybill.toml");
    fs::write(&file, "[databse]\nurl = \"postgres://x/y\"\n").unwrap();
    let args = ["config", "--check", "--config", file.to_str().unwrap()];
    let bad = run(home.path(), &args).expect_code(2);
    assert_has(&bad.stderr, &["databse", "did you mean `database`", file.to_str().unwrap()]);

    let variables = [("DATABASE_URL", "mysql://me:hunter2@db/x")];
    let bad = run_with(home.path(), &["migrate"], &variables).expect_code(2);
    assert_has(&bad.stderr, &["database.url", "postgres://"]);
    assert!(!bad.stderr.contains("hunter2"), "{}", bad.stderr);
}

#[test]
fn a_bad_configuration_is_refused_before_any_port_is_bound() {
    let home = tempfile::tempdir().unwrap();
    // If the port came first, the message would be about the port.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let args = ["serve", "ingestion", "--listen", &address];
    let bad = run_with(home.path(), &args, &[("WAYBILL_SHUTDOWN__DEADLINE_S", "-1")]).expect_code(2);
    assert_has(&bad.stderr, &["shutdown.deadline_s"]);

    let missing = run(home.path(), &args).expect_code(2);
    assert_has(&missing.stderr, &["database.url", "DATABASE_URL"]);

    let args = ["serve", "extraction", "--listen", &address];
    let variables = [("DATABASE_URL", "postgres://nobody@127.0.0.1:1/x")];
    let missing = run_with(home.path(), &args, &variables).expect_code(2);
    assert_has(&missing.stderr, &["redis.url", "REDIS_URL", "redis://"]);
    let variables = [variables[0], ("WAYBILL_REDIS__STREAM_MAX", "0")];
    let bad = run_with(home.path(), &args, &variables).expect_code(2);
    assert_has(&bad.stderr, &["redis.stream_max", "10000000"]);

    let port = taken.local_addr().unwrap().port().to_string();
    let args = ["up", "--ingestion-port", &port];
    let bad = run_with(home.path(), &args, &[("WAYBILL_SHUTDOWN__DEADLINE_S", "-1")]).expect_code(2);
    assert_has(&bad.stderr, &["shutdown.deadline_s"]);
    assert!(!home.path().join(".local").exists(), "nothing was made");
}

#[test]
fn a_taken_port_names_the_way_out() {
    let home = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let variables = [("DATABASE_URL", "postgres://nobody@127.0.0.1:1/x")];
    let args = ["serve", "ingestion", "--listen", &address];
    let bad = run_with(home.path(), &args, &variables).expect_code(2);
    assert_has(&bad.stderr, &[&address, "listen.ingestion"]);
}

#[test]
fn up_without_a_model_says_how_to_get_one() {
    let home = tempfile::tempdir().unwrap();
    let none = home.path().join("none");
    let args = ["up", "--model-dir", none.to_str().unwrap()];
    let bad = run(home.path(), &args).expect_code(2);
    assert_has(&bad.stderr, &[none.to_str().unwrap(), "--model-dir"]);
}

#[test]
fn files_of_certificates_that_can_t_be_used_are_named() {
    let home = tempfile::tempdir().unwrap();
    let authority = Authority::new().unwrap();
    let file = |name: &str| home.path().join(name).display().to_string();
    let (cert, key, other) = (file("cert.pem"), file("key.pem"), file("other.pem"));
    authority
        .sign("localhost", home.path().join("other.pem").as_path(), home.path().join("key.pem").as_path())
        .unwrap();
    authority.sign("localhost", cert.as_ref(), key.as_ref()).unwrap();
    for section in ["TLS", "ADMIN__TLS", "ENDPOINTS__TLS", "REDIS__TLS", "QDRANT__TLS", "TELEMETRY__TLS"] {
        let key_of = |name: &str| format!("{}.{name}", section.to_lowercase().replace("__", "."));
        let is_server = section == "TLS" || section == "ADMIN__TLS";
        let authorities = if is_server { "client_ca_file" } else { "ca_file" };
        // An authority's file that holds a key instead: its content is nobody's to see.
        let cases = [
            (&cert, &key, &key, authorities, "has no certificate"),
            (&cert, &key, &file("gone.pem"), authorities, "can't be read"),
            (&file("gone.pem"), &key, &cert, "cert_file", "can't be read"),
            (&cert, &cert, &cert, "key_file", "has no private key"),
            (&other, &key, &cert, "key_file", "can't be used"),
        ];
        for (cert, key, ca, name, said) in cases {
            let variable = |name: &str| format!("WAYBILL_{section}__{}", name.to_uppercase());
            let names = [variable("cert_file"), variable("key_file"), variable(authorities)];
            let variables: Vec<_> = names.iter().map(String::as_str).zip([cert, key, ca].map(String::as_str)).collect();
            let bad = run_with(home.path(), &["config", "--check"], &variables).expect_code(2);
            assert_has(&bad.stderr, &[&key_of(name), said, "; name "]);
            assert!(!bad.stderr.contains("PRIVATE") && !bad.stderr.contains("BEGIN"), "{}", bad.stderr);
        }
    }
}
