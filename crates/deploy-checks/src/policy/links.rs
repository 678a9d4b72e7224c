//! Rules about what manifests say of each other.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::chart::{ADMIN_CERTIFICATE, ADMIN_CLIENT_CA, Manifest, NAMESPACE, Pod, env, pods};
use crate::yaml::{at, list, text};

/// The longest name that every kind of resource may have.
const NAME_MAX: usize = 63;

fn of_kind<'a>(manifests: &'a [Manifest], kind: &'a str) -> impl Iterator<Item = &'a Manifest> {
    manifests.iter().filter(move |one| one.kind() == kind)
}

fn deployments(manifests: &[Manifest]) -> Vec<Pod<'_>> {
    of_kind(manifests, "Deployment").filter_map(Manifest::pod).collect()
}

/// Each selector selects the pods it is about, and no other.
#[must_use]
pub fn selectors_match_labels(manifests: &[Manifest]) -> Vec<String> {
    let mut findings = Vec::new();
    let selectors = [
        ("Deployment", "/spec/selector/matchLabels"),
        ("Service", "/spec/selector"),
        ("PodDisruptionBudget", "/spec/selector/matchLabels"),
        ("NetworkPolicy", "/spec/podSelector/matchLabels"),
    ];
    for (kind, path) in selectors {
        for manifest in of_kind(manifests, kind) {
            let selector = at(&manifest.0, path);
            let selected: Vec<_> = pods(manifests).filter(|pod| pod.is_selected(selector)).collect();
            // What is selected is made by the one of the same name, but for those that have no Deployment.
            let is_alone = selected.len() == 1
                && (selected[0].owner.name() == manifest.name() || selected[0].owner.kind() != "Deployment");
            if !is_alone {
                let titles: Vec<_> = selected.iter().map(|pod| pod.owner.title()).collect();
                findings.push(format!("{}: selects {titles:?}", manifest.title()));
            }
        }
    }
    for pod in deployments(manifests) {
        for spread in list(pod.spec, "/topologySpreadConstraints") {
            if !pod.is_selected(at(spread, "/labelSelector/matchLabels")) {
                findings.push(format!("{}: is spread by labels that it has not", pod.owner.title()));
            }
        }
    }
    for monitor in of_kind(manifests, "ServiceMonitor") {
        let wanted = at(&monitor.0, "/spec/selector/matchLabels");
        for service in of_kind(manifests, "Service") {
            let labels = at(&service.0, "/metadata/labels");
            let has = |(name, value): (&String, &Value)| labels.get(name) == Some(value);
            if !wanted.as_object().is_some_and(|wanted| !wanted.is_empty() && wanted.iter().all(has)) {
                findings.push(format!("{}: does not select {}", monitor.title(), service.title()));
            }
        }
        for endpoint in list(&monitor.0, "/spec/endpoints") {
            if text(endpoint, "/port") != "metrics" || text(endpoint, "/path") != "/metrics" {
                findings.push(format!("{}: scrapes another port than the admin port", monitor.title()));
            }
        }
    }
    findings
}

/// Prometheus speaks with the admin port as it answers, checks who answers, and shows what it is
/// asked for.
#[must_use]
pub fn scrapes_speak_as_the_admin_port(manifests: &[Manifest]) -> Vec<String> {
    let mut findings = Vec::new();
    let pods = deployments(manifests);
    let is_set = |name| pods.iter().flat_map(Pod::containers).any(|container| env(container).contains_key(name));
    let names: Vec<_> =
        of_kind(manifests, "Service").map(|service| format!("{}.{NAMESPACE}.svc", service.name())).collect();
    for monitor in of_kind(manifests, "ServiceMonitor") {
        for endpoint in list(&monitor.0, "/spec/endpoints") {
            let mut find = |finding: &str| findings.push(format!("{}: {finding}", monitor.title()));
            if (text(endpoint, "/scheme") == "https") != is_set(ADMIN_CERTIFICATE) {
                find("does not speak as the admin port does");
            }
            let tls = at(endpoint, "/tlsConfig");
            if !is_set(ADMIN_CERTIFICATE) {
                continue;
            }
            if !names.iter().any(|name| name == text(tls, "/serverName")) || at(tls, "/ca/secret/name").is_null() {
                find("does not check who answers");
            }
            let shows = !at(tls, "/cert/secret/name").is_null() && !at(tls, "/keySecret/name").is_null();
            if shows != is_set(ADMIN_CLIENT_CA) {
                find("does not show the certificate that it is asked for, or shows one for nothing");
            }
        }
    }
    findings
}

