//! Each rule has teeth: when what it is about is taken out, it says so.

use serde_json::{Value, json};
use waybill_deploy_checks::chart::{Manifest, case};
use waybill_deploy_checks::policy::{self, Policy};

/// A change of the manifests' text, at the paths (`/spec/...`) of all manifests of a kind.
struct Mutation {
    kind: &'static str,
    path: &'static str,
    /// `None` takes away what is there.
    to: Option<Value>,
}

fn take(kind: &'static str, path: &'static str) -> Mutation {
    Mutation { kind, path, to: None }
}

fn put(kind: &'static str, path: &'static str, to: Value) -> Mutation {
    Mutation { kind, path, to: Some(to) }
}

const CONTAINER: &str = "/spec/template/spec/containers/0";

impl Mutation {
    fn apply(&self, manifests: &mut [Manifest]) {
        let mut count = 0;
        for manifest in manifests.iter_mut().filter(|one| one.kind() == self.kind) {
            let (parent, key) = self.path.rsplit_once('/').unwrap();
            let Some(parent) = manifest.0.pointer_mut(parent) else { continue };
            let key = key.replace("~1", "/");
            match (parent, &self.to) {
                (Value::Object(map), Some(to)) => drop(map.insert(key, to.clone())),
                (Value::Object(map), None) => drop(map.shift_remove(&key)),
                (Value::Array(list), Some(to)) => list.push(to.clone()),
                (other, _) => panic!("{} is {other}", self.path),
            }
            count += 1;
        }
        assert!(count > 0, "nothing of kind {} has {}", self.kind, self.path);
    }
}

/// Checks that a rule holds for sample values, and for none of the mutations of what they give.
fn caught(policy: Policy, name: &str, mutations: &[Mutation]) {
    let manifests = case(name).unwrap().manifests().unwrap();
    assert_eq!(policy(&manifests), Vec::<String>::new());
    for mutation in mutations {
        let mut changed = manifests.clone();
        mutation.apply(&mut changed);
        assert!(!policy(&changed).is_empty(), "nobody notices that {} of {} is changed", mutation.path, mutation.kind);
    }
}

fn container(path: &str) -> &'static str {
    // Leaked, as these are constants that can't be put together at compile time.
    format!("{CONTAINER}{path}").leak()
}

#[test]
fn of_images() {
    let image = container("/image");
    caught(
        policy::images_name_a_version,
        "tei",
        &[
            put("Deployment", image, json!("waybill:latest")),
            put("Deployment", image, json!("registry:5000/waybill")),
            put("Job", image, json!("waybill@sha256:12")),
        ],
    );
}

#[test]
fn of_resources() {
    caught(
        policy::resources_are_set,
        "tei",
        &[
            take("Deployment", container("/resources/limits/memory")),
            take("Deployment", container("/resources/requests/cpu")),
            take("Job", container("/resources/requests/memory")),
        ],
    );
}

#[test]
fn of_probes() {
    caught(
        policy::services_are_probed,
        "tei",
        &[
            take("Deployment", container("/startupProbe")),
            take("Deployment", container("/livenessProbe")),
            take("Deployment", container("/readinessProbe")),
            put("Deployment", container("/livenessProbe/httpGet/path"), json!("/readyz")),
            put("Deployment", container("/readinessProbe/httpGet/port"), json!("grpc")),
        ],
    );
}

#[test]
fn of_privilege() {
    caught(
        policy::pods_have_no_privilege,
        "tei",
        &[
            take("Deployment", container("/securityContext")),
            put("Deployment", container("/securityContext/allowPrivilegeEscalation"), json!(true)),
            put("Deployment", container("/securityContext/readOnlyRootFilesystem"), json!(false)),
            put("Deployment", container("/securityContext/privileged"), json!(true)),
            put("Deployment", container("/securityContext/runAsNonRoot"), json!(false)),
            put("Deployment", container("/securityContext/capabilities/add"), json!(["NET_ADMIN"])),
            take("Deployment", container("/securityContext/capabilities/drop")),
            put("Deployment", container("/ports/0/hostPort"), json!(7701)),
            put("Job", "/spec/template/spec/securityContext/runAsUser", json!(0)),
            take("Job", "/spec/template/spec/securityContext/seccompProfile"),
            put("Pod", "/spec/hostNetwork", json!(true)),
            put("Deployment", "/spec/template/spec/volumes/-", json!({"name": "x", "hostPath": {"path": "/"}})),
        ],
    );
}

