//! A directory in which the whole system runs, over stores of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use waybill_testkit::Program;

use crate::program::{Ran, run, waybill};

/// initdb on a busy machine, and a recovery, each take seconds.
pub(crate) const UP_LIMIT: Duration = Duration::from_secs(120);

/// The stop's own deadline is 25 s, and Postgres writes a checkpoint after it.
pub(crate) const STOP_LIMIT: Duration = Duration::from_secs(60);

/// Returns the folder of the static model: small and quick.
pub(crate) fn model() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let models = std::env::var_os("WAYBILL_MODELS_DIR").map_or_else(|| workspace.join("target/models"), PathBuf::from);
    let model = models.join("wordllama");
    assert!(model.is_dir(), "no model in {}: run `cargo xtask fetch-models`", model.display());
    model
}

/// A directory for everything, and how to run commands on it.
pub(crate) struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Runs `waybill up` until it is ready.
    pub(crate) async fn up(&self) -> Program {
        self.up_with(&[]).await
    }

    /// Runs `waybill up` with more environment until it is ready.
    pub(crate) async fn up_with(&self, variables: &[(&str, &str)]) -> Program {
        let mut command = waybill(self.dir.path());
        command.envs(variables.iter().copied());
        command.args(["up", "--free-ports", "--data-dir"]).arg(self.data_dir());
        command.arg("--model-dir").arg(model()).envs(variables.iter().copied());
        let up = Program::spawn(command.into()).unwrap();
        up.line("Waybill is up", UP_LIMIT).await.unwrap();
        up
    }

    /// Reads where what is up answers.
    pub(crate) fn endpoints(&self) -> Value {
        let file = std::fs::read_to_string(self.data_dir().join("endpoints.json")).unwrap();
        serde_json::from_str(&file).unwrap()
    }

    /// Runs a client command on what is up.
    pub(crate) async fn run(&self, args: &[&str]) -> Ran {
        let mut args: Vec<_> = args.iter().map(|&arg| arg.to_owned()).collect();
        args.extend(["--data-dir".to_owned(), self.data_dir().display().to_string()]);
        let home = self.dir.path().to_owned();
        tokio::task::spawn_blocking(move || run(&home, &args)).await.unwrap()
    }

    /// Runs a client command that prints one JSON object.
    pub(crate) async fn json(&self, args: &[&str]) -> Value {
        let ran = self.run(&[args, &["--json"]].concat()).await.expect_code(0);
        serde_json::from_str(&ran.stdout).unwrap()
    }

    /// Runs a client command that prints JSON objects, one a line.
    pub(crate) async fn json_lines(&self, args: &[&str]) -> Vec<Value> {
        let ran = self.run(&[args, &["--json"]].concat()).await.expect_code(0);
        ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}
