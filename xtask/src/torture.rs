//! `cargo xtask torture`.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::anyhow;

use crate::models::{self, ModelName};
use crate::{sh, system, up};

/// Arguments of `cargo xtask torture`. What follows is what the program `torture` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct TortureArgs {
    /// How long faults and clients go on
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// What the faults and the clients' choices are made from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Leave the live collection alone, and the relays' own comparisons off
    #[arg(long)]
    no_wipes: bool,
    /// Run the programs as tests build them, which is slower and quicker built
    #[arg(long)]
    debug: bool,
}

/// Builds what is needed, and tortures it.
///
/// # Errors
/// If something can't be set up, or a promise was broken.
pub(crate) fn run(args: &TortureArgs) -> anyhow::Result<()> {
    sh::step("looking for PostgreSQL and Redis (installed if missing: a minute or two)");
    system::ensure_postgres()?;
    system::ensure_redis()?;
    sh::step("looking for the embedding model (fetched once: 19 MB)");
    models::fetch(&[ModelName::Wordllama], &sh::models_dir())?;
    let folder = if args.debug {
        sh::step("building as for tests");
        // All of it: with other sets of targets, dependencies would be built twice.
        sh::run(sh::cargo().args(["build", "--workspace", "--bins", "--tests"]))?;
        "debug"
    } else {
        up::build(&["waybill", "waybill-qdrant-local", "waybill-torture"])?;
        "release"
    };
    sh::step(&format!("torturing for {} minutes, and comparing after it", args.minutes));
    // In this one's place: Ctrl-C is for the program, which ends early and compares all the same.
    Err(anyhow!(torture(args, folder).exec()).context("start the program torture"))
}

fn torture(args: &TortureArgs, folder: &str) -> Command {
    let mut command = Command::new(sh::target_dir().join(folder).join("torture"));
    command.current_dir(sh::root());
    command.args(["--minutes", &args.minutes.to_string(), "--seed", &args.seed.to_string()]);
    command.arg("--model").arg(sh::models_dir().join(ModelName::Wordllama.as_str()));
    command.arg("--out").arg(sh::target_dir().join("torture"));
    if args.no_wipes {
        command.arg("--no-wipes");
    }
    sh::forget_package(&mut command);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_is_passed_on() {
        let args = TortureArgs { minutes: 0.5, seed: 7, no_wipes: true, debug: true };
        let command = torture(&args, "debug");
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        assert_eq!(words[..4], ["--minutes", "0.5", "--seed", "7"]);
        assert_eq!(words.last().map(String::as_str), Some("--no-wipes"));
    }
}
