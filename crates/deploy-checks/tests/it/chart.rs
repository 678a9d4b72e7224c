//! The chart: linted and rendered by both versions of helm, and taken by old and new Kubernetes.

use serde_json::{Value, json};
use waybill_deploy_checks::chart::{CHART, Manifest, NEWEST, OLDEST, case, cases, read as manifests};
use waybill_deploy_checks::tools::Tool;
use waybill_deploy_checks::{read, workspace, yaml};

const HELMS: [Tool; 2] = [Tool::Helm3, Tool::Helm4];

/// Kinds that Kubernetes itself does not have, so that there is no schema of them here.
const CUSTOM_KINDS: [&str; 3] = ["Certificate", "PrometheusRule", "ServiceMonitor"];

#[test]
fn helm_finds_nothing_to_say() {
    for helm in HELMS {
        // Without values, too: that is what a chart repository's checks do.
        Tool::run(helm, ["lint", "--strict", CHART]).unwrap().stdout().unwrap();
        for case in cases().unwrap() {
            let mut command = helm.command().unwrap();
            command.args(["lint", "--strict", CHART, "--values"]).arg(case.file());
            let output = command.output().unwrap();
            let said =
                format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success(), "{helm:?}, ci/{}.yaml: {said}", case.name);
            assert!(!said.contains("[WARNING]"), "{helm:?}, ci/{}.yaml: {said}", case.name);
        }
    }
}

#[test]
fn both_helms_make_the_same_of_it() {
    for case in cases().unwrap() {
        let [three, four] = HELMS.map(|helm| {
            let mut all = manifests(&case.render(helm, NEWEST, &[]).unwrap()).unwrap();
            all.sort_by_key(Manifest::title);
            all.into_iter().map(|one| one.0).collect::<Vec<_>>()
        });
        assert_eq!(three, four, "ci/{}.yaml", case.name);
    }
}

#[test]
fn the_oldest_kubernetes_takes_it() {
    validate(OLDEST);
}

#[test]
fn the_newest_kubernetes_takes_it() {
    validate(NEWEST);
}

/// Has every manifest checked against the schemas of a version, strictly.
fn validate(version: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    let mut count = 0;
    for case in cases().unwrap() {
        let rendered = case.render(Tool::Helm4, version, &[]).unwrap();
        count += manifests(&rendered).unwrap().len();
        let file = folder.path().join(format!("{}.yaml", case.name));
        std::fs::write(&file, rendered).unwrap();
        files.push(file.display().to_string());
    }
    let minor = version.rsplit_once('.').unwrap().0;
    let args = ["--strict", "-k", minor].map(str::to_owned).into_iter().chain(files);
    let ran = Tool::KubernetesValidate.run(args).unwrap();
    let said = format!("{}{}", ran.stdout, ran.stderr);
    assert!(ran.is_success, "{said}");
    let (mut passed, mut unknown) = (0, 0);
    for line in said.lines() {
        if line.starts_with("INFO") && line.contains("passed") {
            passed += 1;
        } else if CUSTOM_KINDS.iter().any(|kind| line.contains(&format!("schema for kind {kind} "))) {
            unknown += 1;
        } else {
            // A kind that it does not know is a warning, and ends with 0.
            panic!("{line}");
        }
    }
    assert_eq!(passed + unknown, count, "manifests that were looked at, and that there are:\n{said}");
}

/// What a version does not have is left out for it.
#[test]
fn the_sleep_before_sigterm_is_for_versions_that_have_it() {
    let case = case("tei").unwrap();
    for (version, has) in [("1.29.9", false), ("1.30.0", true), ("1.34.1-gke.100", true)] {
        let rendered = case.render(Tool::Helm3, version, &[]).unwrap();
        assert_eq!(rendered.contains("preStop:"), has, "{version}");
    }
    let error = case.render(Tool::Helm3, "1.24.0", &[]).unwrap_err().to_string();
    assert!(error.contains("1.24.0") && error.contains(">=1.25.0"), "{error}");
}

#[test]
fn a_long_name_leaves_room_for_what_is_added() {
    let case = case("tls-cert-manager").unwrap();
    let long = "n".repeat(63);
    let rendered = case.render(Tool::Helm4, NEWEST, &["--set", &format!("fullnameOverride={long}")]).unwrap();
    for manifest in manifests(&rendered).unwrap() {
        assert!(manifest.name().len() <= 63, "{}", manifest.title());
    }
}