#[test]
fn of_tokens() {
    caught(
        policy::no_token_is_mounted,
        "tei",
        &[
            take("Deployment", "/spec/template/spec/automountServiceAccountToken"),
            put("Pod", "/spec/automountServiceAccountToken", json!(true)),
            take("ServiceAccount", "/automountServiceAccountToken"),
            take("Job", "/spec/template/spec/enableServiceLinks"),
        ],
    );
}

#[test]
fn of_grace() {
    caught(
        policy::the_grace_period_fits,
        "tei",
        &[
            take("Deployment", "/spec/template/spec/terminationGracePeriodSeconds"),
            put("Deployment", "/spec/template/spec/terminationGracePeriodSeconds", json!(30)),
            put("Deployment", container("/lifecycle/preStop/sleep/seconds"), json!(20)),
            put("Deployment", container("/env"), json!([])),
        ],
    );
}

#[test]
fn of_volumes_and_files() {
    let env = container("/env/-");
    let secrets = "/spec/template/spec/volumes/0/projected/sources";
    caught(
        policy::volumes_and_files_fit,
        "tls-secret",
        &[
            put("Deployment", container("/volumeMounts"), json!([])),
            put("Deployment", container("/volumeMounts/0/readOnly"), json!(false)),
            put("Deployment", env, json!({"name": "A", "value": "/etc/waybill/secrets/none"})),
            put("Deployment", env, json!({"name": "A", "value": "/etc/waybill/elsewhere/none"})),
            put("Deployment", secrets, json!([])),
            put("Deployment", container("/env"), json!([])),
        ],
    );
}

#[test]
fn of_variables() {
    let env = container("/env/-");
    caught(
        policy::variables_are_set_once,
        "tei",
        &[
            put("Deployment", env, json!({"name": "WAYBILL_LOG", "value": "debug"})),
            put("Job", env, json!({"name": "WAYBILL_SOMETHING"})),
        ],
    );
}

#[test]
fn of_secrets() {
    let env = container("/env/-");
    caught(
        policy::secrets_stay_in_secrets,
        "tei",
        &[
            put("Deployment", env, json!({"name": "WAYBILL_DATABASE__URL", "value": "postgres://u:p@h/d"})),
            put("Pod", "/spec/containers/0/env/-", json!({"name": "WAYBILL_API_KEY", "value": "k"})),
            put("ConfigMap", "/kind", json!("Secret")),
        ],
    );
}

#[test]
fn of_selectors() {
    let other = json!({"app.kubernetes.io/component": "relay"});
    caught(
        policy::selectors_match_labels,
        "tls-cert-manager",
        &[
            put("Deployment", "/spec/selector/matchLabels", other.clone()),
            put("Deployment", "/spec/selector/matchLabels", json!({"app.kubernetes.io/name": "waybill"})),
            put("Deployment", "/spec/template/metadata/labels", json!({"a": "b"})),
            put("Service", "/spec/selector", other.clone()),
            put("PodDisruptionBudget", "/spec/selector/matchLabels", json!({"a": "b"})),
            put("NetworkPolicy", "/spec/podSelector/matchLabels", other.clone()),
            put("ServiceMonitor", "/spec/selector/matchLabels", other.clone()),
            put("ServiceMonitor", "/spec/endpoints/0/port", json!("grpc")),
            put("Deployment", "/spec/template/spec/topologySpreadConstraints/0/labelSelector/matchLabels", other),
        ],
    );
}

#[test]
fn of_probes_and_scrapes_over_tls() {
    caught(
        policy::services_are_probed,
        "tls-everywhere",
        &[
            take("Deployment", container("/livenessProbe/httpGet/scheme")),
            put("Deployment", container("/readinessProbe/httpGet/scheme"), json!("HTTP")),
            put("Deployment", container("/env"), json!([])),
        ],
    );
    let endpoint = |path: &str| -> &'static str { format!("/spec/endpoints/0{path}").leak() };
    caught(
        policy::scrapes_speak_as_the_admin_port,
        "tls-everywhere",
        &[
            take("ServiceMonitor", endpoint("/scheme")),
            take("ServiceMonitor", endpoint("/tlsConfig")),
            take("ServiceMonitor", endpoint("/tlsConfig/ca")),
            take("ServiceMonitor", endpoint("/tlsConfig/cert")),
            take("ServiceMonitor", endpoint("/tlsConfig/keySecret")),
            put("ServiceMonitor", endpoint("/tlsConfig/serverName"), json!("elsewhere")),
            put("Deployment", container("/env"), json!([])),
        ],
    );
    let plain = put("ServiceMonitor", endpoint("/scheme"), json!("https"));
    caught(policy::scrapes_speak_as_the_admin_port, "tls-cert-manager", &[plain]);
    let asks = json!({"name": "WAYBILL_ADMIN__TLS__CERT_FILE", "value": "/etc/waybill/tls/tls.crt"});
    caught(policy::services_are_probed, "tls-secret", &[put("Deployment", container("/env/-"), asks)]);
}

