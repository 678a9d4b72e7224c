//! `waybill up` as a child, and its client commands.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;

use crate::memory::Memory;
use crate::models::{self, ModelName};
use crate::{sh, system};

/// The model that the demo and the benchmark run, and the README recommends: see docs/eval.md.
pub(crate) const DEFAULT_MODEL: ModelName = ModelName::MinilmInt8;

/// Postgres is made anew and a model is loaded: seconds, on a busy machine more.
const START: Duration = Duration::from_secs(180);

/// A stop finishes what is in flight; more than the program's own deadline.
const STOP: Duration = Duration::from_secs(60);

/// How often a file or a process is looked at.
const POLL: Duration = Duration::from_millis(100);

/// Lines of the log that are shown when something went wrong.
const LOG_LINES: usize = 30;

/// Builds programs in release; the first time takes as long as it says.
///
/// # Errors
/// If the build fails.
pub(crate) fn build(packages: &[&str]) -> anyhow::Result<()> {
    sh::step("building in release (the first time: 15 to 25 minutes on 2 cores, most of it the vector engine)");
    let mut build = sh::cargo();
    build.args(["build", "--release", "--bins"]);
    for package in packages {
        build.args(["--package", package]);
    }
    sh::run(&mut build)
}

/// Returns the path of a program that [`build`] made.
pub(crate) fn program(name: &str) -> PathBuf {
    sh::target_dir().join("release").join(name)
}

/// Makes sure that `waybill up` can run `model`, and returns the model's folder.
///
/// # Errors
/// If Postgres, Redis or the model is missing and can't be had.
pub(crate) fn prepare(model: ModelName) -> anyhow::Result<PathBuf> {
    ensure!(model != ModelName::Onnxruntime, "onnxruntime is a library, not a model");
    sh::step("looking for PostgreSQL and Redis (installed if missing: a minute or two)");
    system::ensure_postgres()?;
    system::ensure_redis()?;
    sh::step("looking for the embedding model (fetched once: at most 140 MB)");
    let mut needed = vec![model];
    if model == ModelName::MinilmInt8 {
        needed.push(ModelName::Onnxruntime);
    }
    models::fetch(&needed, &sh::models_dir())?;
    Ok(sh::models_dir().join(model.as_str()))
}

/// Makes an empty folder for one run.
///
/// # Errors
/// If it can't be made.
pub(crate) fn scratch(name: &str) -> anyhow::Result<PathBuf> {
    let dir = std::env::temp_dir().join(format!("waybill-{name}-{}", std::process::id()));
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
    }
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    Ok(dir)
}

/// Where the services answer.
#[derive(Debug, Deserialize)]
pub(crate) struct Endpoints {
    /// SearchService and EmbeddingService.
    pub(crate) embedding: String,
}

/// A running `waybill up`.
pub(crate) struct Up {
    child: Child,
    data_dir: PathBuf,
    memory: Memory,
    endpoints: Endpoints,
}

impl Up {
    /// Starts it under `dir` and waits until everything answers.
    ///
    /// # Errors
    /// If it ends or is not ready in time; the message carries the end of its log.
    pub(crate) fn start(dir: &Path, model_dir: &Path) -> anyhow::Result<Self> {
        let data_dir = data_dir(dir);
        let ready = dir.join("ready.json");
        let log = dir.join("up.log");
        let output = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let mut command = Command::new(program("waybill"));
        command
            .args(["up", "--free-ports", "--data-dir"])
            .arg(&data_dir)
            .arg("--ready-file")
            .arg(&ready)
            .arg("--model-dir")
            .arg(model_dir)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        forget_configuration(&mut command);
        let mut child = command.spawn().context("start waybill up")?;
        match wait_ready(&mut child, &ready) {
            Ok(endpoints) => {
                let memory = Memory::watch(child.id());
                Ok(Self { child, data_dir, memory, endpoints })
            }
            Err(error) => {
                end(&mut child)?;
                bail!("{error:#}; the end of its log:\n{}", tail(&log));
            }
        }
    }

    /// Returns where the services answer.
    pub(crate) fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// Returns a client command, such as `search`, that finds these services.
    pub(crate) fn client(&self, subcommand: &str) -> Command {
        let mut command = Command::new(program("waybill"));
        command.arg(subcommand).arg("--data-dir").arg(&self.data_dir);
        forget_configuration(&mut command);
        command
    }

    /// Imports a folder and waits until all of it is searchable.
    ///
    /// # Errors
    /// If the command fails, or a document was refused.
    pub(crate) fn import(&self, folder: &Path, project: &str) -> anyhow::Result<Imported> {
        let mut import = self.client("import");
        import.arg(folder).args(["--project", project, "--wait", "--json"]);
        // Its progress bar goes to stderr.
        let output = import.stderr(Stdio::inherit()).output().context("start waybill import")?;
        let imported: Imported = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("waybill import ended with {}", output.status))?;
        ensure!(imported.failed == 0, "{} documents were not imported", imported.failed);
        ensure!(output.status.success(), "waybill import ended with {}", output.status);
        Ok(imported)
    }

    /// Stops it and returns the memory it needed.
    ///
    /// # Errors
    /// If it does not stop by itself, or ends with an error.
    pub(crate) fn stop(mut self) -> anyhow::Result<crate::memory::Peak> {
        let peak = self.memory.peak();
        let status = end(&mut self.child)?;
        ensure!(status.success(), "waybill up ended with {status}");
        Ok(peak)
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // After an error: nothing may stay running.
        if let Err(error) = end(&mut self.child) {
            eprintln!("waybill up may still be running: {error:#}");
        }
    }
}