/// A Service leads to ports that its pods have.
#[must_use]
pub fn services_lead_to_ports(manifests: &[Manifest]) -> Vec<String> {
    let mut findings = Vec::new();
    for service in of_kind(manifests, "Service") {
        let selector = at(&service.0, "/spec/selector");
        for pod in deployments(manifests).iter().filter(|pod| pod.is_selected(selector)) {
            let ports: BTreeMap<_, _> = pod
                .containers()
                .flat_map(|container| list(container, "/ports"))
                .map(|port| (text(port, "/name"), at(port, "/containerPort").as_i64()))
                .collect();
            for port in list(&service.0, "/spec/ports") {
                let target = text(port, "/targetPort");
                let Some(number) = ports.get(target) else {
                    findings.push(format!("{}: leads to a port {target:?} that is not there", service.title()));
                    continue;
                };
                // A call inside the cluster of a headless Service ends at the container's port.
                if *number != at(port, "/port").as_i64() {
                    findings.push(format!("{}: its port {target:?} has two numbers", service.title()));
                }
            }
        }
    }
    for pod in deployments(manifests) {
        for container in pod.containers() {
            let grpc = list(container, "/ports").iter().find(|port| text(port, "/name") == "grpc");
            let listens = env(container).into_iter().find(|(name, _)| name.starts_with("WAYBILL_LISTEN__"));
            let number = grpc.and_then(|port| at(port, "/containerPort").as_i64()).unwrap_or_default();
            let expected = format!("0.0.0.0:{number}");
            if listens.and_then(|(_, value)| value) != Some(expected.as_str()) {
                findings.push(format!("{}: does not listen on its port {number}", pod.owner.title()));
            }
        }
    }
    findings
}

/// Whoever is called is there, on that port, by that scheme, and under a name of the certificate.
#[must_use]
pub fn endpoints_lead_to_services(manifests: &[Manifest]) -> Vec<String> {
    let mut findings = Vec::new();
    let mut hosts = BTreeMap::new();
    for service in of_kind(manifests, "Service") {
        let grpc = list(&service.0, "/spec/ports").iter().find(|port| text(port, "/name") == "grpc");
        let port = grpc.and_then(|port| at(port, "/port").as_i64()).unwrap_or_default();
        hosts.insert(format!("{}.{NAMESPACE}.svc:{port}", service.name()), service.name());
    }
    let has_tls =
        pods(manifests).flat_map(|pod| pod.containers()).any(|one| env(one).contains_key("WAYBILL_TLS__CERT_FILE"));
    let scheme = if has_tls { "https://" } else { "http://" };
    for pod in pods(manifests) {
        for container in pod.containers() {
            for (name, value) in env(container) {
                let is_ours =
                    name.ends_with("ENDPOINT") || name.starts_with("WAYBILL_ENDPOINTS__") && !name.contains("__TLS__");
                // An embedding service that runs elsewhere is where the user says.
                let is_elsewhere =
                    name.ends_with("__EMBEDDING") && !hosts.values().any(|name| name.ends_with("-embedding"));
                if !is_ours || is_elsewhere || name.contains("OTLP") {
                    continue;
                }
                let value = value.unwrap_or_default();
                if !value.strip_prefix(scheme).is_some_and(|host| hosts.contains_key(host)) {
                    findings.push(format!("{}: {name} is {value:?}, where no service of ours is", pod.owner.title()));
                }
            }
        }
    }
    for certificate in of_kind(manifests, "Certificate") {
        let names: BTreeSet<_> = list(&certificate.0, "/spec/dnsNames").iter().filter_map(Value::as_str).collect();
        for host in hosts.keys() {
            let name = host.split(':').next().unwrap_or_default();
            if !names.contains(name) {
                findings.push(format!("{}: is not for {name}", certificate.title()));
            }
        }
    }
    findings
}