#[test]
fn what_can_t_work_is_refused_with_words() {
    let refused = |case_name: &str, set: &str, words: &[&str]| {
        for helm in HELMS {
            let error = case(case_name).unwrap().render(helm, NEWEST, &["--set", set]);
            let error = error.map(|_| panic!("{helm:?} takes {set}")).unwrap_err().to_string();
            for word in words {
                assert!(error.contains(word), "{set}: {word:?} is not in: {error}");
            }
        }
    };
    refused("tei", "embedding.model.kind=", &["embedding.model.kind", "local", "openai"]);
    refused("tei", "tls.enabled=true", &["tls.existingSecret", "tls.certManager"]);
    refused("tls-cert-manager", "tls.certManager.issuerRef.name=null", &["issuer"]);
    refused("tei", "tls.admin.enabled=true", &["tls.enabled"]);
    refused("tls-everywhere", "tls.caKey=", &["tls.caKey"]);
    refused("tei", "image.tag=latest", &["tag"]);
    refused("tei", "embedding.enabled=false", &["config.endpoints.embedding"]);
    refused("tei", "auth.bootstrapKeyKey=", &["tests.apiKey.existingSecret"]);
    refused("tei", "config.auth.mode=open", &["WAYBILL_AUTH__MODE", "twice"]);
    let nothing =
        "relay.autoscaling.targetCPUUtilizationPercentage=0,relay.autoscaling.targetMemoryUtilizationPercentage=0";
    refused("autoscaling", nothing, &["relay.autoscaling"]);
    // A slip of the pen, at every depth.
    for slip in [
        "relpicas=3",
        "relay.replica=3",
        "relay.resources.limit=1",
        "defaults.startupProbe.period=3",
        "networkPolicy.redis.port=1",
        "metrics.serviceMonitor.enable=true",
        "embedding.model.openai.url=http://x",
        "tls.certManager.issuer=x",
        "tls.admin.enable=true",
        "redis.tls.secret=x",
        "telemetry.tls.ca=x",
        "tests.projects=x",
    ] {
        refused("tei", slip, &[slip.split('=').next().unwrap().rsplit('.').next().unwrap()]);
    }
    for (wrong, word) in [
        ("relay.replicas=two", "replicas"),
        ("shutdown.deadlineSeconds=0", "deadlineSeconds"),
        ("logging.format=xml", "format"),
        ("database.existingSecret=Not A Name", "existingSecret"),
        ("relay.resources.limits.memory=lots", "memory"),
        ("image.digest=sha256:12", "digest"),
        ("embedding.model.tei.baseUrl=tei:80", "baseUrl"),
    ] {
        refused("tei", wrong, &[word]);
    }
}

/// Objects in the schema are closed, or it is said that they are Kubernetes' or the program's.
#[test]
fn the_schema_is_strict_and_of_the_values() {
    let schema: Value = serde_json::from_str(&read(&format!("{CHART}/values.schema.json")).unwrap()).unwrap();
    let values = yaml::document(&read(&format!("{CHART}/values.yaml")).unwrap()).unwrap();
    let mut findings = Vec::new();
    closed(&schema, "", &mut findings);
    covered(&schema, &schema, &values, "", &mut findings);
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}

fn closed(schema: &Value, path: &str, findings: &mut Vec<String>) {
    if let Some(map) = schema.as_object() {
        if map.get("type") == Some(&json!("object")) {
            let is_open = map.get("additionalProperties").is_none_or(|more| more == &json!(true));
            let is_said = map.contains_key("description");
            if is_open && !is_said {
                findings.push(format!("schema, {path}: takes any key"));
            }
        }
        for (name, value) in map {
            closed(value, &format!("{path}/{name}"), findings);
        }
    }
    for (index, value) in schema.as_array().into_iter().flatten().enumerate() {
        closed(value, &format!("{path}/{index}"), findings);
    }
}

/// Finds keys that the schema has and values.yaml does not show.
fn covered(root: &Value, schema: &Value, values: &Value, path: &str, findings: &mut Vec<String>) {
    let schema = match schema.get("$ref").and_then(Value::as_str) {
        Some(reference) => root.pointer(reference.trim_start_matches('#')).unwrap(),
        None => schema,
    };
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
    let defaults = root.pointer("/properties/defaults/properties").unwrap();
    for (name, property) in properties {
        let path = format!("{path}.{name}");
        // What a service may have is shown once, in `defaults`.
        let is_shown_there = path.matches('.').count() == 2 && defaults.get(name).is_some();
        let is_kubernetes = path.contains("Probe.") || path.contains(".resources.") || path.contains("issuerRef.");
        match values.get(name) {
            Some(values) => covered(root, property, values, &path, findings),
            None if is_shown_there || is_kubernetes || path == ".global" => {}
            None => findings.push(format!("values.yaml does not show {path}")),
        }
    }
}

