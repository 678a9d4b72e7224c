//! Waybill: every service, and the command line, in one binary.
//!
//! `waybill --help` is the way in; ARCHITECTURE.md says how the parts hang together.

mod access;
mod app_config;
mod ask;
mod cli;
mod client;
mod commands;
mod endpoints;
mod exit;
mod out;
mod paths;
mod process;
mod screen;
mod services;
mod slow;
mod text;
mod values;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use waybill_domain::Crash;
use waybill_runtime::telemetry;

use crate::cli::{Cli, Command};
use crate::exit::Usage;

/// Tells a program that was built for tests where to die. A program that ships heeds it not.
const CRASH_VARIABLE: &str = "WAYBILL_TEST_CRASH_AT";

fn main() -> ExitCode {
    // In a function of its own, so that telemetry is flushed before the process ends.
    match try_main() {
        Ok(code) => ExitCode::from(code),
        Err(error) => exit::report(&error),
    }
}

fn try_main() -> anyhow::Result<u8> {
    let cli = Cli::parse();
    if let Ok(crash) = std::env::var(CRASH_VARIABLE) {
        crash.parse::<Crash>().map_err(Usage)?.arm(std::process::abort);
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the async runtime")?;
    let code = runtime.block_on(run(cli.command));
    // A thread that reads a terminal's stdin can't be interrupted: not waited for.
    runtime.shutdown_background();
    code
}

async fn run(command: Command) -> anyhow::Result<u8> {
    // The services' log format is configured, so they start their telemetry themselves.
    let _telemetry = match &command {
        Command::Up(_) | Command::Serve(_) => None,
        _ => Some(telemetry::init("waybill", telemetry::Format::Human)?),
    };
    match command {
        Command::Up(args) => Box::pin(commands::up::run(args)).await?,
        Command::Import(args) => return Box::pin(commands::import::run(args)).await,
        Command::Search(args) => commands::search::run(args).await?,
        Command::Extract(args) => return Box::pin(commands::extract::run(args)).await,
        Command::Jobs(args) => return commands::jobs::run(args).await,
        Command::Facts(args) => commands::facts::run(args).await?,
        Command::Status(args) => commands::status::run(args).await?,
        Command::Verify(args) => return commands::verify::verify(args).await,
        Command::Recover(args) => return commands::verify::recover(args).await,
        Command::Reindex(args) => commands::reindex::run(args).await?,
        Command::Relay(command) => return commands::relay::run(command).await,
        Command::Dlq(command) => commands::dlq::run(command).await?,
        Command::Projects(command) => commands::projects::run(command).await?,
        Command::Sources(command) => commands::sources::run(command).await?,
        Command::Doctor(args) => return Box::pin(commands::doctor::run(args)).await,
        Command::Keys(command) => commands::keys::run(command).await?,
        Command::Audit(args) => commands::keys::audit(args).await?,
        Command::Serve(args) => Box::pin(commands::serve::run(args)).await?,
        Command::Migrate(source) => commands::migrate::run(source).await?,
        Command::Config(args) => commands::config::run(&args)?,
    }
    Ok(0)
}
