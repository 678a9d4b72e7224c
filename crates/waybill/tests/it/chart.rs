//! The Helm chart: the program understands all that it tells its containers, and `helm test` does
//! what it says.

use std::path::Path;

use serde_json::Value;
use waybill_deploy_checks::chart::{self, Pod};
use waybill_deploy_checks::{compose, yaml};
use waybill_testkit::Authority;

use crate::program::{ran, run_with, waybill};
use crate::world::World;

/// What stands in a Secret, by the name of the file that the chart makes of it.
const SECRETS: [(&str, &str); 9] = [
    ("database-url", "postgres://waybill:password@postgres.example.com/waybill?sslmode=verify-full"),
    ("redis-url", "rediss://:password@redis.example.com:6379"),
    ("qdrant-url", "https://qdrant.example.com:6334"),
    ("qdrant-api-key", "a-key-of-qdrant"),
    ("service-key", "0123456789abcdef0123456789abcdef"),
    ("bootstrap-key", "fedcba9876543210fedcba9876543210"),
    ("otlp-headers", "authorization=Bearer token"),
    ("embedding-api-key", "a-key-of-the-embedding-server"),
    ("extraction-api-key", "a-key-of-the-model-server"),
];

/// Whose certificates stand in Secrets, too: `<name>-ca.crt` and so on.
const CERTIFIED: [&str; 5] = ["redis", "qdrant", "telemetry", "embedding", "extraction"];