#[test]
fn the_operator_gets_the_rules_and_the_dashboard_that_are_tested() {
    let all = case("tls-cert-manager").unwrap().manifests().unwrap();
    let find = |kind: &str, name: &str| {
        all.iter().find(|one| one.kind() == kind && one.name().ends_with(name)).unwrap_or_else(|| panic!("no {kind}"))
    };
    let rules = read("deploy/prometheus/waybill.rules.yaml").unwrap();
    let base = "https://git.example.com/waybill/blob/main/docs/runbooks/";
    let expected = yaml::document(&rules.replace("docs/runbooks/", base)).unwrap();
    // The comment on top of the file names the folder too; it is no part of the value.
    assert_eq!(find("PrometheusRule", "waybill").0.pointer("/spec").unwrap(), &expected);

    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/waybill.json").unwrap()).unwrap();
    let shipped = find("ConfigMap", "-dashboard");
    let text = yaml::text(&shipped.0, "/data/waybill.json");
    assert_eq!(serde_json::from_str::<Value>(text).unwrap(), dashboard);
    assert_eq!(yaml::text(&shipped.0, "/metadata/labels/grafana_dashboard"), "1");
}

/// Whoever installs from a package gets the files that are links here.
#[test]
fn a_package_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let into = folder.path().display().to_string();
    for helm in HELMS {
        let ran = helm.run(["package", CHART, "--destination", &into]).unwrap();
        ran.stdout().unwrap();
        let package = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        let mut command = helm.command().unwrap();
        command.args(["template", "w"]).arg(&package).args(["--set", "metrics.prometheusRule.enabled=true"]);
        let output = command.arg("--values").arg(case("tei").unwrap().file()).output().unwrap();
        let rendered = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(rendered.contains("alert: WaybillDeliveryStalled"), "{helm:?}");
        std::fs::remove_file(package).unwrap();
    }
}

/// What users add reaches each pod that it should.
#[test]
fn extension_points_reach_every_pod() {
    let all = case("extension-points").unwrap().manifests().unwrap();
    let pods: Vec<_> = all.iter().filter_map(Manifest::pod).collect();
    assert_eq!(pods.len(), 5, "three services, the migration and the test");
    for pod in &pods {
        let title = pod.owner.title();
        for (path, expected) in [
            ("/imagePullSecrets/0/name", json!("registry")),
            ("/nodeSelector", json!({"kubernetes.io/os": "linux"})),
            ("/tolerations/0/key", json!("dedicated")),
            ("/priorityClassName", json!("high")),
            ("/runtimeClassName", json!("gvisor")),
            ("/schedulerName", json!("bin-packer")),
            ("/hostAliases/0/ip", json!("10.1.2.3")),
            ("/dnsConfig/options/0/name", json!("ndots")),
        ] {
            assert_eq!(yaml::at(pod.spec, path), &expected, "{title}: {path}");
        }
        assert!(!yaml::at(pod.spec, "/affinity/nodeAffinity").is_null(), "{title}");
        assert_eq!(pod.labels.get("sidecar"), Some(&json!("yes")), "{title}");
        let volumes = yaml::list(pod.spec, "/volumes");
        assert!(volumes.iter().any(|volume| yaml::text(volume, "/name") == "authorities"), "{title}");
        for container in pod.containers() {
            assert_eq!(yaml::text(container, "/envFrom/0/configMapRef/name"), "proxy", "{title}");
            let env = waybill_deploy_checks::chart::env(container);
            let own = "WAYBILL_EMBEDDING__BATCHING__MAX_BATCH_TEXTS";
            let is_replaced = pod.owner.name().ends_with("-embedding");
            assert_eq!(env.contains_key(own), is_replaced, "{title}: a list of one's own replaces the common one");
            assert_eq!(env.contains_key("SSL_CERT_FILE"), !is_replaced, "{title}");
        }
    }
    for manifest in &all {
        let is_ours = !yaml::at(&manifest.0, "/metadata/labels/helm.sh~1chart").is_null();
        if is_ours {
            assert_eq!(yaml::text(&manifest.0, "/metadata/labels/team"), "knowledge", "{}", manifest.title());
            assert_eq!(manifest.annotation("example.com/contact"), "knowledge@example.com", "{}", manifest.title());
        }
    }
    let names: Vec<_> = all.iter().map(Manifest::name).collect();
    assert!(names.contains(&"w-extra") && names.contains(&"w-waybill-more"), "{names:?}");
}

