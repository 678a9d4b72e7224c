//! The protos: linted, compared with what clients rely on, and covered by the service config.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use waybill_deploy_checks::tools::Tool;
use waybill_deploy_checks::{read, workspace, yaml};

const BASELINE: &str = "proto/baseline.binpb";
const SERVICE_CONFIG: &str = "deploy/grpc/service-config.json";

/// Methods that do something twice if they are called twice.
const NOT_SAFE_TO_REPEAT: [&str; 2] = [
    "waybill.extraction.v1.ExtractionService/StartExtraction",
    "waybill.extraction.v1.ExtractionService/ReportFailure",
];

#[test]
fn buf_finds_nothing_to_say() {
    Tool::Buf.run(["lint", "proto"]).unwrap().stdout().unwrap();
}

#[test]
fn nothing_that_clients_rely_on_is_gone() {
    let ran = Tool::Buf.run(["breaking", "proto", "--against", BASELINE]).unwrap();
    let advice = "If this break is wanted, run `cargo xtask proto-baseline` and say why in the commit's message.";
    assert!(ran.is_success, "{}{}\n{advice}", ran.stdout, ran.stderr);
}

/// Copies the protos, changes one text in one file, and returns what buf says of it.
fn changed(file: &str, from: &str, to: &str) -> (bool, String) {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("proto");
    copy_folder(&workspace().join("proto"), &copy);
    let path = copy.join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{file} has no {from:?}");
    std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
    let copy = copy.display().to_string();
    let ran = Tool::Buf.run(["breaking", &copy, "--against", BASELINE]).unwrap();
    (ran.is_success, ran.stdout + &ran.stderr)
}

fn copy_folder(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-r").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

#[test]
fn breaks_are_found_and_additions_are_none() {
    let search = "waybill/embedding/v1/embedding.proto";
    for (from, to) in [
        ("string query = 2;", "string query = 20;"),
        ("string query = 2;", "string question = 2;"),
        ("int32 limit = 4;", "int64 limit = 4;"),
        ("SEARCH_MODE_LEXICAL = 3;", "SEARCH_MODE_WORDS = 3;"),
        ("rpc Search(SearchRequest)", "rpc Find(SearchRequest)"),
        ("package waybill.embedding.v1;", "package waybill.embedding.v2;"),
    ] {
        let (is_fine, said) = changed(search, from, to);
        assert!(!is_fine && said.contains("embedding.proto"), "{from:?} became {to:?}, and buf says {said:?}");
    }
    let (is_fine, said) = changed(search, "string query = 2;", "string query = 2;\n  string added = 100;");
    assert!(is_fine, "a field more: {said}");
}

/// A method, and whether it streams.
fn methods() -> BTreeMap<String, bool> {
    let json = Tool::Buf.run(["build", "proto", "--output", "-#format=json"]).unwrap().stdout().unwrap();
    let image: Value = serde_json::from_str(&json).unwrap();
    let mut methods = BTreeMap::new();
    for file in yaml::list(&image, "/file") {
        for service in yaml::list(file, "/service") {
            for method in yaml::list(service, "/method") {
                let is = |path: &str| yaml::at(method, path).as_bool() == Some(true);
                let package = yaml::text(file, "/package");
                let name = format!("{package}.{}/{}", yaml::text(service, "/name"), yaml::text(method, "/name"));
                methods.insert(name, is("/clientStreaming") || is("/serverStreaming"));
            }
        }
    }
    methods
}

/// Each entry of the service config, with the methods that it is about.
fn entries() -> Vec<(Vec<String>, Value)> {
    let config: Value = serde_json::from_str(&read(SERVICE_CONFIG).unwrap()).unwrap();
    let entries = yaml::list(&config, "/methodConfig").iter();
    let name = |name: &Value| format!("{}/{}", yaml::text(name, "/service"), yaml::text(name, "/method"));
    entries.map(|entry| (yaml::list(entry, "/name").iter().map(name).collect(), entry.clone())).collect()
}

#[test]
fn the_service_config_is_about_every_method_and_no_other() {
    let methods: BTreeSet<_> = methods().into_keys().collect();
    assert!(methods.len() > 40, "{methods:?}");
    let mut named = BTreeSet::new();
    for (names, _) in entries() {
        for name in names {
            assert!(named.insert(name.clone()), "{name} is there twice");
        }
    }
    let missing: Vec<_> = methods.difference(&named).collect();
    let unknown: Vec<_> = named.difference(&methods).collect();
    assert!(missing.is_empty() && unknown.is_empty(), "{SERVICE_CONFIG} lacks {missing:?}, and has {unknown:?}");
}

#[test]
fn only_what_is_safe_is_retried_and_calls_have_a_timeout() {
    let methods = methods();
    for (names, entry) in entries() {
        assert!(yaml::at(&entry, "/hedgingPolicy").is_null(), "{names:?}: hedged");
        let retry = yaml::at(&entry, "/retryPolicy");
        let timeout = yaml::text(&entry, "/timeout");
        for name in &names {
            let is_stream = methods.get(name).copied().unwrap_or_default();
            let is_safe = !is_stream && !NOT_SAFE_TO_REPEAT.contains(&name.as_str());
            assert!(retry.is_null() || is_safe, "{name}: retried, and it is not safe to repeat");
            assert!(!retry.is_null() || !is_safe, "{name}: not retried, though it is safe to repeat");
            assert!(is_stream || !timeout.is_empty(), "{name}: no timeout");
        }
        if !timeout.is_empty() {
            let seconds: f64 = timeout.trim_end_matches('s').parse().unwrap();
            assert!(timeout.ends_with('s') && seconds >= 10.0, "{names:?}: timeout {timeout}");
        }
        if !retry.is_null() {
            assert_eq!(yaml::at(retry, "/retryableStatusCodes"), &serde_json::json!(["UNAVAILABLE"]), "{names:?}");
            // gRPC takes 5 at the most.
            let attempts = yaml::at(retry, "/maxAttempts").as_i64().unwrap();
            assert!((2..=5).contains(&attempts), "{names:?}: {attempts} attempts");
        }
    }
}

/// gRPC ignores a config that it can't read, so the library itself is asked.
#[test]
fn grpc_can_read_the_service_config() {
    let packages = std::env::var_os("WAYBILL_TEST_PYTHON_DIR")
        .map_or_else(|| workspace().join("target/python"), std::path::PathBuf::from);
    let script = "
import grpc, sys
config = open(sys.argv[1]).read()
def code(config):
    channel = grpc.insecure_channel('127.0.0.1:1', options=[('grpc.service_config', config)])
    try:
        channel.unary_unary('/waybill.relay.v1.RelayService/StartNothing')(b'', timeout=5)
    except grpc.RpcError as error:
        return error.details()
good, bad = code(config), code(config.replace('\"UNAVAILABLE\"', '\"NO_SUCH_CODE\"'))
assert 'service config' not in good.lower(), good
assert bad != good, bad
";
    let mut python = Command::new("python3");
    python.args(["-c", script]).arg(workspace().join(SERVICE_CONFIG)).env("PYTHONPATH", packages);
    let output = python.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
