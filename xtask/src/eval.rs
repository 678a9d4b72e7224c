//! `cargo xtask eval`: how often a search finds the page that answers a question.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context as _;
use serde::Deserialize;

use crate::models::ModelName;
use crate::up::{self, Up};
use crate::{sh, system};

/// Arguments of `cargo xtask eval`.
#[derive(Debug, clap::Args)]
pub(crate) struct EvalArgs {
    /// Models to compare
    #[arg(long = "model", value_enum, default_values_t = MODELS)]
    models: Vec<ModelName>,
    /// Also write the table into docs/eval.md
    #[arg(long)]
    write: bool,
    /// List the questions whose page did not come first
    #[arg(long)]
    misses: bool,
}

const MODELS: [ModelName; 3] = [ModelName::Wordllama, ModelName::Minilm, ModelName::MinilmInt8];

const PROJECT: &str = "manual";

/// The set, from the workspace's folder.
const QUESTIONS: &str = "crates/bench/questions.tsv";

/// The document with the table, and the lines that the table stands between.
const DOCUMENT: &str = "docs/eval.md";
const BEGIN: &str = "<!-- measured: begin (cargo xtask eval --write) -->";
const END: &str = "<!-- measured: end -->";

/// Imports the manual once for each model and asks all questions in each mode.
///
/// # Errors
/// If something can't be set up or a search fails.
pub(crate) fn run(args: &EvalArgs) -> anyhow::Result<()> {
    let manual = system::ensure_postgresql_doc()?.context("the questions are about the PostgreSQL manual")?;
    up::build(&["waybill", "waybill-bench"])?;
    let mut rows = Vec::new();
    let mut questions = 0;
    for &model in &args.models {
        let model_dir = up::prepare(model)?;
        let dir = up::scratch("eval")?;
        let measured = measure(args, model, &dir, &model_dir, &manual);
        fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
        let (result, mut measured) = measured?;
        questions = result;
        rows.append(&mut measured);
    }
    let table = table(questions, &rows);
    sh::print(&table)?;
    if args.write {
        let path = sh::root().join(DOCUMENT);
        let text = fs::read_to_string(&path).with_context(|| format!("read {DOCUMENT}"))?;
        let text = between(&text, &table).with_context(|| format!("find the marks in {DOCUMENT}"))?;
        fs::write(&path, text).with_context(|| format!("write {DOCUMENT}"))?;
    }
    Ok(())
}

fn measure(
    args: &EvalArgs,
    model: ModelName,
    dir: &Path,
    model_dir: &Path,
    manual: &Path,
) -> anyhow::Result<(usize, Vec<Row>)> {
    sh::step(&format!("importing the manual with {} (up to 10 minutes on 2 cores)", model.as_str()));
    let up = Up::start(dir, model_dir)?;
    let imported = up.import(manual, PROJECT)?;
    sh::step("asking the questions (a minute)");
    let mut bench = Command::new(up::program("waybill-bench"));
    bench
        .args(["eval", "--project", PROJECT, "--embedding", &up.endpoints().embedding, "--questions"])
        .arg(sh::root().join(QUESTIONS))
        .stderr(Stdio::inherit());
    if args.misses {
        bench.arg("--misses");
    }
    let output = bench.output().context("start waybill-bench")?;
    let result: EvalResult = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("waybill-bench eval ended with {}", output.status))?;
    up.stop()?;
    let index_s = imported.total_s();
    let rows = result.modes.into_iter().map(|mode| Row { model: model.as_str(), mode, index_s });
    Ok((result.questions, rows.collect()))
}

/// What `waybill-bench eval` prints.
#[derive(Debug, Deserialize)]
struct EvalResult {
    questions: usize,
    modes: Vec<Mode>,
}

#[derive(Debug, Deserialize)]
struct Mode {
    mode: String,
    hit_at_1: f64,
    hit_at_5: f64,
    mrr: f64,
    median_ms: f64,
}

struct Row {
    model: &'static str,
    mode: Mode,
    index_s: f64,
}

fn table(questions: usize, rows: &[Row]) -> String {
    let mut text = format!("{questions} questions.\n\n");
    text.push_str("| model       | mode    | hit@1 | hit@5 |   MRR | median search | time to index |\n");
    text.push_str("| ----------- | ------- | ----: | ----: | ----: | ------------: | ------------: |\n");
    for Row { model, mode, index_s } in rows {
        let line = format!(
            "| {model:<11} | {:<7} | {:>5.3} | {:>5.3} | {:>5.3} | {:>10.1} ms | {index_s:>11.0} s |",
            mode.mode, mode.hit_at_1, mode.hit_at_5, mode.mrr, mode.median_ms
        );
        // Writing to a string can't fail.
        let _ = writeln!(text, "{line}");
    }
    text
}

/// Puts `table` between the marks of `text`.
fn between(text: &str, table: &str) -> Option<String> {
    let begin = text.find(BEGIN)? + BEGIN.len();
    let end = begin + text.get(begin..)?.find(END)?;
    Some(format!("{}\n\n{table}\n{}", text.get(..begin)?, text.get(end..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_takes_the_place_of_the_old_one() {
        let text = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let new = between(&text, "new\n").unwrap();
        assert_eq!(new, format!("a\n{BEGIN}\n\nnew\n\n{END}\nb\n"));
        assert_eq!(between("nothing", "new"), None);
    }

    #[test]
    fn every_mode_is_a_row() {
        let mode = Mode { mode: "hybrid".to_owned(), hit_at_1: 0.5, hit_at_5: 0.75, mrr: 0.6, median_ms: 12.34 };
        let text = table(70, &[Row { model: "minilm", mode, index_s: 99.6 }]);
        assert!(
            text.contains("| minilm      | hybrid  | 0.500 | 0.750 | 0.600 |       12.3 ms |         100 s |"),
            "{text}"
        );
    }
}