#[test]
fn notes_say_how_to_go_on() {
    for helm in HELMS {
        let mut command = helm.command().unwrap();
        // Only a dry run prints them, and only helm 4 makes one without a cluster.
        if helm == Tool::Helm3 {
            continue;
        }
        command.args(["install", "w", CHART, "--dry-run=client", "--namespace", "knowledge", "--values"]);
        let output = command.arg(case("tei").unwrap().file()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let notes = said.split("NOTES:").nth(1).unwrap();
        for words in [
            "helm --namespace knowledge test w",
            "waybill keys create",
            "http://w-waybill-relay.knowledge.svc:7704",
            "TLS is off",
        ] {
            assert!(notes.contains(words), "{words:?} is not in:{notes}");
        }
        // Through a tunnel the certificate's name is not the address's.
        let mut command = helm.command().unwrap();
        command.args(["install", "w", CHART, "--dry-run=client", "--namespace", "knowledge", "--values"]);
        command.arg(case("tei").unwrap().file()).args(["--set", "tls.enabled=true,tls.existingSecret=s"]);
        let said = String::from_utf8(command.output().unwrap().stdout).unwrap();
        for words in [
            "get secret s --output jsonpath='{.data.ca\\.crt}'",
            "https://127.0.0.1:7704 --server-name w-waybill-relay.knowledge.svc --ca-file ca.crt",
        ] {
            assert!(said.contains(words), "{words:?} is not in:{said}");
        }
    }
}

/// One comment above each value is what the README is made of.
#[test]
fn each_value_is_explained() {
    let text = read(&format!("{CHART}/values.yaml")).unwrap();
    let mut is_said = false;
    let mut findings = Vec::new();
    let lines: Vec<_> = text.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        if trimmed.starts_with("# -- ") {
            is_said = true;
        } else if let Some((name, value)) = trimmed.split_once(':')
            && !trimmed.starts_with(['#', '-'])
        {
            let indent = line.len() - trimmed.len();
            let is_group = value.trim().is_empty();
            let has_explained_children = is_group
                && lines[index + 1..]
                    .iter()
                    .take_while(|next| next.len() - next.trim_start().len() > indent)
                    .any(|next| next.trim_start().starts_with("# -- "));
            let is_inside = lines[..index]
                .iter()
                .rev()
                .find(|before| before.len() - before.trim_start().len() < indent && !before.trim().is_empty())
                .is_some_and(|parent| explained_alone(&lines, parent));
            if !is_said && !has_explained_children && !is_inside {
                findings.push(format!("values.yaml:{}: nothing explains {name}", index + 1));
            }
            is_said = false;
        }
    }
    assert!(findings.is_empty(), "{}", findings.join("\n"));
    assert!(workspace().join(CHART).join("README.md").is_file());
}

/// Whether a value's comment explains all that is in it, as of `resources`.
fn explained_alone(lines: &[&str], parent: &str) -> bool {
    let Some(at) = lines.iter().position(|line| line == &parent) else { return false };
    let indent = parent.len() - parent.trim_start().len();
    let mut inside = lines[at + 1..].iter().take_while(|line| line.len() - line.trim_start().len() > indent);
    !inside.any(|line| line.trim_start().starts_with("# -- "))
}

/// What the README shows is what somebody copies.
#[test]
fn the_readme_s_values_are_taken() {
    let readme = read(&format!("{CHART}/README.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("values.yaml");
    let mut count = 0;
    for block in readme.split("```yaml\n").skip(1) {
        let block = block.split("```").next().unwrap();
        // Inside a list, a block is indented as a whole.
        let indent = block.len() - block.trim_start_matches(' ').len();
        let lines = block.lines().map(|line| line.get(indent..).unwrap_or_default());
        std::fs::write(&file, lines.collect::<Vec<_>>().join("\n")).unwrap();
        let more = ["--values", &file.display().to_string()];
        let rendered = case("tei").unwrap().render(Tool::Helm4, NEWEST, &more);
        assert!(rendered.is_ok(), "{block}{:?}", rendered.err());
        count += 1;
    }
    assert!(count >= 4, "the README has {count} examples of values");
    for (name, key) in [("waybill-database", "url"), ("waybill-redis", "url"), ("waybill-qdrant", "url")] {
        let made = readme.split("create secret generic ").skip(1).find(|rest| rest.starts_with(name));
        assert!(made.is_some_and(|rest| rest.contains(&format!("--from-literal={key}="))), "{name}");
    }
    // The names in the README are the defaults of the values.
    let values = yaml::document(&read(&format!("{CHART}/values.yaml")).unwrap()).unwrap();
    for section in ["database", "redis", "qdrant", "auth"] {
        let secret = yaml::text(&values, &format!("/{section}/existingSecret"));
        assert!(readme.contains(&format!("create secret generic {secret} ")), "the README does not make {secret}");
    }
}
