//! The image and the compose file. `cargo xtask image` builds what can be built without a registry.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use waybill_deploy_checks::compose::{self, Service};
use waybill_deploy_checks::dockerfile::stages;
use waybill_deploy_checks::tools::{Tool, compose_schema};
use waybill_deploy_checks::{chart, read, workspace, yaml};

const DOCKERFILE: &str = "deploy/docker/Dockerfile";

/// The user of the image, which the chart and the compose file name too.
const USER: &str = "65532:65532";

#[test]
fn hadolint_finds_nothing_to_say() {
    Tool::Hadolint.run(["--config", "deploy/docker/hadolint.yaml", DOCKERFILE]).unwrap().stdout().unwrap();
}

#[test]
fn hadolint_would_say_something() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("Dockerfile");
    let text = read(DOCKERFILE).unwrap();
    for (from, to) in [
        (":nonroot AS runtime", " AS runtime"),
        ("gcr.io/distroless", "example.com/distroless"),
        ("--no-install-recommends ", ""),
        ("ENTRYPOINT [\"/usr/local/bin/waybill\"]", "ENTRYPOINT /usr/local/bin/waybill"),
    ] {
        assert!(text.contains(from), "{from}");
        std::fs::write(&file, text.replace(from, to)).unwrap();
        let ran = Tool::Hadolint.run(["--config", "deploy/docker/hadolint.yaml", &file.display().to_string()]).unwrap();
        assert!(!ran.is_success, "hadolint has nothing to say about {to:?}");
    }
}