/// Names are unique, short enough, and everything is in the release's namespace.
#[must_use]
pub fn names_are_fit(manifests: &[Manifest]) -> Vec<String> {
    let mut findings = Vec::new();
    let mut seen = BTreeSet::new();
    for manifest in manifests {
        if !seen.insert(manifest.title()) {
            findings.push(format!("{}: is there twice", manifest.title()));
        }
        if manifest.name().is_empty() || manifest.name().len() > NAME_MAX {
            findings.push(format!("{}: its name has {} characters", manifest.title(), manifest.name().len()));
        }
        let labels = at(&manifest.0, "/metadata/labels").as_object();
        // What users add has the labels that they give it.
        let is_ours = labels.is_some_and(|labels| labels.contains_key("helm.sh/chart"));
        if is_ours && text(&manifest.0, "/metadata/namespace") != NAMESPACE {
            findings.push(format!("{}: is in another namespace", manifest.title()));
        }
        for (name, value) in labels.into_iter().flatten() {
            if value.as_str().is_none_or(|value| value.len() > NAME_MAX) {
                findings.push(format!("{}: label {name} is too long", manifest.title()));
            }
        }
    }
    findings
}

/// Where there are policies, every pod has one, for both directions, and can do its work.
#[must_use]
pub fn network_policies_cover_every_pod(manifests: &[Manifest]) -> Vec<String> {
    let mut findings = Vec::new();
    let policies: Vec<_> = of_kind(manifests, "NetworkPolicy").collect();
    if policies.is_empty() {
        return findings;
    }
    for pod in pods(manifests) {
        let title = pod.owner.title();
        let own = policies.iter().find(|one| pod.is_selected(at(&one.0, "/spec/podSelector/matchLabels")));
        let Some(policy) = own else {
            findings.push(format!("{title}: no NetworkPolicy is about it"));
            continue;
        };
        if at(&policy.0, "/spec/policyTypes") != &serde_json::json!(["Ingress", "Egress"]) {
            findings.push(format!("{}: is not about both directions", policy.title()));
        }
        let open = |direction: &str| -> BTreeSet<String> {
            let rules = list(&policy.0, &format!("/spec/{direction}")).iter();
            let ports = rules.flat_map(|rule| list(rule, "/ports"));
            ports.map(|port| at(port, "/port").to_string().trim_matches('"').to_owned()).collect()
        };
        let (into, out) = (open("ingress"), open("egress"));
        for rule in list(&policy.0, "/spec/egress").iter().chain(list(&policy.0, "/spec/ingress")) {
            if list(rule, "/ports").is_empty() && list(rule, "/to").is_empty() && list(rule, "/from").is_empty() {
                findings.push(format!("{}: a rule without limits", policy.title()));
            }
        }
        for container in pod.containers() {
            for port in list(container, "/ports") {
                if !into.contains(text(port, "/name")) {
                    findings.push(format!("{title}: nobody gets to its port {}", text(port, "/name")));
                }
            }
            for (name, wanted) in needed_ports(container) {
                if !out.contains(&wanted) {
                    findings.push(format!("{title}: may not call port {wanted}, which {name} needs"));
                }
            }
        }
        if !out.contains("53") {
            findings.push(format!("{title}: may not ask for names"));
        }
    }
    findings
}

/// Finds which ports a container's settings have it call.
fn needed_ports(container: &Value) -> Vec<(String, String)> {
    let mut needed = Vec::new();
    for (name, value) in env(container) {
        // Their URLs are secret; these are the defaults of the values.
        let store = match name {
            "WAYBILL_DATABASE__URL_FILE" => "5432",
            "WAYBILL_REDIS__URL_FILE" => "6379",
            "WAYBILL_QDRANT__URL_FILE" => "6334",
            _ => "",
        };
        let url = value.unwrap_or_default();
        let port = match url.split_once("://") {
            _ if !store.is_empty() => store.to_owned(),
            Some((scheme @ ("http" | "https"), rest)) => {
                let host = rest.split('/').next().unwrap_or_default();
                let default = if scheme == "https" { "443" } else { "80" };
                host.rsplit_once(':').map_or(default, |(_, port)| port).to_owned()
            }
            _ => continue,
        };
        needed.push((name.to_owned(), port));
    }
    needed
}

