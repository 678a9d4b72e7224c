//! Everything about this repository that is more than one cargo command: set-up, tests,
//! the demo, measurements, and the rules that nothing else holds.
//!
//! Its dependencies are few on purpose: it is the first thing a newcomer compiles.

mod bench;
mod chart_docs;
mod demo;
mod eval;
mod image;
mod llm;
mod memory;
mod models;
mod pip;
mod prepare;
mod proto;
mod python;
mod rotel;
mod sh;
mod system;
mod test;
mod tidy;
mod tools;
mod torture;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What a contributor types.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Sets up what is missing and runs the tests
    Test(test::TestArgs),
    /// Brings the system up, imports the PostgreSQL manual and shows searches answered
    Demo(demo::DemoArgs),
    /// Measures how well each model and mode finds the page that answers a question
    Eval(eval::EvalArgs),
    /// Measures speed
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Kills, freezes, cuts and wipes everything by a seeded schedule, and compares the stores
    Torture(torture::TortureArgs),
    /// Checks the rules that neither the compiler nor clippy holds
    Tidy,
    /// Asks a database about the queries again, for builds without one
    Prepare,
    /// Builds the image's program and its runtime stage as the Dockerfile says, and runs it
    Image(image::ImageArgs),
    /// Makes the protos as they are what later changes are compared with
    ProtoBaseline,
    /// Writes the table of values into the chart's README
    ChartDocs,
    /// Installs what the system's package manager has to provide, and fetches models and packages
    Setup,
    /// Fetches embedding models into target/models; all of them if none is named
    FetchModels {
        /// Which
        names: Vec<models::ModelName>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Test(args) => test::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Bench(command) => bench::run(&command),
        Command::Torture(args) => torture::run(&args),
        Command::Tidy => tidy::run(),
        Command::Prepare => prepare::run(),
        Command::Image(args) => image::run(&args),
        Command::ProtoBaseline => proto::renew_baseline(),
        Command::ChartDocs => chart_docs::run(),
        Command::Setup => setup(),
        Command::FetchModels { names } => {
            let names = if names.is_empty() { models::ModelName::ALL.to_vec() } else { names };
            models::fetch(&names, &sh::models_dir())
        }
    }
}

/// Makes sure that everything the tests stand on is here.
fn setup() -> anyhow::Result<()> {
    sh::step("looking for PostgreSQL, Redis and pip (installed if missing: a few minutes)");
    system::ensure_postgres()?;
    system::ensure_redis()?;
    system::ensure_pip()?;
    sh::step("looking for the models (fetched once: 150 MB)");
    models::fetch(&models::ModelName::ALL, &sh::models_dir())?;
    sh::step("looking for the Python packages of the examples (fetched once: 12 MB)");
    python::EXAMPLES.ensure()?;
    sh::step("looking for an OpenTelemetry collector (fetched once: 10 MB)");
    rotel::ensure()?;
    sh::step("looking for helm, buf, hadolint, promtool and kubernetes-validate (fetched once: 145 MB)");
    tools::ensure()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
