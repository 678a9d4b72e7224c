//! Which crate may depend on which: ARCHITECTURE.md draws it, this holds it.

use anyhow::Context as _;
use serde::Deserialize;

use super::Finding;

const RULE: &str = "dependency direction";

/// A crate of the workspace, and what it may depend on when it ships. What is not listed is
/// refused, so that a new crate needs a decision here.
const ALLOWED: &[(&str, &[&str])] = &[
    ("waybill-domain", &[]),
    ("waybill-api", &[]),
    ("waybill-storage", &["waybill-domain"]),
    ("waybill-tls", &[]),
    ("waybill-vectors", &["waybill-domain", "waybill-tls"]),
    ("waybill-models", &["waybill-domain", "waybill-tls"]),
    ("waybill-llm", &["waybill-domain", "waybill-tls"]),
    ("waybill-llm-queue", &["waybill-domain", "waybill-tls"]),
    ("waybill-runtime", &["waybill-domain", "waybill-tls"]),
    ("waybill-local-stores", &["waybill-domain"]),
    ("waybill-qdrant-local", &["waybill-domain"]),
    ("waybill-outbox", &["waybill-domain", "waybill-storage"]),
    ("waybill-ingestion", SERVICE),
    ("waybill-embedding", SERVICE),
    ("waybill-extraction", SERVICE),
    ("waybill-relay", SERVICE),
    (
        "waybill",
        &[
            "waybill-api",
            "waybill-domain",
            "waybill-embedding",
            "waybill-extraction",
            "waybill-ingestion",
            "waybill-llm",
            "waybill-llm-queue",
            "waybill-local-stores",
            "waybill-models",
            "waybill-outbox",
            "waybill-qdrant-local",
            "waybill-relay",
            "waybill-runtime",
            "waybill-storage",
            "waybill-tls",
            "waybill-vectors",
        ],
    ),
    ("waybill-protocol-model", &[]),
    ("waybill-deploy-checks", &[]),
    ("waybill-testkit", &["waybill-domain", "waybill-local-stores", "waybill-tls"]),
    (
        "waybill-bench",
        &[
            "waybill-api",
            "waybill-domain",
            "waybill-llm-queue",
            "waybill-local-stores",
            "waybill-models",
            "waybill-outbox",
            "waybill-qdrant-local",
            "waybill-relay",
            "waybill-runtime",
            "waybill-storage",
            "waybill-testkit",
            "waybill-vectors",
        ],
    ),
    (
        "waybill-torture",
        &[
            "waybill-api",
            "waybill-domain",
            "waybill-llm",
            "waybill-llm-queue",
            "waybill-local-stores",
            "waybill-runtime",
            "waybill-testkit",
            "waybill-vectors",
        ],
    ),
    ("xtask", &[]),
];

/// What a service may stand on. Another service is not in it: they meet over gRPC, in
/// Postgres and in the queue.
const SERVICE: &[&str] = &[
    "waybill-api",
    "waybill-domain",
    "waybill-llm",
    "waybill-llm-queue",
    "waybill-models",
    "waybill-outbox",
    "waybill-runtime",
    "waybill-storage",
    "waybill-vectors",
];

/// What tests may use besides: the testkit, servers to test against, and the chart's renderer.
const FOR_TESTS: &[&str] =
    &["waybill-deploy-checks", "waybill-local-stores", "waybill-qdrant-local", "waybill-testkit"];

/// Libraries that are known in few places, so that they can be replaced there.
const CONFINED: &[(&str, &[&str])] = &[
    ("sqlx", &["waybill-storage"]),
    // The bench sends points straight by it: that is the ceiling which the relay is held to.
    ("qdrant-client", &["waybill-vectors", "waybill-qdrant-local", "waybill-bench"]),
    ("qdrant-edge", &["waybill-qdrant-local"]),
    ("deadpool", &["waybill-llm-queue"]),
    ("deadpool-redis", &["waybill-llm-queue"]),
    ("redis", &["waybill-llm-queue"]),
    ("ort", &["waybill-models"]),
];

/// What the crate without IO must not even have at hand.
const NOT_IN_DOMAIN: &[&str] = &["async-trait", "reqwest", "sqlx", "tokio", "tonic"];

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

/// A crate of the workspace, as `cargo metadata` tells it.
#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    name: String,
    manifest_path: String,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    /// `dev`, `build`, or absent.
    kind: Option<String>,
    /// Set for a crate of the workspace.
    path: Option<String>,
}

