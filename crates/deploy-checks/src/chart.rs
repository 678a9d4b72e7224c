//! The Helm chart: rendered with each of the sample values, and taken apart.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::tools::Tool;
use crate::{workspace, yaml};

/// The chart's folder, from the workspace's.
pub const CHART: &str = "deploy/helm/waybill";

/// The name and the namespace that it is rendered with.
pub const RELEASE: &str = "w";
/// See [`RELEASE`].
pub const NAMESPACE: &str = "knowledge";

/// The oldest version of Kubernetes that the chart says it runs on.
pub const OLDEST: &str = "1.25.0";
/// The newest that there are schemas of.
pub const NEWEST: &str = "1.37.0";

/// Sample values.
#[derive(Debug, Clone)]
pub struct Case {
    /// The file's name, without its ending.
    pub name: String,
    file: PathBuf,
}

/// Something that the chart makes.
#[derive(Debug, Clone)]
pub struct Manifest(pub Value);

/// The pod of a Deployment, of a Job, or one by itself.
#[derive(Debug, Clone, Copy)]
pub struct Pod<'a> {
    /// What makes it.
    pub owner: &'a Manifest,
    /// `metadata.labels`.
    pub labels: &'a Value,
    /// `spec`.
    pub spec: &'a Value,
}

/// Lists the sample values: one file of the chart's `ci` folder each.
///
/// # Errors
/// If the folder can't be read, or is empty.
pub fn cases() -> anyhow::Result<Vec<Case>> {
    let folder = workspace().join(CHART).join("ci");
    let mut cases = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
        let file = entry?.path();
        let name = file.file_stem().context("a file without a name")?.to_string_lossy().into_owned();
        cases.push(Case { name, file });
    }
    ensure!(cases.len() > 3, "{} has few files", folder.display());
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(cases)
}

/// Finds sample values by name.
///
/// # Errors
/// If there are none of that name.
pub fn case(name: &str) -> anyhow::Result<Case> {
    cases()?.into_iter().find(|case| case.name == name).with_context(|| format!("no {CHART}/ci/{name}.yaml"))
}

impl Case {
    /// Renders the chart with these values, for a version of Kubernetes, and more arguments.
    ///
    /// # Errors
    /// If helm refuses; the message has its words.
    pub fn render(&self, helm: Tool, version: &str, more: &[&str]) -> anyhow::Result<String> {
        let mut command = helm.command()?;
        command.args(["template", RELEASE, CHART, "--namespace", NAMESPACE, "--kube-version", version]);
        command.arg("--values").arg(&self.file).args(more);
        let output = command.output().context("start helm")?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {}", self.name, stderr.trim());
        String::from_utf8(output.stdout).context("read helm's output")
    }

    /// Renders the chart by the newest helm for the newest Kubernetes, and reads it.
    ///
    /// # Errors
    /// If helm refuses, or what it prints is no YAML.
    pub fn manifests(&self) -> anyhow::Result<Vec<Manifest>> {
        read(&self.render(Tool::Helm4, NEWEST, &[])?)
    }

    /// Returns the path of the file.
    #[must_use]
    pub fn file(&self) -> &PathBuf {
        &self.file
    }
}

/// Reads what helm prints.
///
/// # Errors
/// If it is no YAML.
pub fn read(rendered: &str) -> anyhow::Result<Vec<Manifest>> {
    Ok(yaml::documents(rendered)?.into_iter().map(Manifest).collect())
}

impl Manifest {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> &str {
        yaml::text(&self.0, "/kind")
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        yaml::text(&self.0, "/metadata/name")
    }

    /// What it is called in messages.
    #[must_use]
    pub fn title(&self) -> String {
        format!("{} {}", self.kind(), self.name())
    }

    /// An annotation; empty if it has none of that name.
    #[must_use]
    pub fn annotation(&self, name: &str) -> &str {
        self.0
            .pointer("/metadata/annotations")
            .and_then(|all| all.get(name))
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// Its pod, if it makes one.
    #[must_use]
    pub fn pod(&self) -> Option<Pod<'_>> {
        let template = match self.kind() {
            "Deployment" | "Job" => self.0.pointer("/spec/template")?,
            "Pod" => &self.0,
            _ => return None,
        };
        Some(Pod { owner: self, labels: yaml::at(template, "/metadata/labels"), spec: template.get("spec")? })
    }
}

impl<'a> Pod<'a> {
    /// Its containers, those that run before among them.
    pub fn containers(&self) -> impl Iterator<Item = &'a Value> + use<'a> {
        yaml::list(self.spec, "/initContainers").iter().chain(yaml::list(self.spec, "/containers"))
    }

    /// Whether a selector's `matchLabels` select it.
    #[must_use]
    pub fn is_selected(&self, labels: &Value) -> bool {
        labels.as_object().is_some_and(|wanted| {
            !wanted.is_empty() && wanted.iter().all(|(name, value)| self.labels.get(name) == Some(value))
        })
    }
}

/// The variables that say that the admin port speaks TLS, and that it asks for certificates.
pub const ADMIN_CERTIFICATE: &str = "WAYBILL_ADMIN__TLS__CERT_FILE";
/// See [`ADMIN_CERTIFICATE`].
pub const ADMIN_CLIENT_CA: &str = "WAYBILL_ADMIN__TLS__CLIENT_CA_FILE";

/// Lists all pods.
pub fn pods(manifests: &[Manifest]) -> impl Iterator<Item = Pod<'_>> {
    manifests.iter().filter_map(Manifest::pod)
}

/// Returns the variables of a container, by name; of those from a Secret, `None`.
#[must_use]
pub fn env(container: &Value) -> BTreeMap<&str, Option<&str>> {
    let variables = yaml::list(container, "/env").iter();
    variables.map(|one| (yaml::text(one, "/name"), one.get("value").and_then(Value::as_str))).collect()
}

/// Returns the files that a pod's volume of Secrets puts at `/etc/waybill/secrets`.
#[must_use]
pub fn secret_files(pod: &Pod<'_>) -> Vec<String> {
    let volumes = yaml::list(pod.spec, "/volumes").iter().filter(|volume| yaml::text(volume, "/name") == "secrets");
    let sources = volumes.flat_map(|volume| yaml::list(volume, "/projected/sources"));
    let items = sources.flat_map(|source| yaml::list(source, "/secret/items"));
    items.map(|item| yaml::text(item, "/path").to_owned()).collect()
}
