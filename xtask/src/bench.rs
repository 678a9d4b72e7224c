//! `cargo xtask bench`.

use std::fmt::Write as _;
use std::process::{Command, Stdio};

use anyhow::Context as _;
use serde::Deserialize;

use crate::sh;
use crate::up;

/// What to measure.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum BenchCommand {
    /// Points from the outbox to Qdrant, with cached embeddings, beside their ceiling
    Relay {
        /// Points in a round
        #[arg(long, default_value_t = 20_000)]
        points: u32,
        /// Rounds, the relay's and the ceiling's in turn; the median counts
        #[arg(long, default_value_t = 5)]
        rounds: u32,
        /// A Qdrant to measure against instead of the one of this repository
        #[arg(long, value_name = "URL")]
        qdrant: Option<String>,
    },
}

/// Runs a measurement and prints what came out.
///
/// # Errors
/// If something can't be set up, or a point was lost.
pub(crate) fn run(command: &BenchCommand) -> anyhow::Result<()> {
    let BenchCommand::Relay { points, rounds, qdrant } = command;
    let model_dir = up::prepare(up::DEFAULT_MODEL)?;
    up::build(&["waybill", "waybill-bench", "waybill-qdrant-local"])?;

    sh::step(&format!("delivering {points} points {rounds} times, and sending them straight (2 to 5 minutes)"));
    let mut bench = Command::new(up::program("waybill-bench"));
    bench
        .args(["relay", "--points", &points.to_string(), "--rounds", &rounds.to_string()])
        .arg("--model-dir")
        .arg(model_dir)
        .stderr(Stdio::inherit());
    if let Some(url) = qdrant {
        bench.args(["--qdrant", url]);
    }
    let output = bench.output().context("start waybill-bench")?;
    let result: RelayResult = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("waybill-bench relay ended with {}", output.status))?;
    sh::print(&report(&result))
}

/// What `waybill-bench relay` prints.
#[derive(Debug, Deserialize)]
struct RelayResult {
    points: u64,
    dimensions: u64,
    relay: Vec<f64>,
    relay_median: f64,
    ceilings: Vec<Ceiling>,
    ceiling: f64,
    ratio: f64,
}

#[derive(Debug, Deserialize)]
struct Ceiling {
    batch: u64,
    streams: u64,
    median: f64,
}

fn report(result: &RelayResult) -> String {
    let mut text = format!(
        "\n{} points of {} dimensions a round, {} rounds; points/s\n\n",
        result.points,
        result.dimensions,
        result.relay.len()
    );
    for Ceiling { batch, streams, median } in &result.ceilings {
        // Writing to a string can't fail.
        let _ = writeln!(text, "straight, {batch:>5} a batch, {streams} streams  {median:>9.0}");
    }
    let rounds: Vec<_> = result.relay.iter().map(|rate| format!("{rate:.0}")).collect();
    let _ = write!(
        text,
        "ceiling (the best of these)         {:>9.0}\nrelay, median of {:<18} {:>9.0}\nratio                               {:>9.2} (aim: 0.80)\n",
        result.ceiling,
        rounds.join(" "),
        result.relay_median,
        result.ratio
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_ends_with_the_ratio() {
        let result: RelayResult = serde_json::from_str(
            r#"{"points":10,"dimensions":384,"relay":[8.0,9.0],"relay_median":9.0,"ceiling":10.0,"ratio":0.9,
                "ceilings":[{"batch":256,"streams":2,"median":10.0}]}"#,
        )
        .unwrap();
        assert!(report(&result).trim_end().ends_with("0.90 (aim: 0.80)"));
    }
}