#[test]
fn the_image_is_small_and_runs_as_nobody() {
    let stages = stages(&read(DOCKERFILE).unwrap());
    assert_eq!(stages.len(), 2, "one stage builds, one runs");
    let runtime = &stages[1];
    assert!(runtime.base.contains("/distroless/") && runtime.base.ends_with(":nonroot"), "{}", runtime.base);
    assert_eq!(runtime.of("USER").collect::<Vec<_>>(), [USER]);
    assert_eq!(runtime.of("ENTRYPOINT").collect::<Vec<_>>(), [r#"["/usr/local/bin/waybill"]"#]);
    assert_eq!(runtime.of("RUN").count(), 0, "nothing can run where there is no shell");
    let copies: Vec<_> = runtime.of("COPY").collect();
    assert_eq!(copies, ["--from=build --chmod=0555 /waybill /usr/local/bin/waybill"], "the program and nothing else");
    assert_eq!(runtime.of("ADD").count() + stages[0].of("ADD").count(), 0);

    let ports: BTreeSet<_> = runtime.of("EXPOSE").flat_map(str::split_whitespace).map(str::to_owned).collect();
    let manifests = chart::case("tei").unwrap().manifests().unwrap();
    let containers = chart::pods(&manifests).flat_map(|pod| pod.containers().collect::<Vec<_>>());
    let listened = containers.flat_map(|container| yaml::list(container, "/ports").to_vec());
    let listened: BTreeSet<_> = listened.map(|port| yaml::at(&port, "/containerPort").to_string()).collect();
    assert_eq!(ports, listened, "exposed, and used by the chart");
}

#[test]
fn the_build_is_the_one_that_is_tested() {
    let stages = stages(&read(DOCKERFILE).unwrap());
    let toolchain = read("rust-toolchain.toml").unwrap();
    let channel = toolchain.split('"').nth(1).unwrap();
    assert!(stages[0].base.starts_with(&format!("docker.io/library/rust:{channel}-slim-")), "{}", stages[0].base);
    let build = stages[0].of("RUN").find(|run| run.contains("cargo build")).unwrap();
    for flag in ["--release", "--locked", "--package waybill", "--no-default-features"] {
        assert!(build.contains(flag), "the build lacks {flag}");
    }
    // The base that has the same C library as the one that it was linked with.
    assert!(stages[0].base.ends_with("-bookworm") && stages[1].base.contains("debian12"));
}

fn services() -> Vec<Service> {
    compose::services().unwrap()
}

fn ours() -> impl Iterator<Item = Service> {
    services().into_iter().filter(|service| service.is_ours)
}

#[test]
fn the_compose_file_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("compose.json");
    let check = |value: &Value| {
        std::fs::write(&file, value.to_string()).unwrap();
        let schema = compose_schema().display().to_string();
        Tool::JsonSchema.run(["--instance", &file.display().to_string(), &schema]).unwrap()
    };
    let mut value = compose::read().unwrap();
    check(&value).stdout().unwrap();
    // And what is none is found.
    value["services"]["relay"]["commands"] = Value::from("x");
    assert!(!check(&value).is_success);
}

#[test]
fn compose_runs_every_part_with_little_power() {
    let names: BTreeSet<_> = services().into_iter().map(|service| service.name).collect();
    let expected =
        ["embedding", "extraction", "ingestion", "migrate", "postgres", "prometheus", "qdrant", "redis", "relay"];
    assert_eq!(names.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    for service in services() {
        let image = yaml::text(&service.value, "/image");
        let tag = image.rsplit(':').next().unwrap_or_default();
        assert!(tag.contains('.') && tag != "latest", "{}: image {image:?} names no version", service.name);
        for port in yaml::list(&service.value, "/ports") {
            assert!(
                port.as_str().unwrap().starts_with("127.0.0.1:"),
                "{}: {port} is open to the network",
                service.name
            );
        }
    }
    for service in ours() {
        let name = &service.name;
        assert_eq!(yaml::text(&service.value, "/user"), USER, "{name}");
        assert_eq!(yaml::at(&service.value, "/read_only"), &Value::from(true), "{name}");
        assert_eq!(yaml::text(&service.value, "/cap_drop/0"), "ALL", "{name}");
        assert_eq!(yaml::text(&service.value, "/security_opt/0"), "no-new-privileges:true", "{name}");
        let grace: i64 = yaml::text(&service.value, "/stop_grace_period").trim_end_matches('s').parse().unwrap();
        assert!(grace >= 30, "{name}: killed after {grace} s, though it may take 25");
        assert_eq!(yaml::text(&service.value, "/build/dockerfile"), DOCKERFILE, "{name}");
        if name != "migrate" {
            assert_eq!(service.environment.get("WAYBILL_AUTH__MODE").map(String::as_str), Some("keys"), "{name}");
        }
    }
}

#[test]
fn compose_s_parts_find_each_other() {
    let ports: BTreeMap<_, _> = ours()
        .filter_map(|service| {
            let listens = service.environment.iter().find(|(name, _)| name.starts_with("WAYBILL_LISTEN__"))?;
            Some((service.name.clone(), listens.1.rsplit(':').next()?.to_owned()))
        })
        .collect();
    assert_eq!(ports.len(), 4);
    let stores = [("postgres", ""), ("redis", "6379"), ("qdrant", "6334")];
    for service in ours() {
        for (name, value) in &service.environment {
            let Some((_, rest)) = value.split_once("://") else { continue };
            let host = rest.rsplit('@').next().unwrap().split('/').next().unwrap();
            let (host, port) = host.split_once(':').unwrap_or((host, ""));
            let is_store = stores.contains(&(host, port));
            let is_service = ports.get(host).is_some_and(|known| known == port);
            assert!(is_store || is_service, "{}: {name} leads to {host}:{port}, where nothing is", service.name);
        }
        let published = yaml::text(&service.value, "/ports/0");
        if let Some(port) = ports.get(&service.name) {
            assert_eq!(published, format!("127.0.0.1:{port}:{port}"), "{}", service.name);
        }
    }
    let keys: BTreeSet<_> =
        ours().filter_map(|service| service.environment.get("WAYBILL_AUTH__SERVICE_KEY").cloned()).collect();
    assert_eq!(keys.len(), 1, "relay and embedding share a key");
}

/// What Prometheus scrapes are the admin ports, and each file that is mounted is there.
#[test]
fn compose_s_prometheus_sees_the_services() {
    let config = yaml::document(&read("deploy/prometheus/prometheus.yml").unwrap()).unwrap();
    let targets = yaml::list(&config, "/scrape_configs/0/static_configs/0/targets");
    let targets: BTreeSet<_> = targets.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    let admin = ours().filter_map(|service| {
        let port = service.environment.get("WAYBILL_ADMIN__LISTEN")?.rsplit(':').next()?.to_owned();
        Some(format!("{}:{port}", service.name))
    });
    assert_eq!(targets, admin.collect::<BTreeSet<_>>());
    let folder = workspace().join("deploy/compose");
    let prometheus = services().into_iter().find(|service| service.name == "prometheus").unwrap();
    for volume in yaml::list(&prometheus.value, "/volumes").iter().filter_map(Value::as_str) {
        let source = volume.split(':').next().unwrap();
        if source.starts_with('.') {
            assert!(folder.join(source).is_file(), "there is no deploy/compose/{source}");
        }
    }
}
