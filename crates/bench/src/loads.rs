//! `waybill-bench loads`: how long a large load takes until all of it is searchable: as it is, in
//! bulk mode, and with delivery held until all of it is in Postgres.
//!
//! The ways take turns, and each load has servers of its own: how fast they are depends on what they
//! hold. Texts have the words of a language, some often and most rarely.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use crate::eval::median;
use crate::relay::{Stage, texts};
use crate::servers::sibling;

/// Loaded before anything is measured, so that connections and the collection are there.
const WARM_UP_DOCUMENTS: usize = 100;

/// Paragraphs of a document; each becomes a chunk.
const PARAGRAPHS: usize = 4;

/// Arguments of `waybill-bench loads`.
#[derive(Debug, clap::Args)]
pub(crate) struct LoadsArgs {
    /// Documents of a load; some four chunks each
    #[arg(long, default_value_t = 4_000)]
    documents: usize,
    /// Rounds; the median counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Folder of the embedding model
    #[arg(long, value_name = "DIR")]
    model_dir: PathBuf,
    /// A Qdrant to use instead of qdrant-local
    #[arg(long, value_name = "URL")]
    qdrant: Option<String>,
}

/// A way to load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Way {
    Plain,
    Bulk,
    Coordinated,
}

impl Way {
    const ALL: [Self; 3] = [Self::Plain, Self::Bulk, Self::Coordinated];

    const fn flag(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Bulk => Some("--bulk"),
            Self::Coordinated => Some("--coordinated"),
        }
    }
}

/// What came out.
#[derive(Debug, Serialize)]
pub(crate) struct LoadsResult {
    documents: usize,
    chunks: u64,
    ways: Vec<WayResult>,
}

/// Medians, in seconds.
#[derive(Debug, Serialize)]
struct WayResult {
    way: Way,
    /// Until Postgres had all of it.
    loaded_s: f64,
    /// Until all of it could be found, the load included.
    searchable_s: f64,
    /// Of each round.
    rounds: Vec<f64>,
}

/// What `waybill import --json` says.
#[derive(Debug, Deserialize)]
struct Imported {
    new: usize,
    chunks_written: u64,
    took_s: f64,
    searchable_after_s: f64,
}

/// Runs all rounds.
///
/// # Errors
/// If a server can't be started, or a document was not taken.
pub(crate) async fn run(args: &LoadsArgs) -> anyhow::Result<LoadsResult> {
    ensure!(args.documents > 0 && args.rounds > 0, "nothing to measure: documents and rounds are 1 or more");
    let texts = texts((args.documents + WARM_UP_DOCUMENTS) * PARAGRAPHS);
    let (warm_up, load) = texts.split_at(WARM_UP_DOCUMENTS * PARAGRAPHS);
    let mut times: BTreeMap<Way, (Vec<f64>, Vec<f64>)> = BTreeMap::new();
    let mut chunks = 0;
    for round in 0..args.rounds {
        for turn in 0..Way::ALL.len() {
            let way = Way::ALL[(round + turn) % Way::ALL.len()];
            let stage = Stage::set(&args.model_dir, args.qdrant.as_deref()).await?;
            let file = stage.dir().join("load.jsonl");
            write(&file, warm_up)?;
            import(&stage, &file, "warm-up", Way::Plain).await?;
            write(&file, load)?;
            let imported = import(&stage, &file, "load", way).await?;
            stage.strike().await?;
            ensure!(imported.new == args.documents, "{} of {} documents were taken", imported.new, args.documents);
            let searchable = imported.took_s + imported.searchable_after_s;
            eprintln!("{way:?}: loaded in {:.1} s, searchable after {searchable:.1} s", imported.took_s);
            let (loaded, all) = times.entry(way).or_default();
            loaded.push(imported.took_s);
            all.push(searchable);
            chunks = imported.chunks_written;
        }
    }
    let ways = times.into_iter().map(|(way, (mut loaded, all))| WayResult {
        way,
        loaded_s: median(&mut loaded),
        searchable_s: median(&mut all.clone()),
        rounds: all,
    });
    Ok(LoadsResult { documents: args.documents, chunks, ways: ways.collect() })
}

/// Writes documents as JSON lines.
fn write(file: &Path, texts: &[String]) -> anyhow::Result<()> {
    let mut out = BufWriter::new(File::create(file).with_context(|| format!("write {}", file.display()))?);
    for (number, paragraphs) in texts.chunks(PARAGRAPHS).enumerate() {
        let text = paragraphs.join("\n\n");
        writeln!(out, "{}", serde_json::json!({ "uri": format!("{number}.txt"), "text": text }))?;
    }
    out.flush()?;
    Ok(())
}

async fn import(stage: &Stage, file: &Path, project: &str, way: Way) -> anyhow::Result<Imported> {
    let mut command = tokio::process::Command::new(sibling("waybill")?);
    let arguments = ["import", "--project", project, "--wait", "--json", "--format", "jsonl"];
    command.args(arguments).args(way.flag()).arg(file);
    command.args([OsString::from("--data-dir"), stage.dir().join("up").into_os_string()]);
    let output = command.stderr(Stdio::inherit()).output().await.context("start waybill import")?;
    ensure!(output.status.success(), "waybill import ended with {}", output.status);
    serde_json::from_slice(&output.stdout).context("read what waybill import printed")
}