#[test]
fn of_ports() {
    caught(
        policy::services_lead_to_ports,
        "tei",
        &[
            put("Service", "/spec/ports/0/targetPort", json!("http")),
            put("Service", "/spec/ports/0/port", json!(80)),
            put("Deployment", container("/ports/0/containerPort"), json!(80)),
            put("Deployment", container("/env"), json!([])),
        ],
    );
}

#[test]
fn of_endpoints() {
    let env = container("/env/-");
    let endpoint = |url: &str| json!({"name": "WAYBILL_ENDPOINTS__OTHER", "value": url});
    caught(
        policy::endpoints_lead_to_services,
        "tls-cert-manager",
        &[
            put("Deployment", env, endpoint("https://w-waybill-gone.knowledge.svc:7701")),
            put("Deployment", env, endpoint("https://w-waybill-relay.knowledge.svc:7701")),
            put("Deployment", env, endpoint("http://w-waybill-relay.knowledge.svc:7704")),
            put("Certificate", "/spec/dnsNames", json!(["w-waybill-relay"])),
            put("Service", "/metadata/name", json!("other")),
        ],
    );
}

#[test]
fn of_names() {
    caught(
        policy::names_are_fit,
        "tei",
        &[
            put("Deployment", "/metadata/name", json!("same")),
            put("Job", "/metadata/name", json!("n".repeat(64))),
            put("Service", "/metadata/namespace", json!("default")),
            take("Service", "/metadata/namespace"),
            put("Service", "/metadata/labels/long", json!("l".repeat(64))),
        ],
    );
}

#[test]
fn of_network_policies() {
    caught(
        policy::network_policies_cover_every_pod,
        "tls-secret",
        &[
            put("NetworkPolicy", "/spec/podSelector/matchLabels", json!({"a": "b"})),
            put("NetworkPolicy", "/spec/policyTypes", json!(["Ingress"])),
            put("NetworkPolicy", "/spec/egress", json!([])),
            put("NetworkPolicy", "/spec/egress/-", json!({})),
            put("NetworkPolicy", "/spec/ingress", json!([])),
            put("NetworkPolicy", "/spec/egress", json!([{"ports": [{"port": 53}]}])),
        ],
    );
}

#[test]
fn of_disruption() {
    caught(
        policy::disruption_is_bounded,
        "autoscaling",
        &[
            put("PodDisruptionBudget", "/spec/maxUnavailable", json!(0)),
            put("PodDisruptionBudget", "/spec/maxUnavailable", json!("0%")),
            put("HorizontalPodAutoscaler", "/spec/scaleTargetRef/name", json!("other")),
            put("HorizontalPodAutoscaler", "/spec/minReplicas", json!(100)),
            put("HorizontalPodAutoscaler", "/spec/metrics", json!([])),
            put("Deployment", "/spec/replicas", json!(2)),
        ],
    );
}

#[test]
fn of_the_migration() {
    caught(
        policy::the_migration_is_a_hook,
        "tei",
        &[
            take("Job", "/metadata/annotations/helm.sh~1hook"),
            take("Job", "/metadata/annotations/helm.sh~1hook-delete-policy"),
            put("Job", container("/args"), json!(["serve", "relay"])),
            take("ServiceAccount", "/metadata/annotations"),
            take("NetworkPolicy", "/metadata/annotations"),
            put("Job", "/metadata/annotations/helm.sh~1hook-weight", json!("-20")),
        ],
    );
}

#[test]
fn of_accounts() {
    caught(
        policy::accounts_are_there,
        "tei",
        &[
            put("ServiceAccount", "/metadata/name", json!("other")),
            put("Deployment", "/spec/template/spec/serviceAccountName", json!("shared")),
        ],
    );
}
