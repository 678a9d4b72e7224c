//! `cargo xtask bench`.

use std::fmt::Write as _;
use std::process::{Command, Stdio};

use anyhow::Context as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::models::ModelName;
use crate::sh;
use crate::system;
use crate::up;

/// Of 100 requests on an idle system, 99 should be with a worker after this.
const AIM_P99_MS: u32 = 25;

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
    /// Large loads as they are, in bulk mode and with delivery held, until all is searchable
    Loads {
        /// Documents of a load; some four chunks each
        #[arg(long, default_value_t = 4_000)]
        documents: u32,
        /// Rounds, in which each way has its turn; the median counts
        #[arg(long, default_value_t = 3)]
        rounds: u32,
        /// A Qdrant to measure against instead of the one of this repository
        #[arg(long, value_name = "URL")]
        qdrant: Option<String>,
    },
    /// PutSource with keys, traces and metrics on, beside all of them off
    Overhead {
        /// Documents put in a round by each
        #[arg(long, default_value_t = 500)]
        documents: u32,
        /// Rounds, in which both have their turn
        #[arg(long, default_value_t = 12)]
        rounds: u32,
    },
    /// LLM requests from the outbox to Redis, beside their ceiling, and how soon a worker has one
    Llm {
        /// Messages in a round
        #[arg(long, default_value_t = 20_000)]
        messages: u32,
        /// Rounds, the relay's and the ceiling's in turn; the median counts
        #[arg(long, default_value_t = 5)]
        rounds: u32,
        /// Requests whose way to a worker is timed, one after another
        #[arg(long, default_value_t = 300)]
        requests: u32,
    },
}

/// Runs a measurement and prints what came out.
///
/// # Errors
/// If something can't be set up, or a point or a message was lost.
pub(crate) fn run(command: &BenchCommand) -> anyhow::Result<()> {
    match command {
        BenchCommand::Relay { points, rounds, qdrant } => relay(*points, *rounds, qdrant.as_deref()),
        BenchCommand::Loads { documents, rounds, qdrant } => loads(*documents, *rounds, qdrant.as_deref()),
        BenchCommand::Overhead { documents, rounds } => overhead(*documents, *rounds),
        BenchCommand::Llm { messages, rounds, requests } => llm(*messages, *rounds, *requests),
    }
}

fn relay(points: u32, rounds: u32, qdrant: Option<&str>) -> anyhow::Result<()> {
    let model_dir = up::prepare(up::DEFAULT_MODEL)?;
    up::build(&["waybill", "waybill-bench", "waybill-qdrant-local"])?;

    sh::step(&format!("delivering {points} points {rounds} times, and sending them straight (2 to 5 minutes)"));
    let mut bench = Command::new(up::program("waybill-bench"));
    bench
        .args(["relay", "--points", &points.to_string(), "--rounds", &rounds.to_string()])
        .arg("--model-dir")
        .arg(model_dir);
    if let Some(url) = qdrant {
        bench.args(["--qdrant", url]);
    }
    sh::print(&report(&measure(&mut bench)?))
}

fn loads(documents: u32, rounds: u32, qdrant: Option<&str>) -> anyhow::Result<()> {
    // The fastest: what is measured is all but the model.
    let model_dir = up::prepare(ModelName::Wordllama)?;
    up::build(&["waybill", "waybill-bench", "waybill-qdrant-local"])?;
    sh::step(&format!("loading {documents} documents {rounds} times in 3 ways (3 to 10 minutes)"));
    let mut bench = Command::new(up::program("waybill-bench"));
    bench.args(["loads", "--documents", &documents.to_string(), "--rounds", &rounds.to_string()]);
    bench.arg("--model-dir").arg(model_dir);
    if let Some(url) = qdrant {
        bench.args(["--qdrant", url]);
    }
    sh::print(&loads_report(&measure(&mut bench)?))
}

fn overhead(documents: u32, rounds: u32) -> anyhow::Result<()> {
    sh::step("looking for PostgreSQL (installed if missing: a minute or two)");
    system::ensure_postgres()?;
    up::build(&["waybill", "waybill-bench"])?;
    sh::step(&format!("putting {documents} documents {rounds} times with everything on, and off (a minute or two)"));
    let mut bench = Command::new(up::program("waybill-bench"));
    bench.args(["overhead", "--documents", &documents.to_string(), "--rounds", &rounds.to_string()]);
    sh::print(&overhead_report(&measure(&mut bench)?))
}

fn llm(messages: u32, rounds: u32, requests: u32) -> anyhow::Result<()> {
    sh::step("looking for PostgreSQL and Redis (installed if missing: a minute or two)");
    system::ensure_postgres()?;
    system::ensure_redis()?;
    up::build(&["waybill", "waybill-bench"])?;

    sh::step(&format!(
        "timing {requests} requests, then delivering {messages} messages {rounds} times, and sending them straight (1 to 3 minutes)"
    ));
    let mut bench = Command::new(up::program("waybill-bench"));
    bench.args(["llm", "--messages", &messages.to_string(), "--rounds", &rounds.to_string()]);
    bench.args(["--requests", &requests.to_string()]);
    sh::print(&llm_report(&measure(&mut bench)?))
}