/// Makes the files that a pod would have under `/etc/waybill`.
fn mount(folder: &Path) {
    for (name, value) in SECRETS {
        write(&folder.join("secrets").join(name), value);
    }
    let authority = Authority::new().unwrap();
    std::fs::create_dir_all(folder.join("tls")).unwrap();
    let prefixes = CERTIFIED.map(|name| format!("secrets/{name}-"));
    for prefix in prefixes.iter().map(String::as_str).chain(["tls/"]) {
        let file = |name: &str| folder.join(format!("{prefix}{name}"));
        authority.write(&file("ca.crt")).unwrap();
        authority.sign("localhost", &file("tls.crt"), &file("tls.key")).unwrap();
    }
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// Returns a container's variables, with the files of a pod under `folder`.
fn variables(container: &Value, folder: &Path) -> Vec<(String, String)> {
    let here = |value: &str| value.replace("/etc/waybill", &folder.display().to_string());
    let env = chart::env(container).into_iter();
    env.filter_map(|(name, value)| Some((name.to_owned(), here(value?)))).collect()
}

fn args(container: &Value) -> Vec<&str> {
    yaml::list(container, "/args").iter().filter_map(Value::as_str).collect()
}

/// Has the program look at the settings of each container of ours in a pod.
fn check(case: &str, pod: &Pod<'_>, home: &Path) -> usize {
    let mut count = 0;
    for container in pod.containers() {
        let variables = variables(container, home);
        let variables: Vec<_> = variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let own = args(container);
        let words: Vec<_> = ["config", "--check", "--"].into_iter().chain(own.iter().copied()).collect();
        let found = run_with(home, &words, &variables);
        assert_eq!(found.code, Some(0), "ci/{case}.yaml, {}: waybill {own:?}\n{found:#?}", pod.owner.title());
        count += 1;
    }
    count
}

#[test]
fn the_program_understands_what_the_chart_says() {
    let home = tempfile::tempdir().unwrap();
    mount(home.path());
    let mut count = 0;
    for case in chart::cases().unwrap() {
        let manifests = case.manifests().unwrap();
        for pod in chart::pods(&manifests) {
            count += check(&case.name, &pod, home.path());
        }
    }
    assert!(count > 25, "only {count} containers");
}

/// The check above would find one.
#[test]
fn a_setting_that_is_not_there_is_found() {
    let home = tempfile::tempdir().unwrap();
    mount(home.path());
    let manifests = chart::case("tei").unwrap().manifests().unwrap();
    let relay = chart::pods(&manifests).find(|pod| pod.owner.name().ends_with("-relay")).unwrap();
    let container = relay.containers().next().unwrap();
    let own = variables(container, home.path());
    let own: Vec<_> = own.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    for wrong in
        [("WAYBILL_RELAY__NOTHING", "1"), ("WAYBILL_SHUTDOWN__DEADLINE_S", "soon"), ("WAYBILL_AUTH__MODE", "x")]
    {
        let variables: Vec<_> = own.iter().copied().chain([wrong]).collect();
        run_with(home.path(), &["config", "--check", "--", "serve", "relay"], &variables).expect_code(2);
    }
    for words in [&["serve", "relays"][..], &["serve", "relay", "--nothing"], &["migrations"]] {
        let words: Vec<_> = ["config", "--check", "--"].into_iter().chain(words.iter().copied()).collect();
        run_with(home.path(), &words, &own).expect_code(2);
    }
}

/// The compose file tells the same program.
#[test]
fn the_program_understands_what_the_compose_file_says() {
    let home = tempfile::tempdir().unwrap();
    let mut count = 0;
    for service in compose::services().unwrap().into_iter().filter(|service| service.is_ours) {
        let variables: Vec<_> =
            service.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let command = service.command.iter().map(String::as_str);
        let words: Vec<_> = ["config", "--check", "--"].into_iter().chain(command).collect();
        let found = run_with(home.path(), &words, &variables);
        assert_eq!(found.code, Some(0), "{}: {found:#?}", service.name);
        count += 1;
    }
    assert_eq!(count, 5, "four services and the migration");
}

/// The containers of `helm test`, one after the other, against services that run.
#[tokio::test(flavor = "multi_thread")]
async fn the_chart_s_test_writes_finds_and_deletes() {
    let world = World::start().await;
    let manifests = chart::case("tei").unwrap().manifests().unwrap();
    let test = chart::pods(&manifests).find(|pod| pod.owner.kind() == "Pod").unwrap();
    let document = manifests.iter().find(|one| one.kind() == "ConfigMap" && one.name().ends_with("-test")).unwrap();
    let home = tempfile::tempdir().unwrap();
    write(&home.path().join("test/helm-test.md"), yaml::text(&document.0, "/data/helm-test.md"));

    // A search before there is anything to find fails, or the test would prove nothing.
    let steps: Vec<_> = test.containers().collect();
    assert_eq!(steps.len(), 3, "write, search, delete");
    let step = async |index: usize| {
        let container = steps[index];
        let mut command = waybill(home.path());
        for word in args(container) {
            command.arg(word.replace("/etc/waybill", &home.path().display().to_string()));
        }
        for (name, value) in chart::env(container) {
            let url = value.map_or("", |url| url.rsplit(':').next().unwrap_or_default());
            let port = match url {
                "7701" => world.ports.ingestion,
                "7703" => world.ports.embedding,
                "7704" => world.ports.relay,
                _ => continue,
            };
            command.env(name, format!("http://127.0.0.1:{port}"));
        }
        // Its own thread: the services of this test live in other processes, and nobody else waits.
        tokio::task::spawn_blocking(move || ran(command.output().unwrap())).await.unwrap()
    };
    step(1).await.expect_code(1);
    step(0).await.expect_code(0);
    let found = step(1).await.expect_code(0);
    assert!(found.stdout.contains("clerk at the gate"), "{found:#?}");
    step(2).await.expect_code(0);
    step(1).await.expect_code(1);
    // And all of it can be run again.
    step(0).await.expect_code(0);
    step(2).await.expect_code(0);
}

/// A Secret that the chart comes to mount needs a sample above.
#[test]
fn secrets_have_samples() {
    let certificates =
        CERTIFIED.iter().flat_map(|name| ["ca.crt", "tls.crt", "tls.key"].map(|file| format!("{name}-{file}")));
    let known: Vec<_> = SECRETS.iter().map(|(name, _)| (*name).to_owned()).chain(certificates).collect();
    let mut missing = Vec::new();
    for case in chart::cases().unwrap() {
        let manifests = case.manifests().unwrap();
        for pod in chart::pods(&manifests) {
            missing.extend(chart::secret_files(&pod).into_iter().filter(|file| !known.contains(file)));
        }
    }
    assert!(missing.is_empty(), "no sample of {missing:?}");
}