/// Reads what `cargo metadata --no-deps` prints.
///
/// # Errors
/// If it is no such thing.
pub(crate) fn read(json: &str) -> anyhow::Result<Vec<Package>> {
    let metadata: Metadata = serde_json::from_str(json).context("read cargo metadata")?;
    Ok(metadata.packages)
}

/// Checks every arrow.
pub(crate) fn check(packages: &[Package]) -> Vec<Finding> {
    packages.iter().flat_map(check_package).collect()
}

fn check_package(package: &Package) -> Vec<Finding> {
    let file = manifest_of(package);
    let name = package.name.as_str();
    let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| *known == name) else {
        return vec![Finding::new(
            &file,
            0,
            RULE,
            format!("{name} is not in the table of who may depend on whom"),
            "add it to ALLOWED in xtask/src/tidy/arrows.rs and to the code map in ARCHITECTURE.md",
        )];
    };
    let mut findings = Vec::new();
    for dependency in &package.dependencies {
        let target = dependency.name.as_str();
        let is_dev = dependency.kind.as_deref() == Some("dev");
        let is_ours = dependency.path.is_some();
        if is_ours && !allowed.contains(&target) {
            let is_fine = is_dev && (FOR_TESTS.contains(&target) || is_library(target));
            if !is_fine {
                findings.push(Finding::new(
                    &file,
                    0,
                    RULE,
                    format!("{name} depends on {target}"),
                    format!("remove it: {name} may depend on {}", list(allowed)),
                ));
            }
        }
        let homes = CONFINED.iter().find(|(library, _)| *library == target);
        if let Some((_, homes)) = homes
            && !homes.contains(&name)
        {
            findings.push(Finding::new(
                &file,
                0,
                "confined library",
                format!("{name} uses {target}"),
                format!("go through {}: nobody else knows about {target}", list(homes)),
            ));
        }
        if name == "waybill-domain" && !is_dev && NOT_IN_DOMAIN.contains(&target) {
            findings.push(Finding::new(
                &file,
                0,
                "domain without IO",
                format!("waybill-domain uses {target}"),
                "move what needs it to a crate above",
            ));
        }
    }
    findings
}

/// Tests of anything may use the crates below the services.
fn is_library(name: &str) -> bool {
    SERVICE.contains(&name)
}

fn list(names: &[&str]) -> String {
    if names.is_empty() { "no crate of ours".to_owned() } else { names.join(", ") }
}

/// Returns the manifest's path from the workspace's folder.
fn manifest_of(package: &Package) -> String {
    let path = package.manifest_path.replace('\\', "/");
    let mut parts = path.rsplit('/').take(3).collect::<Vec<_>>();
    parts.reverse();
    match parts.as_slice() {
        ["crates", ..] => parts.join("/"),
        [_, folder, file] => format!("{folder}/{file}"),
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(package: &str, dependency: &str, kind: &str, ours: bool) -> Vec<String> {
        let path = if ours { r#""/x""# } else { "null" };
        let kind = if kind.is_empty() { "null".to_owned() } else { format!("\"{kind}\"") };
        let json = format!(
            r#"{{"packages":[{{"name":"{package}","manifest_path":"/a/crates/p/Cargo.toml",
               "dependencies":[{{"name":"{dependency}","kind":{kind},"path":{path}}}]}}]}}"#
        );
        check(&read(&json).unwrap()).into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn services_stand_on_libraries_and_not_on_each_other() {
        assert!(findings("waybill-relay", "waybill-outbox", "", true).is_empty());
        assert_eq!(
            findings("waybill-relay", "waybill-embedding", "", true),
            ["waybill-relay depends on waybill-embedding"]
        );
        assert_eq!(findings("waybill-relay", "waybill-embedding", "dev", true).len(), 1);
    }

    #[test]
    fn only_tests_use_the_testkit() {
        assert!(findings("waybill-outbox", "waybill-testkit", "dev", true).is_empty());
        assert_eq!(findings("waybill-outbox", "waybill-testkit", "", true).len(), 1);
    }

    #[test]
    fn libraries_stay_where_they_are_known() {
        assert!(findings("waybill-storage", "sqlx", "", false).is_empty());
        assert_eq!(findings("waybill-relay", "sqlx", "dev", false), ["waybill-relay uses sqlx"]);
        assert_eq!(findings("waybill-relay", "qdrant-client", "", false).len(), 1);
    }

    #[test]
    fn domain_has_no_runtime() {
        assert_eq!(findings("waybill-domain", "tokio", "", false), ["waybill-domain uses tokio"]);
    }

    #[test]
    fn an_unknown_crate_needs_a_decision() {
        assert_eq!(findings("waybill-new", "serde", "", false).len(), 1);
    }
}