/// Returns the data directory of the `waybill up` under `dir`.
pub(crate) fn data_dir(dir: &Path) -> PathBuf {
    dir.join("data")
}

/// What `waybill import --json` prints.
#[derive(Debug, Deserialize)]
pub(crate) struct Imported {
    /// Documents that were not there before.
    pub(crate) new: u64,
    failed: u64,
    /// Chunks of them.
    pub(crate) chunks_written: u64,
    /// From the first document read to the last answer.
    pub(crate) took_s: f64,
    /// From the last answer, which says that Postgres has committed, to the last
    /// confirmation of Qdrant.
    #[serde(default)]
    searchable_after_s: Option<f64>,
}

impl Imported {
    /// Returns the time from the last commit until everything was searchable.
    pub(crate) fn searchable_after_s(&self) -> f64 {
        self.searchable_after_s.unwrap_or_default()
    }

    /// Returns the time from the first document read until everything was searchable.
    pub(crate) fn total_s(&self) -> f64 {
        self.took_s + self.searchable_after_s()
    }
}

fn wait_ready(child: &mut Child, ready: &Path) -> anyhow::Result<Endpoints> {
    let began = Instant::now();
    while !ready.is_file() {
        if let Some(status) = child.try_wait()? {
            bail!("waybill up ended with {status}");
        }
        ensure!(began.elapsed() < START, "waybill up is not ready after {START:?}");
        thread::sleep(POLL);
    }
    let text = fs::read_to_string(ready).context("read the ready file")?;
    serde_json::from_str(&text).context("read the ready file")
}

/// Asks a process to end, waits, and kills it if it does not.
fn end(child: &mut Child) -> anyhow::Result<std::process::ExitStatus> {
    if let Some(status) = child.try_wait()? {
        return Ok(status);
    }
    // The shell's own `kill`: the standard library sends nothing but SIGKILL.
    sh::run(Command::new("sh").arg("-c").arg(format!("kill -TERM {}", child.id())))?;
    let began = Instant::now();
    while began.elapsed() < STOP {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        thread::sleep(POLL);
    }
    child.kill()?;
    child.wait()?;
    bail!("waybill up did not stop within {STOP:?} and was killed")
}

/// Leaves out what this machine's environment says about another installation.
fn forget_configuration(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if is_forgotten(&name.to_string_lossy()) {
            command.env_remove(&name);
        }
    }
}

/// Tells the variables that say where another installation is from those that say what to use:
/// the stores' programs, and who finds the facts.
fn is_forgotten(name: &str) -> bool {
    let is_url = ["DATABASE_URL", "REDIS_URL", "QDRANT_URL"].contains(&name);
    let is_tool = ["WAYBILL_POSTGRES_BIN_DIR", "WAYBILL_REDIS_BIN"].contains(&name);
    is_url || (name.starts_with("WAYBILL_") && !name.starts_with("WAYBILL_EXTRACTION__") && !is_tool)
}

/// Who finds facts in an [`Up`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Extractor {
    /// Rules: no language model.
    Rules,
    /// A language model; which, and where.
    Llm(String),
}

/// Asks the program who will find facts, by its defaults and the variables that it is left.
///
/// # Errors
/// If the configuration can't be used.
pub(crate) fn extractor() -> anyhow::Result<Extractor> {
    let mut config = Command::new(program("waybill"));
    config.arg("config");
    forget_configuration(&mut config);
    extractor_of(&sh::output(&mut config)?)
}

fn extractor_of(config: &str) -> anyhow::Result<Extractor> {
    let value = |section: &str, key: &str| {
        let header = format!("[{section}]");
        let lines = config.lines().skip_while(|line| *line != header).skip(1).take_while(|line| !line.starts_with('['));
        let found = lines.filter_map(|line| line.split_once(" = ")).find(|(name, _)| *name == key);
        found
            .map(|(_, value)| value.trim_matches('"'))
            .with_context(|| format!("waybill config shows no {section}.{key}"))
    };
    Ok(match value("extraction", "provider")? {
        "rules" => Extractor::Rules,
        _ => Extractor::Llm(format!(
            "{} at {}",
            value("extraction.openai", "model")?,
            value("extraction.openai", "base_url")?
        )),
    })
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines = text.lines().collect::<Vec<_>>();
    lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_names_another_installation_is_forgotten() {
        for name in ["DATABASE_URL", "WAYBILL_DATABASE__URL", "WAYBILL_CONFIG", "WAYBILL_EMBEDDING__MODEL__KIND"] {
            assert!(is_forgotten(name), "{name}");
        }
        for name in ["PATH", "WAYBILL_REDIS_BIN", "WAYBILL_EXTRACTION__PROVIDER", "WAYBILL_EXTRACTION__OPENAI__MODEL"] {
            assert!(!is_forgotten(name), "{name}");
        }
    }

    #[test]
    fn the_configuration_says_who_finds_facts() {
        let config = |provider: &str| {
            format!(
                "# file: none\n\n[embedding.model.openai]\nmodel = \"no\"\n\n[extraction]\nprovider = \"{provider}\"\n\
                 \n[extraction.openai]\nbase_url = \"http://h/v1\"\nmodel = \"m\"\n"
            )
        };
        assert_eq!(extractor_of(&config("rules")).unwrap(), Extractor::Rules);
        assert_eq!(extractor_of(&config("openai")).unwrap(), Extractor::Llm("m at http://h/v1".to_owned()));
        assert!(extractor_of("[extraction]\n[x]\nprovider = \"rules\"\n").is_err());
    }
}
