//! What an import did.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use console::style;
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;
use waybill_api::ingestion::v1::{PutOutcome, PutSourceResponse};

use crate::out::Out;
use crate::text;

/// How many failed documents are printed; `--json` lists them all.
const SHOWN: usize = 20;

/// How many refusals are kept to be listed. Above it they are only counted: an import of
/// millions that all fail should not end for want of memory.
const KEPT: usize = 100_000;

/// A document that was not imported, and why.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) uri: String,
    pub(super) reason: String,
}

/// Counts, and the documents that were not imported.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// Names this run: stored with the documents and chunks that it writes.
    pub(super) job_id: Uuid,
    pub(super) new: u64,
    pub(super) changed: u64,
    pub(super) unchanged: u64,
    pub(super) failed: u64,
    pub(super) skipped: u64,
    pub(super) pruned: u64,
    /// Chunks of the documents that were new or changed.
    pub(super) chunks: u64,
    pub(super) failures: Vec<Refusal>,
    pub(super) skips: Vec<Refusal>,
    /// Time from the first document read to the last answer.
    pub(super) took: Duration,
    /// Time from the last answer until everything was searchable, if that was waited for.
    pub(super) searchable_after: Option<Duration>,
    pub(super) interrupted: bool,
    /// The uris that were come across, kept for `--prune` only.
    pub(super) seen: Option<HashSet<String>>,
}

impl Report {
    /// Counts a document that the service took.
    pub(super) fn put(&mut self, response: &PutSourceResponse) {
        match response.outcome() {
            PutOutcome::Created => self.new += 1,
            PutOutcome::Changed => self.changed += 1,
            PutOutcome::Unchanged | PutOutcome::Unspecified => self.unchanged += 1,
        }
        self.chunks += response.chunks_added.unsigned_abs();
    }

    /// Notes that the input has this uri, whatever became of it.
    pub(super) fn see(&mut self, uri: &str) {
        if let Some(seen) = &mut self.seen {
            seen.insert(uri.to_owned());
        }
    }

    pub(super) fn fail(&mut self, refusal: Refusal) {
        self.failed += 1;
        keep(&mut self.failures, refusal);
    }

    pub(super) fn skip(&mut self, refusal: Refusal) {
        self.skipped += 1;
        keep(&mut self.skips, refusal);
    }

    /// Returns how many documents the service answered for.
    pub(super) const fn answered(&self) -> u64 {
        self.new + self.changed + self.unchanged
    }

    fn per_second(&self, number: u64) -> f64 {
        // A fraction of a millisecond says nothing about a rate.
        number as f64 / self.took.as_secs_f64().max(0.001)
    }

    /// Writes everything as one JSON object.
    pub(super) fn print_json(&self, out: &mut Out, project: &str) -> anyhow::Result<()> {
        out.json(&json!({
            "project": project,
            "job_id": self.job_id,
            "new": self.new,
            "changed": self.changed,
            "unchanged": self.unchanged,
            "failed": self.failed,
            "skipped": self.skipped,
            "pruned": self.pruned,
            "chunks_written": self.chunks,
            "took_s": self.took.as_secs_f64(),
            "documents_per_second": self.per_second(self.answered()),
            "chunks_per_second": self.per_second(self.chunks),
            "searchable_after_s": self.searchable_after.map(|after| after.as_secs_f64()),
            "interrupted": self.interrupted,
            "failures": self.failures,
            "skips": self.skips,
        }))
    }

    /// Writes the counts, and why documents were left out, for people.
    pub(super) fn print(&self, out: &mut Out, project: &str) -> anyhow::Result<()> {
        out.line(format_args!(
            "{} into {project}: {} new, {} changed, {} unchanged, {} failed, {} skipped",
            style(format!("{} documents", text::count(self.answered()))).bold(),
            text::count(self.new),
            text::count(self.changed),
            text::count(self.unchanged),
            if self.failed == 0 { style(self.failed.to_string()) } else { style(text::count(self.failed)).red() },
            text::count(self.skipped),
        ))?;
        out.line(format_args!(
            "{} chunks written in {}: {:.0} documents/s, {:.0} chunks/s",
            text::count(self.chunks),
            text::span(self.took),
            self.per_second(self.answered()),
            self.per_second(self.chunks),
        ))?;
        if self.new + self.changed > 0 {
            out.line(format_args!("job {}", self.job_id))?;
        }
        if self.pruned > 0 {
            out.line(format_args!("{} sources deleted (--prune)", text::count(self.pruned)))?;
        }
        if let Some(after) = self.searchable_after {
            out.line(format_args!("all searchable {} after the last commit", text::span(after)))?;
        }
        for (reason, count) in reasons(&self.skips) {
            out.line(format_args!("skipped {:>6}  {reason}", text::count(count)))?;
        }
        for failure in self.failures.iter().take(SHOWN) {
            out.line(format_args!(
                "{}  {}: {}",
                style("failed").red(),
                text::one_line(&failure.uri),
                text::one_line(&failure.reason)
            ))?;
        }
        if self.failed > SHOWN as u64 {
            let more = self.failed - SHOWN as u64;
            out.line(format_args!("... and {} more: --json lists them", text::count(more)))?;
        }
        Ok(())
    }
}

fn keep(list: &mut Vec<Refusal>, refusal: Refusal) {
    if list.len() < KEPT {
        list.push(refusal);
    }
}

fn reasons(refusals: &[Refusal]) -> BTreeMap<&str, u64> {
    let mut reasons = BTreeMap::new();
    for refusal in refusals {
        // "not UTF-8 (at byte 17)" is one reason with many places.
        let reason = refusal.reason.split(" (at ").next().unwrap_or_default();
        *reasons.entry(reason).or_default() += 1;
    }
    reasons
}
