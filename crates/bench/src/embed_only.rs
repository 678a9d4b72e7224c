//! `waybill-bench embed-only`: what embedding costs with nothing around it.

use std::collections::HashSet;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};
use waybill_domain::{TextHash, embedding_text};
use waybill_local_stores::{DataDir, PostgresOptions, PrivatePostgres};
use waybill_models::{LocalConfig, ProviderConfig, Purpose, build};
use waybill_testkit::psql;

/// Arguments of `waybill-bench embed-only`.
#[derive(Debug, clap::Args)]
pub(crate) struct EmbedOnlyArgs {
    /// The data directory of a `waybill up` that has stopped
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Folder of the embedding model
    #[arg(long, value_name = "DIR")]
    model_dir: PathBuf,
    /// Texts in one call of the model: the embedding service's default
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// Calls under way at once: the embedding service's default for a local model
    #[arg(long, default_value_t = 2)]
    in_flight: usize,
}

/// What embedding alone took.
#[derive(Debug, Serialize)]
pub(crate) struct EmbedOnlyResult {
    model: String,
    /// Chunks there are; texts that repeat are embedded once, as the cache sees to.
    chunks: usize,
    texts: usize,
    took_s: f64,
    texts_per_second: f64,
}

/// Embeds every text of the data directory once, in the order in which they were written.
///
/// # Errors
/// If Postgres or the model can't be started.
pub(crate) async fn run(args: &EmbedOnlyArgs) -> anyhow::Result<EmbedOnlyResult> {
    let data_dir = DataDir::lock(&args.data_dir).context("open the data directory")?;
    let postgres = PrivatePostgres::start(&data_dir, PostgresOptions::default()).await?;
    let rows = psql(
        &postgres.url(),
        "SELECT json_build_object('headings', headings, 'text', text) FROM chunk ORDER BY version",
    )
    .await;
    postgres.stop().await?;
    let (chunks, texts) = distinct_texts(&rows?)?;
    ensure!(!texts.is_empty(), "there are no chunks in {}", args.data_dir.display());

    let config = ProviderConfig {
        local: LocalConfig { path: args.model_dir.clone(), ..LocalConfig::default() },
        ..ProviderConfig::default()
    };
    let provider = build(&config).await?;
    // Loading the model and its first call are no cost of the texts.
    provider.embed(&texts[..1], Purpose::Document).await?;

    let began = tokio::time::Instant::now();
    stream::iter(texts.chunks(args.batch.max(1)))
        .map(|batch| provider.embed(batch, Purpose::Document))
        .buffered(args.in_flight.max(1))
        .try_for_each(|_| std::future::ready(Ok(())))
        .await?;
    let took_s = began.elapsed().as_secs_f64();
    Ok(EmbedOnlyResult {
        model: provider.info().name.clone(),
        chunks,
        texts: texts.len(),
        took_s,
        texts_per_second: texts.len() as f64 / took_s.max(0.001),
    })
}

#[derive(Deserialize)]
struct Row {
    headings: Vec<String>,
    text: String,
}

/// Reads rows of JSON; returns how many there are, and each text once.
fn distinct_texts(rows: &str) -> anyhow::Result<(usize, Vec<String>)> {
    let mut count = 0;
    let mut seen = HashSet::new();
    let mut texts = Vec::new();
    for line in rows.lines() {
        let row: Row = serde_json::from_str(line).context("read a chunk")?;
        let text = embedding_text(&row.headings, &row.text);
        count += 1;
        if seen.insert(TextHash::of(&text)) {
            texts.push(text);
        }
    }
    Ok((count, texts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_repeats_is_embedded_once() {
        let rows = "{\"headings\":[\"H\"],\"text\":\"a\"}\n{\"headings\":[],\"text\":\"b\\nc\"}\n{\"headings\":[\"H\"],\"text\":\"a\"}";
        let (count, texts) = distinct_texts(rows).unwrap();
        assert_eq!(count, 3);
        assert_eq!(texts, ["H\n\na", "b\nc"]);
    }
}
