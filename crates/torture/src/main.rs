//! `torture`: see the library. `cargo xtask torture` builds what it needs and starts it.

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use clap::Parser;
use tokio_util::sync::CancellationToken;
use waybill_torture::{Options, Place, run};

/// The longest run: a day and a week.
const MINUTES_MAX: f64 = 8.0 * 24.0 * 60.0;

/// Runs the whole system under a seeded schedule of faults, and compares the stores at the end.
#[derive(Debug, Parser)]
#[command(name = "torture", disable_help_subcommand = true)]
struct Cli {
    /// How long faults and clients go on
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// What the faults and the clients' choices are made from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Leave the live collection alone, and the relays' own comparisons off: then nothing but
    /// delivery keeps the stores equal
    #[arg(long)]
    no_wipes: bool,
    /// Folder of the programs `waybill` and `qdrant-local`; this program's, if it is not given
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Folder of the model wordllama
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Folder that the history and the report are written to, in a folder of the seed's name
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// A Qdrant to test against instead of qdrant-local; its collection of wordllama is deleted
    #[arg(long, value_name = "URL", env = "WAYBILL_TEST_QDRANT_URL")]
    qdrant: Option<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match torture(Cli::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns whether every promise was kept.
async fn torture(cli: Cli) -> anyhow::Result<bool> {
    ensure!(
        cli.minutes > 0.0 && cli.minutes <= MINUTES_MAX,
        "--minutes is {}: write 0.1 to {MINUTES_MAX}",
        cli.minutes
    );
    let programs = match cli.programs {
        Some(programs) => programs,
        None => std::env::current_exe()?.parent().context("this program has no folder")?.to_owned(),
    };
    let no_wipes = if cli.no_wipes { " --no-wipes" } else { "" };
    let options = Options {
        seed: cli.seed,
        length: Duration::from_secs_f64(cli.minutes * 60.0),
        wipes: !cli.no_wipes,
        place: Place {
            programs,
            model: cli.model,
            dir: std::path::absolute(cli.out.join(cli.seed.to_string()))?,
            qdrant: cli.qdrant,
        },
        command: format!("cargo xtask torture --minutes {} --seed {}{no_wipes}", cli.minutes, cli.seed),
    };
    let stop = CancellationToken::new();
    tokio::spawn({
        let stop = stop.clone();
        async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                eprintln!("ending early: the stores are compared, which takes half a minute");
                stop.cancel();
            }
        }
    });
    let report = Box::pin(run(&options, stop)).await?;
    let mut stdout = io::stdout().lock();
    stdout.write_all(report.markdown().as_bytes())?;
    stdout.flush()?;
    Ok(report.is_good())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
