//! Measures how many texts a second the fetched models embed.
//!
//! `cargo xtask fetch-models`, then
//! `cargo run --release -p waybill-models --example throughput -- target/models 2`

use std::{path::PathBuf, time::Duration};

use tokio::time::Instant;
use waybill_models::{Bm25, LocalConfig, ProviderConfig, Purpose, build};

/// 54 tokens for MiniLM, marks included, but for the number put in front of each.
const TEXT: &str = "postgres stores each table as a heap of pages, and vacuum frees the space of \
    dead rows so that later inserts may use it again without growing the file on disk, unless a \
    long transaction holds the horizon back and keeps them all alive.";

/// How many texts go in together.
const BATCH: usize = 32;

/// How long each model is measured.
const SPAN: Duration = Duration::from_secs(6);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, threads, names @ ..] = arguments.as_slice() else {
        return Err("usage: throughput MODELS_DIR THREADS [MODEL...]".into());
    };
    let (dir, threads) = (PathBuf::from(dir), threads.parse()?);
    let all = ["minilm", "minilm-int8", "wordllama"].map(str::to_owned);
    let names_or_all = if names.is_empty() { &all[..] } else { names };
    for name in names_or_all {
        let local = LocalConfig { path: dir.join(name), threads, ..LocalConfig::default() };
        let provider = build(&ProviderConfig { local, ..ProviderConfig::default() }).await?;
        let texts: Vec<String> = (0..BATCH).map(|number| format!("{number} {TEXT}")).collect();
        provider.embed(&texts, Purpose::Document).await?;
        let (begin, mut done) = (Instant::now(), 0);
        while begin.elapsed() < SPAN {
            done += provider.embed(&texts, Purpose::Document).await?.len();
        }
        report(name, done, begin.elapsed());
    }
    if !names.is_empty() {
        return Ok(());
    }
    let bm25 = Bm25::new();
    let (begin, mut done) = (Instant::now(), 0);
    while begin.elapsed() < SPAN {
        done += usize::from(!bm25.document(TEXT).is_empty());
    }
    report("bm25, one thread", done, begin.elapsed());
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the result is what the example is for")]
fn report(name: &str, done: usize, elapsed: Duration) {
    println!("{name}: {:.0} texts/s", done as f64 / elapsed.as_secs_f64());
}