/// What runs more than once survives that a node is drained, and no drain waits for ever.
#[must_use]
pub fn disruption_is_bounded(manifests: &[Manifest]) -> Vec<String> {
    let mut findings = Vec::new();
    for budget in of_kind(manifests, "PodDisruptionBudget") {
        let may = at(&budget.0, "/spec/maxUnavailable");
        if may.as_i64().is_none_or(|count| count < 1) && may.as_str().is_none_or(|share| share == "0%") {
            findings.push(format!("{}: no pod may ever be moved", budget.title()));
        }
    }
    for scaler in of_kind(manifests, "HorizontalPodAutoscaler") {
        let target = text(&scaler.0, "/spec/scaleTargetRef/name");
        let found = of_kind(manifests, "Deployment").find(|one| one.name() == target);
        let Some(deployment) = found else {
            findings.push(format!("{}: there is no Deployment {target}", scaler.title()));
            continue;
        };
        if !at(&deployment.0, "/spec/replicas").is_null() {
            findings.push(format!("{}: two say how many pods there are", deployment.title()));
        }
        if at(&scaler.0, "/spec/minReplicas").as_i64() > at(&scaler.0, "/spec/maxReplicas").as_i64() {
            findings.push(format!("{}: the fewest pods are more than the most", scaler.title()));
        }
        if list(&scaler.0, "/spec/metrics").is_empty() {
            findings.push(format!("{}: scales by nothing", scaler.title()));
        }
    }
    findings
}

/// The migration is a hook that can be run again, and what it needs is there before it.
#[must_use]
pub fn the_migration_is_a_hook(manifests: &[Manifest]) -> Vec<String> {
    let mut findings = Vec::new();
    for job in of_kind(manifests, "Job") {
        let hook = job.annotation("helm.sh/hook");
        if !hook.contains("pre-upgrade") {
            findings.push(format!("{}: does not run before an upgrade", job.title()));
        }
        if !job.annotation("helm.sh/hook-delete-policy").contains("before-hook-creation") {
            findings.push(format!("{}: the one of the last upgrade stands in its way", job.title()));
        }
        let Some(pod) = job.pod() else { continue };
        if pod.containers().any(|container| list(container, "/args") != [Value::from("migrate")]) {
            findings.push(format!("{}: does something else than migrate", job.title()));
        }
        let weight = |one: &Manifest| one.annotation("helm.sh/hook-weight").parse::<i64>().unwrap_or(0);
        let account = text(pod.spec, "/serviceAccountName");
        let needed = manifests.iter().filter(|one| {
            let is_account = one.kind() == "ServiceAccount" && one.name() == account;
            let policy = at(&one.0, "/spec/podSelector/matchLabels");
            is_account || one.kind() == "NetworkPolicy" && pod.is_selected(policy)
        });
        for one in needed {
            if !one.annotation("helm.sh/hook").contains("pre-install") || weight(one) >= weight(job) {
                findings.push(format!("{}: comes after {}, which needs it", one.title(), job.title()));
            }
        }
    }
    findings
}

/// Each pod's account is made by the chart, or is one that the user names.
#[must_use]
pub fn accounts_are_there(manifests: &[Manifest]) -> Vec<String> {
    let made: BTreeSet<_> = of_kind(manifests, "ServiceAccount").map(Manifest::name).collect();
    let used: BTreeSet<_> = pods(manifests).map(|pod| text(pod.spec, "/serviceAccountName")).collect();
    let unused = made.difference(&used).map(|name| format!("ServiceAccount {name}: no pod has it"));
    let missing = used.difference(&made).filter(|name| !["shared", "default"].contains(name));
    unused.chain(missing.map(|name| format!("there is no ServiceAccount {name:?}"))).collect()
}
