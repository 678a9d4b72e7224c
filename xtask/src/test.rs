//! `cargo xtask test`.

use std::process::Command;

use crate::sh;

/// Arguments of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub(crate) struct TestArgs {
    /// Only tests with one of these in their names
    filters: Vec<String>,
    /// Give tests with random input more rounds: half an hour rather than minutes
    #[arg(long)]
    long: bool,
}

/// Tells tests that they may take long.
const LONG_VARIABLE: &str = "WAYBILL_TEST_LONG";

/// How many cases a property test tries under `--long`; its own default is 256.
const LONG_PROPTEST_CASES: &str = "5000";

/// Sets up what the tests stand on, builds everything, runs the tests.
///
/// # Errors
/// If something can't be set up or a test fails.
pub(crate) fn run(args: &TestArgs) -> anyhow::Result<()> {
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
    command
        .env("SQLX_OFFLINE", "true")
        .env("WAYBILL_MODELS_DIR", sh::models_dir())
        .env("WAYBILL_TEST_PYTHON_DIR", crate::python::dir())
        // A test of ours must never write to a database of yours.
        .env_remove("DATABASE_URL")
        .env_remove("REDIS_URL")
        .env_remove("QDRANT_URL");
    if args.long {
        command.env(LONG_VARIABLE, "1").env("PROPTEST_CASES", LONG_PROPTEST_CASES);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(filters: &[&str], has_nextest: bool) -> String {
        let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
        let command = runner(&TestArgs { filters, long: false }, has_nextest);
        let words = command.get_args().skip(1).map(|word| word.to_string_lossy().into_owned());
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn both_runners_take_filters() {
        assert_eq!(words(&["a", "b"], true), "nextest run --workspace --no-fail-fast a b");
        assert!(words(&["a", "b"], false).ends_with("--no-fail-fast -- a b"));
    }
}
