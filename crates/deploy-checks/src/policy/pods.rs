//! Rules about single pods.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::chart::{ADMIN_CERTIFICATE, Manifest, Pod, env, pods, secret_files};
use crate::yaml::{at, list, text};

/// Seconds that a program may take beyond its deadline, to say goodbye to its stores.
const GRACE_MARGIN_S: i64 = 5;

/// Applies a rule to each container of ours; those that users add are theirs.
fn each_container(manifests: &[Manifest], rule: impl Fn(&Pod<'_>, &Value, &mut dyn FnMut(String))) -> Vec<String> {
    let mut findings = Vec::new();
    for pod in pods(manifests) {
        for container in pod.containers() {
            let title = format!("{}, container {}", pod.owner.title(), text(container, "/name"));
            rule(&pod, container, &mut |finding| findings.push(format!("{title}: {finding}")));
        }
    }
    findings
}

/// An image has a version that stays, or a digest.
#[must_use]
pub fn images_name_a_version(manifests: &[Manifest]) -> Vec<String> {
    each_container(manifests, |_, container, find| {
        let image = text(container, "/image");
        let last = image.rsplit('/').next().unwrap_or_default();
        let is_fixed = match image.split_once("@sha256:") {
            Some((_, digest)) => digest.len() == 64,
            None => last.split_once(':').is_some_and(|(_, tag)| !tag.is_empty() && tag != "latest"),
        };
        if !is_fixed {
            find(format!("image {image:?} names no version"));
        }
    })
}

/// A pod says what it needs, and the memory it may take at the most.
#[must_use]
pub fn resources_are_set(manifests: &[Manifest]) -> Vec<String> {
    each_container(manifests, |_, container, find| {
        for path in ["requests/cpu", "requests/memory", "limits/memory"] {
            if at(container, &format!("/resources/{path}")).is_null() {
                find(format!("no resources.{path}"));
            }
        }
    })
}

/// Services have their probes, at paths that the admin port has.
#[must_use]
pub fn services_are_probed(manifests: &[Manifest]) -> Vec<String> {
    let deployments: Vec<_> = manifests.iter().filter(|one| one.kind() == "Deployment").cloned().collect();
    each_container(&deployments, |_, container, find| {
        let ports: Vec<_> = list(container, "/ports").iter().map(|port| text(port, "/name")).collect();
        let scheme = if env(container).contains_key(ADMIN_CERTIFICATE) { "HTTPS" } else { "" };
        for (probe, path) in [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
            let get = at(container, &format!("/{probe}/httpGet"));
            if text(get, "/path") != path {
                find(format!("{probe} asks {:?}, not {path:?}", text(get, "/path")));
            }
            if text(get, "/port") != "metrics" || !ports.contains(&"metrics") {
                find(format!("{probe} asks another port than the admin port"));
            }
            if text(get, "/scheme") != scheme {
                find(format!("{probe} does not speak as the admin port does"));
            }
        }
    })
}

/// Pods keep to the restricted Pod Security Standard, and write nothing.
#[must_use]
pub fn pods_have_no_privilege(manifests: &[Manifest]) -> Vec<String> {
    let mut findings = each_container(manifests, |pod, container, find| {
        let own = at(container, "/securityContext");
        let of_pod = at(pod.spec, "/securityContext");
        let is = |value: &Value, path: &str, wanted: bool| at(value, path).as_bool() == Some(wanted);
        if !is(own, "/allowPrivilegeEscalation", false) {
            find("may gain privileges".to_owned());
        }
        if !is(own, "/readOnlyRootFilesystem", true) {
            find("may write to its file system".to_owned());
        }
        if !is(own, "/runAsNonRoot", true) || !is(of_pod, "/runAsNonRoot", true) {
            find("may run as root".to_owned());
        }
        if at(own, "/privileged").as_bool() == Some(true) {
            find("is privileged".to_owned());
        }
        if at(own, "/capabilities/drop") != &serde_json::json!(["ALL"]) || !list(own, "/capabilities/add").is_empty() {
            find("keeps capabilities".to_owned());
        }
        if at(of_pod, "/runAsUser").as_i64().is_none_or(|uid| uid < 10_000) {
            find("has a user id that the node may have too".to_owned());
        }
        if text(of_pod, "/seccompProfile/type") != "RuntimeDefault" {
            find("has no seccomp profile".to_owned());
        }
        if list(container, "/ports").iter().any(|port| !at(port, "/hostPort").is_null()) {
            find("takes a port of the node".to_owned());
        }
    });
    for pod in pods(manifests) {
        for host in ["hostNetwork", "hostPID", "hostIPC"] {
            if at(pod.spec, &format!("/{host}")).as_bool() == Some(true) {
                findings.push(format!("{}: {host}", pod.owner.title()));
            }
        }
        for volume in list(pod.spec, "/volumes") {
            if !at(volume, "/hostPath").is_null() {
                findings.push(format!("{}: a folder of the node as a volume", pod.owner.title()));
            }
        }
    }
    findings
}

/// No pod is given a token of the API server: none needs it.
#[must_use]
pub fn no_token_is_mounted(manifests: &[Manifest]) -> Vec<String> {
    let mut findings = Vec::new();
    for pod in pods(manifests) {
        if at(pod.spec, "/automountServiceAccountToken").as_bool() != Some(false) {
            findings.push(format!("{}: mounts a token", pod.owner.title()));
        }
        // Variables for each Service would be read as settings.
        if at(pod.spec, "/enableServiceLinks").as_bool() != Some(false) {
            findings.push(format!("{}: gets variables for Services", pod.owner.title()));
        }
    }
    for account in manifests.iter().filter(|one| one.kind() == "ServiceAccount") {
        if at(&account.0, "/automountServiceAccountToken").as_bool() != Some(false) {
            findings.push(format!("{}: mounts a token", account.title()));
        }
    }
    findings
}

/// A pod is killed only after the program's own deadline.
#[must_use]
pub fn the_grace_period_fits(manifests: &[Manifest]) -> Vec<String> {
    let deployments: Vec<_> = manifests.iter().filter(|one| one.kind() == "Deployment").cloned().collect();
    each_container(&deployments, |pod, container, find| {
        let deadline = env(container).get("WAYBILL_SHUTDOWN__DEADLINE_S").copied().flatten();
        let Some(deadline) = deadline.and_then(|text| text.parse::<i64>().ok()) else {
            find("does not say its deadline".to_owned());
            return;
        };
        let sleep = at(container, "/lifecycle/preStop/sleep/seconds").as_i64().unwrap_or(0);
        let grace = at(pod.spec, "/terminationGracePeriodSeconds").as_i64().unwrap_or(30);
        if grace < sleep + deadline + GRACE_MARGIN_S {
            find(format!("is killed after {grace} s, though it may take {sleep} + {deadline} s"));
        }
    })
}

/// What is mounted is there, what is there is mounted, and each file that is named exists.
#[must_use]
pub fn volumes_and_files_fit(manifests: &[Manifest]) -> Vec<String> {
    let mut findings = Vec::new();
    for pod in pods(manifests) {
        let volumes: BTreeSet<_> = list(pod.spec, "/volumes").iter().map(|volume| text(volume, "/name")).collect();
        let mounts: Vec<_> = pod.containers().flat_map(|container| list(container, "/volumeMounts")).collect();
        let mounted: BTreeSet<_> = mounts.iter().map(|mount| text(mount, "/name")).collect();
        if volumes != mounted {
            findings.push(format!("{}: volumes {volumes:?}, mounted {mounted:?}", pod.owner.title()));
        }
        for mount in mounts {
            if at(mount, "/readOnly").as_bool() != Some(true) {
                findings.push(format!("{}: {} may be written", pod.owner.title(), text(mount, "/name")));
            }
        }
    }
    findings.extend(each_container(manifests, |pod, container, find| {
        let folders: Vec<_> = list(container, "/volumeMounts").iter().map(|mount| text(mount, "/mountPath")).collect();
        let secrets = secret_files(pod);
        let mut read = BTreeSet::new();
        for (name, value) in env(container) {
            let Some(path) = value.filter(|value| value.starts_with("/etc/waybill/")) else { continue };
            if !folders.iter().any(|folder| path.starts_with(&format!("{folder}/"))) {
                find(format!("{name} names {path}, which is in no volume"));
            }
            if let Some(file) = path.strip_prefix("/etc/waybill/secrets/") {
                if !secrets.iter().any(|known| known == file) {
                    find(format!("{name} names {path}, which no Secret has"));
                }
                read.insert(file.to_owned());
            }
        }
        for file in secrets.iter().filter(|file| !read.contains(*file)) {
            find(format!("gets the secret {file} and has no use for it"));
        }
    }));
    findings
}

/// No variable is set twice: the later would win, without a word.
#[must_use]
pub fn variables_are_set_once(manifests: &[Manifest]) -> Vec<String> {
    each_container(manifests, |_, container, find| {
        let mut seen = BTreeSet::new();
        for variable in list(container, "/env") {
            let name = text(variable, "/name");
            if !seen.insert(name) {
                find(format!("{name} is set twice"));
            }
            if at(variable, "/value").is_null() && at(variable, "/valueFrom").is_null() {
                find(format!("{name} has no value"));
            }
        }
    })
}

/// The password of a store or a key never stands in a manifest, where more people may read it.
#[must_use]
pub fn secrets_stay_in_secrets(manifests: &[Manifest]) -> Vec<String> {
    let mut findings = each_container(manifests, |_, container, find| {
        for (name, value) in env(container) {
            let is_secret = ["DATABASE__URL", "REDIS__URL", "QDRANT__URL", "API_KEY", "SERVICE_KEY", "BOOTSTRAP_KEY"]
                .iter()
                .any(|secret| name.ends_with(secret));
            if is_secret && value.is_some() {
                find(format!("{name} stands in the manifest"));
            }
        }
    });
    let made = manifests.iter().filter(|one| one.kind() == "Secret");
    findings.extend(made.map(|one| format!("{}: Secrets are the user's", one.title())));
    findings
}
