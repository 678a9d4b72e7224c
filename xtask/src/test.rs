//! `cargo xtask test`.

use std::process::Command;

use anyhow::Context as _;

use crate::llm::{self, LlmServer};
use crate::models::{self, ModelName};
use crate::{sh, system};

/// Arguments of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub(crate) struct TestArgs {
    /// Only tests with one of these in their names
    filters: Vec<String>,
    /// Give tests with random input more rounds: half an hour rather than minutes
    #[arg(long)]
    long: bool,
    /// Instead of the tests, have a small real language model find facts, through the whole
    /// system (fetched once: 127 MB, and some minutes). WAYBILL_TEST_LLM_URL and
    /// WAYBILL_TEST_LLM_MODEL name another one to ask
    #[arg(long, conflicts_with_all = ["filters", "long"])]
    llm: bool,
}

/// Tells tests that they may take long.
const LONG_VARIABLE: &str = "WAYBILL_TEST_LONG";

/// Where the language model of `--llm` is: `http://host:port/v1`.
pub(crate) const LLM_URL_VARIABLE: &str = "WAYBILL_TEST_LLM_URL";

/// What its server calls it.
const LLM_MODEL_VARIABLE: &str = "WAYBILL_TEST_LLM_MODEL";

/// Builds and finds that test alone, with the features that all tests are built with: with
/// others, dependencies would be built twice.
const LLM_TARGET: [&str; 5] = ["--workspace", "--features", "waybill/llm-test", "--test", "llm"];

/// How many cases a property test tries under `--long`; its own default is 256.
const LONG_PROPTEST_CASES: &str = "5000";

/// Sets up what the tests stand on, builds everything, runs the tests.
///
/// # Errors
/// If something can't be set up or a test fails.
pub(crate) fn run(args: &TestArgs) -> anyhow::Result<()> {
    if args.llm {
        return llm();
    }
    crate::setup()?;

    sh::step("building tests and the programs they start (the first time: 15 to 25 minutes on 2 cores)");
    // In one go: with other sets of targets, dependencies would be built twice.
    sh::run(sh::cargo().args(["build", "--workspace", "--bins", "--tests"]))?;

    if args.filters.is_empty() {
        sh::step("checking the examples in the documentation (a minute)");
        sh::run(sh::cargo().args(["test", "--quiet", "--workspace", "--doc"]))?;
    }

    sh::step("running the tests against a Postgres and a Redis of their own (a few minutes)");
    // Last, so that the runner's summary is the last thing to be read.
    sh::run(&mut runner(args, sh::has_cargo_subcommand("nextest")))
}

/// Runs the one test that needs a real language model.
fn llm() -> anyhow::Result<()> {
    sh::step("looking for PostgreSQL, Redis and pip (installed if missing: a few minutes)");
    system::ensure_postgres()?;
    system::ensure_redis()?;
    system::ensure_pip()?;
    models::fetch(&[ModelName::Wordllama], &sh::models_dir())?;

    sh::step("building the test and the programs it starts (the first time: 15 to 25 minutes on 2 cores)");
    sh::run(sh::cargo().arg("build").args(LLM_TARGET).arg("--bins"))?;

    // Ours, if it has to be: it ends with this function.
    let server;
    let mut test = llm_test();
    if std::env::var_os(LLM_URL_VARIABLE).is_some() {
        let model = std::env::var(LLM_MODEL_VARIABLE);
        model.with_context(|| format!("{LLM_URL_VARIABLE} is set: name the model in {LLM_MODEL_VARIABLE}"))?;
    } else {
        server = LlmServer::start()?;
        test.env(LLM_URL_VARIABLE, server.url()).env(LLM_MODEL_VARIABLE, llm::MODEL);
    }
    sh::step("having a real language model find facts (2 to 10 minutes)");
    sh::run(&mut test)
}

fn llm_test() -> Command {
    let mut command = sh::cargo();
    command.arg("test").args(LLM_TARGET).args(["--", "--nocapture"]);
    keep_to_ourselves(&mut command);
    command
}

/// Puts the command together that runs the tests with stores around them.
fn runner(args: &TestArgs, has_nextest: bool) -> Command {
    let cargo = sh::cargo();
    let mut command = Command::new(sh::target_dir().join("debug/with-test-stores"));
    command.current_dir(sh::root()).arg(cargo.get_program());
    sh::forget_package(&mut command);
    if has_nextest {
        command.args(["nextest", "run", "--workspace", "--no-fail-fast"]).args(&args.filters);
    } else {
        command.args(["test", "--workspace", "--bins", "--lib", "--tests", "--no-fail-fast", "--"]);
        command.args(&args.filters);
    }
    command.env("WAYBILL_TEST_PYTHON_DIR", crate::python::EXAMPLES.dir());
    command.env("WAYBILL_TEST_ROTEL", crate::rotel::program());
    command.env("WAYBILL_TEST_TOOLS_DIR", crate::tools::dir());
    keep_to_ourselves(&mut command);
    if args.long {
        command.env(LONG_VARIABLE, "1").env("PROPTEST_CASES", LONG_PROPTEST_CASES);
    }
    command
}

/// A test of ours must never write to a database of yours.
fn keep_to_ourselves(command: &mut Command) {
    command
        .env("SQLX_OFFLINE", "true")
        .env("WAYBILL_MODELS_DIR", sh::models_dir())
        .env_remove("DATABASE_URL")
        .env_remove("REDIS_URL")
        .env_remove("QDRANT_URL");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(filters: &[&str], has_nextest: bool) -> String {
        let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
        let command = runner(&TestArgs { filters, long: false, llm: false }, has_nextest);
        let words = command.get_args().skip(1).map(|word| word.to_string_lossy().into_owned());
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn both_runners_take_filters() {
        assert_eq!(words(&["a", "b"], true), "nextest run --workspace --no-fail-fast a b");
        assert!(words(&["a", "b"], false).ends_with("--no-fail-fast -- a b"));
    }

    #[test]
    fn the_llm_test_is_built_and_run_with_the_same_features() {
        let command = llm_test();
        let words = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>();
        assert_eq!(words.join(" "), "test --workspace --features waybill/llm-test --test llm -- --nocapture");
        assert!(command.get_envs().any(|(name, value)| name == "DATABASE_URL" && value.is_none()));
    }
}