/// Runs `waybill-bench` and reads what it prints; what it says meanwhile goes to the terminal.
fn measure<T: DeserializeOwned>(bench: &mut Command) -> anyhow::Result<T> {
    let output = bench.stderr(Stdio::inherit()).output().context("start waybill-bench")?;
    serde_json::from_slice(&output.stdout).with_context(|| format!("waybill-bench ended with {}", output.status))
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

/// What `waybill-bench loads` prints.
#[derive(Debug, Deserialize)]
struct LoadsResult {
    documents: u64,
    chunks: u64,
    ways: Vec<Way>,
}

#[derive(Debug, Deserialize)]
struct Way {
    way: String,
    loaded_s: f64,
    searchable_s: f64,
    rounds: Vec<f64>,
}

fn loads_report(result: &LoadsResult) -> String {
    let mut text = format!("\n{} documents, {} chunks a load; s, medians\n\n", result.documents, result.chunks);
    text.push_str("way            loaded  searchable  ratio to plain  each\n");
    let plain = result.ways.iter().find(|way| way.way == "plain").map_or(f64::NAN, |way| way.searchable_s);
    for Way { way, loaded_s, searchable_s, rounds } in &result.ways {
        let each: Vec<_> = rounds.iter().map(|took| format!("{took:.1}")).collect();
        let ratio = searchable_s / plain;
        // Writing to a string can't fail.
        let _ = writeln!(text, "{way:<12} {loaded_s:>8.1} {searchable_s:>11.1} {ratio:>15.2}  {}", each.join(" "));
    }
    text
}

/// What `waybill-bench overhead` prints.
#[derive(Debug, Deserialize)]
struct OverheadResult {
    puts: u64,
    off: Percentiles,
    on: Percentiles,
    ratio_p99: f64,
    ratio_p50: f64,
    rounds: Vec<f64>,
    exports: u64,
}

#[derive(Debug, Deserialize)]
struct Percentiles {
    p50_ms: f64,
    p99_ms: f64,
}

fn overhead_report(result: &OverheadResult) -> String {
    let OverheadResult { puts, off, on, ratio_p99, ratio_p50, rounds, exports } = result;
    let rounds: Vec<_> = rounds.iter().map(|ratio| format!("{ratio:.2}")).collect();
    format!(
        "\nPutSource, {puts} each, {exports} exports to a collector; ms\n\n\
         \x20                          p50       p99\n\
         all off             {:>9.2} {:>9.2}\n\
         keys, traces, metrics {:>7.2} {:>9.2}\n\
         ratio               {ratio_p50:>9.2} {ratio_p99:>9.2} (aim: 1.10)\n\
         p99 by round        {}\n",
        off.p50_ms,
        off.p99_ms,
        on.p50_ms,
        on.p99_ms,
        rounds.join(" ")
    )
}

/// What `waybill-bench llm` prints.
#[derive(Debug, Deserialize)]
struct LlmResult {
    messages: u64,
    relay: Vec<f64>,
    relay_median: f64,
    ceilings: Vec<LlmCeiling>,
    ceiling: f64,
    ratio: f64,
    latency: Latency,
}

#[derive(Debug, Deserialize)]
struct LlmCeiling {
    connections: u64,
    median: f64,
}

#[derive(Debug, Deserialize)]
struct Latency {
    requests: u64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

fn llm_report(result: &LlmResult) -> String {
    let mut text = format!("\n{} messages a round, {} rounds; messages/s\n\n", result.messages, result.relay.len());
    for LlmCeiling { connections, median } in &result.ceilings {
        // Writing to a string can't fail.
        let _ = writeln!(text, "straight by XADD, connections: {connections:<3} {median:>9.0}");
    }
    let rounds: Vec<_> = result.relay.iter().map(|rate| format!("{rate:.0}")).collect();
    let _ = write!(
        text,
        "ceiling (the best of these)         {:>9.0}\nrelay, median of {:<18} {:>9.0}\nratio                               {:>9.2}\n",
        result.ceiling,
        rounds.join(" "),
        result.relay_median,
        result.ratio
    );
    let Latency { requests, p50_ms, p99_ms, max_ms } = &result.latency;
    let _ = write!(
        text,
        "\n{requests} single requests, from commit to claim; ms\n\n\
         p50                                 {p50_ms:>9.1}\n\
         longest                             {max_ms:>9.1}\n\
         p99                                 {p99_ms:>9.1} (aim: under {AIM_P99_MS})\n",
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

    #[test]
    fn the_report_of_loads_has_a_ratio_for_each_way() {
        let result: LoadsResult = serde_json::from_str(
            r#"{"documents":10,"chunks":40,"ways":[
                {"way":"plain","loaded_s":1.0,"searchable_s":4.0,"rounds":[4.0]},
                {"way":"bulk","loaded_s":1.0,"searchable_s":3.0,"rounds":[3.0,3.5]}]}"#,
        )
        .unwrap();
        let text = loads_report(&result);
        assert!(text.contains(" 1.00  4.0\n") && text.contains(" 0.75  3.0 3.5\n"), "{text}");
    }

    #[test]
    fn the_report_of_the_overhead_has_both_ratios() {
        let result: OverheadResult = serde_json::from_str(
            r#"{"puts":10,"off":{"p50_ms":2.0,"p99_ms":4.0},"on":{"p50_ms":2.1,"p99_ms":4.2},"ratio_p99":1.05,
                "ratio_p50":1.05,"rounds":[1.0,1.1],"exports":3}"#,
        )
        .unwrap();
        let text = overhead_report(&result);
        assert!(text.contains("1.05 (aim: 1.10)") && text.contains("1.00 1.10"), "{text}");
    }

    #[test]
    fn the_report_of_the_queue_ends_with_the_latency() {
        let result: LlmResult = serde_json::from_str(
            r#"{"messages":10,"relay":[8.0,9.0],"relay_median":9.0,"ceiling":10.0,"ratio":0.9,
                "ceilings":[{"connections":2,"median":10.0}],
                "latency":{"requests":300,"p50_ms":4.0,"p99_ms":9.2,"max_ms":12.0}}"#,
        )
        .unwrap();
        let text = llm_report(&result);
        assert!(text.contains(" 0.90\n"), "{text}");
        assert!(text.trim_end().ends_with("9.2 (aim: under 25)"), "{text}");
    }
}
