//! `cargo xtask demo`: from nothing to a search answered and facts found, with figures.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;

use crate::memory::Peak;
use crate::models::ModelName;
use crate::up::{self, Extractor, Imported, Up};
use crate::{sh, system};

/// Arguments of `cargo xtask demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// Embedding model
    #[arg(long, value_enum, default_value_t = up::DEFAULT_MODEL)]
    model: ModelName,
    /// Import only this many documents [default: all]
    #[arg(long, value_name = "N")]
    docs: Option<usize>,
    /// Keep the data, and say how to go on with it
    #[arg(long)]
    keep: bool,
}

const PROJECT: &str = "manual";

/// What is asked of the PostgreSQL manual, and the pages of which one must come first.
///
/// A check that the system works, chosen among what the default model was seen to answer, and
/// so no measure of quality: that is `cargo xtask eval`, whose questions were written before.
/// Another model may fail some of these.
const QUESTIONS: &[(&str, &[&str])] = &[
    ("build an index without locking out writes", &["sql-createindex.html", "sql-reindex.html"]),
    ("why does the disk space not shrink after deleting rows?", &["routine-vacuuming.html", "sql-vacuum.html"]),
    ("pg_stat_statements.track_utility", &["pgstatstatements.html"]),
];

/// The same for the project's own documents.
const OWN_QUESTIONS: &[(&str, &[&str])] = &[
    ("a relay dies while it holds a batch", &["ARCHITECTURE.md"]),
    ("which two commands do everything on a fresh machine?", &["README.md"]),
];

/// Documents to look for in.
struct Corpus {
    what: &'static str,
    folder: PathBuf,
    questions: &'static [(&'static str, &'static [&'static str])],
    /// What the uris of a few of them begin with.
    few: &'static str,
    /// And of one: a language model takes seconds for what takes rules none.
    one: &'static str,
}

impl Corpus {
    /// Says by whom facts are found and in which documents: those whose uris begin so.
    fn extraction(&self, extractor: &Extractor) -> (String, &'static str) {
        match extractor {
            Extractor::Rules => {
                let what = "extracting facts from a few documents (seconds with `rules`, which is no language model)";
                (what.to_owned(), self.few)
            }
            Extractor::Llm(model) => (
                format!("extracting facts from one document with the language model {model} (as long as it takes)"),
                self.one,
            ),
        }
    }
}

/// Runs the demo.
///
/// # Errors
/// If something can't be set up, or a search does not find what it has to.
pub(crate) fn run(args: &DemoArgs) -> anyhow::Result<()> {
    let model_dir = up::prepare(args.model)?;
    let dir = up::scratch("demo")?;
    let outcome = in_dir(args, &dir, &model_dir);
    if args.keep {
        sh::step(&format!(
            "the data stay; to go on with them: {} up --data-dir {} --model-dir {}",
            up::program("waybill").display(),
            up::data_dir(&dir).display(),
            model_dir.display()
        ));
    } else {
        fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
    }
    outcome
}

fn in_dir(args: &DemoArgs, dir: &Path, model_dir: &Path) -> anyhow::Result<()> {
    let corpus = corpus(dir, args.docs)?;
    up::build(&["waybill", "waybill-bench"])?;
    // Before minutes are spent on the import.
    let extractor = up::extractor()?;

    sh::step("starting waybill up: Postgres, the vector engine and all services (a few seconds)");
    let up = Up::start(dir, model_dir)?;
    sh::step(&format!(
        "importing {} with {} (seconds with wordllama, 2 to 5 minutes with minilm-int8 on 2 cores)",
        corpus.what,
        args.model.as_str()
    ));
    let imported = up.import(&corpus.folder, PROJECT)?;

    sh::step("searching");
    let mut wrong = 0;
    for (question, pages) in corpus.questions {
        if !search(&up, question, pages)? {
            wrong += 1;
        }
    }
    let (what, prefix) = corpus.extraction(&extractor);
    sh::step(&what);
    extract(&up, prefix)?;
    let peak = up.stop()?;

    sh::step("embedding the same chunks once more, with nothing else around (as long as the import)");
    let alone = embed_only(dir, model_dir)?;
    sh::print(&report(args.model, &imported, peak, &alone))?;
    // The questions were chosen for the default model.
    ensure!(
        wrong == 0 || args.model != up::DEFAULT_MODEL,
        "{wrong} of {} searches did not find the right page first",
        corpus.questions.len()
    );
    Ok(())
}

/// Finds the manual; or takes the project's own documents, so that the demo works offline.
fn corpus(dir: &Path, limit: Option<usize>) -> anyhow::Result<Corpus> {
    let manual = system::ensure_postgresql_doc()?;
    let corpus = match manual {
        Some(folder) => Corpus {
            what: "the PostgreSQL manual",
            folder,
            questions: QUESTIONS,
            few: "sql-create",
            one: "sql-reindex",
        },
        None => Corpus {
            what: "this project's documents",
            folder: own_documents(dir)?,
            questions: OWN_QUESTIONS,
            few: "",
            one: "README",
        },
    };
    let Some(limit) = limit else {
        return Ok(corpus);
    };
    let folder = dir.join("some");
    take_some(&corpus, &folder, limit)?;
    Ok(Corpus { folder, ..corpus })
}

fn own_documents(dir: &Path) -> anyhow::Result<PathBuf> {
    let folder = dir.join("own");
    fs::create_dir_all(&folder)?;
    let mut git = Command::new("git");
    git.current_dir(sh::root()).args(["ls-files", "--cached", "--others", "--exclude-standard", "*.md"]);
    for path in sh::output(&mut git)?.lines() {
        let target = folder.join(path);
        fs::create_dir_all(target.parent().unwrap_or(&folder))?;
        fs::copy(sh::root().join(path), &target).with_context(|| format!("copy {path}"))?;
    }
    Ok(folder)
}

