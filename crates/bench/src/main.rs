//! Measurements: how fast the relay is beside its ceilings, how soon a worker has a request,
//! which way of a large load is the fastest, what embedding costs alone, and how often a search finds the page that answers a question.
//!
//! `cargo xtask` builds it in release and calls it; results go to stdout as JSON.

mod embed_only;
mod eval;
mod llm;
mod loads;
mod overhead;
mod relay;
mod servers;

use std::io::{self, Write as _};

use clap::{Parser, Subcommand};
use serde::Serialize;

/// What is measured.
#[derive(Debug, Parser)]
#[command(name = "waybill-bench", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Delivers points from the outbox to Qdrant, beside sending the same points straight
    Relay(relay::RelayArgs),
    /// Delivers LLM requests from the outbox to Redis, beside sending the same messages straight
    Llm(llm::LlmArgs),
    /// Loads documents in each way there is, until they are searchable
    Loads(loads::LoadsArgs),
    /// Puts sources with keys, traces and metrics on, beside all of them off
    Overhead(overhead::OverheadArgs),
    /// Embeds the chunks of a stopped `waybill up` and does nothing else
    EmbedOnly(embed_only::EmbedOnlyArgs),
    /// Asks a running search service the questions of a set
    Eval(eval::EvalArgs),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Relay(args) => print(&Box::pin(relay::run(&args)).await?),
        Command::Llm(args) => print(&Box::pin(llm::run(&args)).await?),
        Command::Loads(args) => print(&Box::pin(loads::run(&args)).await?),
        Command::Overhead(args) => print(&Box::pin(overhead::run(&args)).await?),
        Command::EmbedOnly(args) => print(&Box::pin(embed_only::run(&args)).await?),
        Command::Eval(args) => print(&eval::run(&args).await?),
    }
}

/// Writes a result as one line of JSON.
fn print(result: &impl Serialize) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{}", serde_json::to_string(result)?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
