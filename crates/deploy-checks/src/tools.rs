//! The real tools, as `cargo xtask setup` fetches them.

use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use crate::workspace;

/// Names the folder of the tools.
const DIR_VARIABLE: &str = "WAYBILL_TEST_TOOLS_DIR";

/// The folder of the tools in Python.
const PYTHON_PACKAGES: &str = "kubernetes-validate";

/// A tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// Helm of the major version that most have.
    Helm3,
    /// Helm of the newest major version.
    Helm4,
    /// Lints protos and finds breaking changes.
    Buf,
    /// Lints Dockerfiles.
    Hadolint,
    /// Checks and tests alert rules.
    Promtool,
    /// Validates manifests against the schemas of a version of Kubernetes.
    KubernetesValidate,
    /// Validates JSON by a schema.
    JsonSchema,
}

/// How a tool ended, and what it said.
#[derive(Debug)]
pub struct Ran {
    /// Whether it ended with 0.
    pub is_success: bool,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

fn dir() -> PathBuf {
    env::var_os(DIR_VARIABLE).map_or_else(|| workspace().join("target/tools"), PathBuf::from)
}

/// Returns the schema of compose files, which a Python package carries.
#[must_use]
pub fn compose_schema() -> PathBuf {
    dir().join(PYTHON_PACKAGES).join("check_jsonschema/builtin_schemas/vendor/compose-spec.json")
}

impl Tool {
    const fn name(self) -> &'static str {
        match self {
            Self::Helm3 => "helm3",
            Self::Helm4 => "helm4",
            Self::Buf => "buf",
            Self::Hadolint => "hadolint",
            Self::Promtool => "promtool",
            Self::KubernetesValidate | Self::JsonSchema => PYTHON_PACKAGES,
        }
    }

    /// Prepares a call from the workspace's folder, with none of this user's settings.
    ///
    /// # Errors
    /// If the tool is not there; the message says how to get it.
    pub fn command(self) -> anyhow::Result<Command> {
        let name = self.name();
        let folder = dir().join(name);
        let program = folder.join(name);
        let module = match self {
            Self::KubernetesValidate => "kubernetes_validate",
            Self::JsonSchema => "jsonschema",
            _ => "",
        };
        let mut command = if !module.is_empty() {
            ensure!(folder.is_dir(), "{} is not there: run `cargo xtask setup`", folder.display());
            let mut command = Command::new("python3");
            command.args(["-W", "ignore", "-m", module]).env("PYTHONPATH", &folder);
            command.env("PYTHONDONTWRITEBYTECODE", "1");
            command
        } else if program.is_file() {
            Command::new(program)
        } else {
            // Machines for which none is pinned bring their own.
            let path = env::var_os("PATH").unwrap_or_default();
            let found = env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.is_file());
            Command::new(found.with_context(|| format!("{name} is not there: run `cargo xtask setup`"))?)
        };
        command.current_dir(workspace()).stdin(Stdio::null());
        if matches!(self, Self::Helm3 | Self::Helm4) {
            // Plugins and repositories of this user must make no difference.
            let home = workspace().join("target/tools/helm-home");
            command.env("HELM_CACHE_HOME", &home).env("HELM_CONFIG_HOME", &home).env("HELM_DATA_HOME", &home);
            command.env_remove("KUBECONFIG");
        }
        Ok(command)
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// If it is not there or does not start.
    pub fn run<S: AsRef<std::ffi::OsStr>>(self, args: impl IntoIterator<Item = S>) -> anyhow::Result<Ran> {
        let output = self.command()?.args(args).output().with_context(|| format!("start {}", self.name()))?;
        Ok(Ran {
            is_success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

impl Ran {
    /// Returns the standard output of a run that succeeded.
    ///
    /// # Errors
    /// If it did not, with all that it said.
    pub fn stdout(self) -> anyhow::Result<String> {
        ensure!(self.is_success, "{}\n{}", self.stderr.trim(), self.stdout.trim());
        Ok(self.stdout)
    }
}