/// Copies `limit` documents, those among them that the questions are about.
fn take_some(corpus: &Corpus, folder: &Path, limit: usize) -> anyhow::Result<()> {
    fs::create_dir_all(folder)?;
    let mut names = Vec::new();
    for entry in fs::read_dir(&corpus.folder)? {
        let entry = entry?;
        if entry.file_type()?.is_file() || entry.path().is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    let is_wanted = |name: &String| corpus.questions.iter().any(|(_, pages)| pages.contains(&name.as_str()));
    names.sort_by_key(|name| (!is_wanted(name), name.clone()));
    for name in names.iter().take(limit) {
        fs::copy(corpus.folder.join(name), folder.join(name)).with_context(|| format!("copy {name}"))?;
    }
    Ok(())
}

#[derive(Deserialize)]
struct Found {
    hits: Vec<Hit>,
}

#[derive(Deserialize)]
struct Hit {
    uri: String,
}

/// Shows a search as people see it; returns whether the first hit is of one of `pages`.
fn search(up: &Up, question: &str, pages: &[&str]) -> anyhow::Result<bool> {
    let search = |extra: &[&str]| {
        let mut command = up.client("search");
        command.args(["--project", PROJECT, "--limit", "3"]).args(extra).arg(question);
        command
    };
    sh::print(&format!("\n$ waybill search \"{question}\"\n"))?;
    sh::run(search(&[]).stdin(Stdio::null()))?;
    let found: Found = serde_json::from_str(&sh::output(&mut search(&["--json"]))?).context("read the hits")?;
    let Some(first) = found.hits.first() else { bail!("{question:?} found nothing") };
    let page = first.uri.rsplit('/').next().unwrap_or_default();
    let is_right = pages.contains(&page);
    sh::print(&if is_right {
        format!("right: {page}\n")
    } else {
        format!("WRONG: {page}, expected {}\n", pages.join(" or "))
    })?;
    Ok(is_right)
}

/// Has facts found in documents whose uris begin with `prefix`, and shows some.
fn extract(up: &Up, prefix: &str) -> anyhow::Result<()> {
    sh::print(&format!("\n$ waybill extract --prefix \"{prefix}\"\n"))?;
    let mut extract = up.client("extract");
    extract.args(["--project", PROJECT, "--prefix", prefix]);
    sh::run(extract.stdin(Stdio::null()))?;
    sh::print("\n$ waybill facts -n 5\n")?;
    let mut facts = up.client("facts");
    facts.args(["--project", PROJECT, "-n", "5"]);
    sh::run(facts.stdin(Stdio::null()))
}

/// What `waybill-bench embed-only` prints.
#[derive(Debug, Deserialize)]
struct Alone {
    texts: u64,
    took_s: f64,
}

fn embed_only(dir: &Path, model_dir: &Path) -> anyhow::Result<Alone> {
    let mut bench = Command::new(up::program("waybill-bench"));
    bench.args(["embed-only", "--data-dir"]).arg(up::data_dir(dir)).arg("--model-dir").arg(model_dir);
    let output = sh::output(&mut bench)?;
    serde_json::from_str(output.trim()).context("read the result of waybill-bench")
}

fn report(model: ModelName, imported: &Imported, peak: Peak, alone: &Alone) -> String {
    let total_s = imported.total_s();
    let per_second = |count: u64| count as f64 / total_s.max(0.001);
    let mib = |kib: u64| kib as f64 / 1_024.0;
    let overhead = (total_s / alone.took_s.max(0.001) - 1.0) * 100.0;
    format!(
        "
model                              {model}
documents                          {documents} ({documents_per_second:.1}/s until searchable)
chunks                             {chunks} ({chunks_per_second:.1}/s until searchable)
from the last commit to searchable {after:.2} s
import until searchable            {total_s:.1} s
embedding alone                    {alone_s:.1} s for {texts} different texts
everything else on top             {overhead:.1} % (aim: below 20 %)
peak memory of waybill up          {up_mib:.0} MiB
peak memory of its Postgres        {postgres_mib:.0} MiB
",
        model = model.as_str(),
        documents = imported.new,
        documents_per_second = per_second(imported.new),
        chunks = imported.chunks_written,
        chunks_per_second = per_second(imported.chunks_written),
        after = imported.searchable_after_s(),
        alone_s = alone.took_s,
        texts = alone.texts,
        up_mib = mib(peak.process_kib),
        postgres_mib = mib(peak.postgres_kib),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_language_model_is_named_and_gets_less_to_read() {
        let corpus = Corpus { what: "all", folder: PathBuf::new(), questions: &[], few: "some-", one: "some-one" };
        let (what, prefix) = corpus.extraction(&Extractor::Rules);
        assert!(what.contains("`rules`") && prefix == "some-", "{what}");
        let (what, prefix) = corpus.extraction(&Extractor::Llm("m at http://h/v1".to_owned()));
        assert!(what.contains("language model m at http://h/v1") && prefix == "some-one", "{what}");
    }

    #[test]
    fn the_report_puts_both_times_side_by_side() {
        let imported: Imported = serde_json::from_str(
            r#"{"new":100,"failed":0,"chunks_written":1000,"took_s":9.0,"searchable_after_s":3.0}"#,
        )
        .unwrap();
        let peak = Peak { process_kib: 2_048, postgres_kib: 1_024 };
        let text = report(ModelName::Minilm, &imported, peak, &Alone { texts: 990, took_s: 10.0 });
        assert!(text.contains("20.0 % (aim"), "{text}");
        assert!(text.contains("12.0 s\n"), "{text}");
        assert!(text.contains("2 MiB\n"), "{text}");
    }
}
