//! `waybill-bench eval`: questions whose answering page is known, asked of a search service.

use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use serde::Serialize;
use waybill_api::embedding::v1::search_service_client::SearchServiceClient;
use waybill_api::embedding::v1::{SearchMode, SearchRequest};
use waybill_runtime::grpc;

/// How many chunks are asked for. Pages are ranked by their best chunk, so that this many
/// chunks make 10 pages or more; a page that is not among them counts as not found.
const CHUNKS: i32 = 50;

/// Arguments of `waybill-bench eval`.
#[derive(Debug, clap::Args)]
pub(crate) struct EvalArgs {
    /// The set: lines of sort, page (or two, parted by |) and question, parted by tabs
    #[arg(long, value_name = "FILE")]
    questions: PathBuf,
    /// URL of the search service
    #[arg(long, value_name = "URL")]
    embedding: String,
    /// Project that holds the pages
    #[arg(long, value_name = "NAME")]
    project: String,
    /// List the questions whose page was not the first, on stderr
    #[arg(long)]
    misses: bool,
}

/// What came out, for each mode.
#[derive(Debug, Serialize)]
pub(crate) struct EvalResult {
    questions: usize,
    modes: Vec<ModeResult>,
}

#[derive(Debug, Serialize)]
struct ModeResult {
    mode: &'static str,
    /// Share of questions whose page came first.
    hit_at_1: f64,
    /// Share of questions whose page was among the first five pages.
    hit_at_5: f64,
    /// Mean of 1 / rank of the page, 0 where it was not found.
    mrr: f64,
    /// Median time of a search.
    median_ms: f64,
}

const MODES: [(&str, SearchMode); 3] =
    [("dense", SearchMode::Dense), ("lexical", SearchMode::Lexical), ("hybrid", SearchMode::Hybrid)];

/// Asks every question in every mode.
///
/// # Errors
/// If the set can't be read or a search fails.
pub(crate) async fn run(args: &EvalArgs) -> anyhow::Result<EvalResult> {
    let text =
        std::fs::read_to_string(&args.questions).with_context(|| format!("read {}", args.questions.display()))?;
    let questions = parse(&text)?;
    let mut client = SearchServiceClient::new(grpc::channel(&args.embedding)?);
    let mut modes = Vec::new();
    for (name, mode) in MODES {
        let mut ranks = Vec::new();
        let mut times_ms = Vec::new();
        for question in &questions {
            let request = SearchRequest {
                project: args.project.clone(),
                query: question.text.to_owned(),
                mode: mode.into(),
                limit: CHUNKS,
                ..SearchRequest::default()
            };
            let began = tokio::time::Instant::now();
            let response = client.search(request).await.context("search")?.into_inner();
            times_ms.push(began.elapsed().as_secs_f64() * 1_000.0);
            let pages = rank_pages(response.hits.iter().map(|hit| hit.source_uri.as_str()));
            let rank = pages.iter().position(|page| question.pages.contains(page)).map(|at| at + 1);
            if args.misses && rank != Some(1) {
                let found = pages.first().copied().unwrap_or("nothing");
                let rank = rank.map_or("-".to_owned(), |rank| rank.to_string());
                eprintln!("{name}\t{rank}\t{}\t{found}\t{}", question.pages.join("|"), question.text);
            }
            ranks.push(rank);
        }
        modes.push(ModeResult {
            mode: name,
            hit_at_1: share(&ranks, 1),
            hit_at_5: share(&ranks, 5),
            mrr: mean_reciprocal_rank(&ranks),
            median_ms: median(&mut times_ms),
        });
    }
    Ok(EvalResult { questions: questions.len(), modes })
}

#[derive(Debug, PartialEq, Eq)]
struct Question<'a> {
    pages: Vec<&'a str>,
    text: &'a str,
}

fn parse(text: &str) -> anyhow::Result<Vec<Question<'_>>> {
    let mut questions = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let columns = line.split('\t').collect::<Vec<_>>();
        let [_, pages, text] = columns.as_slice() else {
            bail!("line {} has {} columns, not 3", index + 1, columns.len());
        };
        questions.push(Question { pages: pages.split('|').collect(), text });
    }
    ensure!(!questions.is_empty(), "no questions in the set");
    Ok(questions)
}

/// Returns the file names of the pages that chunks belong to, each once, best first.
fn rank_pages<'a>(uris: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut pages = Vec::new();
    for uri in uris {
        let page = uri.rsplit('/').next().unwrap_or(uri);
        if !pages.contains(&page) {
            pages.push(page);
        }
    }
    pages
}

fn share(ranks: &[Option<usize>], within: usize) -> f64 {
    let found = ranks.iter().flatten().filter(|rank| **rank <= within).count();
    found as f64 / ranks.len().max(1) as f64
}

fn mean_reciprocal_rank(ranks: &[Option<usize>]) -> f64 {
    let sum: f64 = ranks.iter().flatten().map(|rank| 1.0 / *rank as f64).sum();
    sum / ranks.len().max(1) as f64
}

/// Returns the middle value, or the mean of the two in the middle; 0 if there is none.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let upper = values.get(values.len() / 2).copied().unwrap_or_default();
    let lower = values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or_default();
    f64::midpoint(lower, upper)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_set_is_well_formed() {
        let questions = parse(include_str!("../questions.tsv")).unwrap();
        assert!(questions.len() >= 60);
        let texts: HashSet<_> = questions.iter().map(|question| question.text).collect();
        assert_eq!(texts.len(), questions.len(), "a question stands twice");
        for question in &questions {
            assert!((1..=2).contains(&question.pages.len()), "{question:?}");
            assert!(question.pages.iter().all(|page| page.ends_with(".html")), "{question:?}");
        }
    }

    #[test]
    fn a_page_ranks_by_its_best_chunk() {
        let uris = ["x/b.html", "x/a.html", "x/b.html", "c.html"];
        assert_eq!(rank_pages(uris.into_iter()), ["b.html", "a.html", "c.html"]);
    }

    #[test]
    fn the_median_favours_neither_side() {
        assert!((median(&mut [3.0, 1.0]) - 2.0).abs() < 1e-9);
        assert!((median(&mut [9.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
    }

    #[test]
    fn measures_count_what_was_not_found() {
        let ranks = [Some(1), Some(4), None, Some(10)];
        assert!((share(&ranks, 1) - 0.25).abs() < 1e-9);
        assert!((share(&ranks, 5) - 0.5).abs() < 1e-9);
        assert!((mean_reciprocal_rank(&ranks) - (1.0 + 0.25 + 0.1) / 4.0).abs() < 1e-9);
    }
}
