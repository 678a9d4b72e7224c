//! What came of a run, in Markdown.

use std::{collections::BTreeMap, fmt::Write as _, path::PathBuf, time::Duration};

use crate::compare::{Comparison, Fault};

/// Findings that the report shows; each stands in the history.
const SHOWN_MAX: usize = 20;

/// What came of a run.
#[derive(Debug, Clone)]
pub struct Report {
    /// The command that does it again.
    pub command: String,
    /// The seed.
    pub seed: u64,
    /// How long faults and clients went on.
    pub length: Duration,
    /// Whether it was ended before its time.
    pub ended_early: bool,
    /// Faults by kind.
    pub faults: Vec<(String, u64)>,
    /// Operations of the clients by what they were, and what became of them.
    pub operations: Vec<(String, u64)>,
    /// Changes that the outbox was told of.
    pub outbox_rows: u64,
    /// Keys that relays confirmed, by sink, at least.
    pub confirmed: BTreeMap<String, u64>,
    /// From the end of the last fault until all stores were equal; `None` if they never were.
    pub equal_after: Option<Duration>,
    /// How long that may take.
    pub equal_within: Duration,
    /// The last comparison.
    pub comparison: Comparison,
    /// Promises that were broken meanwhile, the first of them.
    pub violations: Vec<String>,
    /// How many were broken.
    pub violation_count: u64,
    /// Where all that happened is written.
    pub history: PathBuf,
}

impl Report {
    /// Says whether everything was as promised.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.equal_after.is_some() && self.comparison.findings.is_empty() && self.violation_count == 0
    }

    /// Writes it for people.
    #[must_use]
    pub fn markdown(&self) -> String {
        // Writing to a string can't fail.
        let mut out = String::new();
        let verdict = if self.is_good() { "every promise was kept" } else { "a promise was BROKEN" };
        let _ = writeln!(out, "# Torture, seed {}: {verdict}\n", self.seed);
        let early = if self.ended_early { ", ended early" } else { "" };
        let _ = writeln!(out, "    {}\n", self.command);
        let _ = writeln!(out, "Ran for {:.0} s{early}.\n", self.length.as_secs_f64());

        let faults: u64 = self.faults.iter().map(|(_, count)| count).sum();
        let _ = writeln!(out, "| {faults} faults | |\n| --- | ---: |");
        for (kind, count) in &self.faults {
            let _ = writeln!(out, "| {kind} | {count} |");
        }
        let _ = writeln!(out, "\n| clients | |\n| --- | ---: |");
        for (what, count) in &self.operations {
            let _ = writeln!(out, "| {what} | {count} |");
        }
        let _ = writeln!(out, "\n| delivery | |\n| --- | ---: |");
        let _ = writeln!(out, "| outbox rows | {} |", self.outbox_rows);
        for (sink, count) in &self.confirmed {
            let _ = writeln!(out, "| confirmed to `{sink}`, at least | {count} |");
        }

        let Comparison { sources, rows, points, requests, facts, .. } = &self.comparison;
        let _ = writeln!(
            out,
            "\nAt the end: {sources} sources, {rows} rows that are points, {points} points, {requests} requests, {facts} facts.\n"
        );
        match self.equal_after {
            Some(after) => {
                let _ = writeln!(
                    out,
                    "Postgres, Qdrant and Redis were equal {:.1} s after the last fault (limit {} s).\n",
                    after.as_secs_f64(),
                    self.equal_within.as_secs()
                );
            }
            None => {
                let _ = writeln!(
                    out,
                    "The stores were NOT equal {} s after the last fault.\n",
                    self.equal_within.as_secs()
                );
            }
        }
        let count = |fault| self.comparison.count(fault);
        let _ = writeln!(out, "| | |\n| --- | ---: |");
        let _ = writeln!(out, "| lost | {} |\n| stale | {} |", count(Fault::Lost), count(Fault::Stale));
        let _ = writeln!(out, "| orphans | {} |\n| double effects | {} |", count(Fault::Orphan), count(Fault::Double));
        let _ = writeln!(out, "| unfinished | {} |", count(Fault::Unfinished));
        let _ = writeln!(out, "| wrong answers meanwhile | {} |", self.violation_count);

        if self.is_good() {
            return out;
        }
        let _ = writeln!(out, "\n## What was broken\n\nThe history is in `{}`.\n", self.history.display());
        for violation in self.violations.iter().take(SHOWN_MAX) {
            let _ = writeln!(out, "- {violation}");
        }
        for finding in self.comparison.findings.iter().take(SHOWN_MAX) {
            let _ = writeln!(
                out,
                "- {:?}: {}\n  - expected `{}`\n  - found `{}`",
                finding.fault, finding.key, finding.expected, finding.found
            );
        }
        let more = self.comparison.findings.len().saturating_sub(SHOWN_MAX);
        if more > 0 {
            let _ = writeln!(out, "- and {more} more keys");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::Finding;

    fn report() -> Report {
        Report {
            command: "cargo xtask torture --minutes 1 --seed 7".to_owned(),
            seed: 7,
            length: Duration::from_secs(60),
            ended_early: false,
            faults: vec![("FLUSHALL".to_owned(), 2), ("connections cut".to_owned(), 3)],
            operations: vec![("writes".to_owned(), 10)],
            outbox_rows: 20,
            confirmed: BTreeMap::from([("qdrant".to_owned(), 21)]),
            equal_after: Some(Duration::from_secs(2)),
            equal_within: Duration::from_secs(30),
            comparison: Comparison::default(),
            violations: Vec::new(),
            violation_count: 0,
            history: PathBuf::from("history.jsonl"),
        }
    }

    #[test]
    fn a_good_run_says_what_it_took() {
        let text = report().markdown();
        assert!(text.contains("| 5 faults |") && text.contains("2.0 s after"), "{text}");
        assert!(!text.contains("BROKEN"), "{text}");
    }

    #[test]
    fn a_bad_run_names_the_key_both_sides_and_the_history() {
        let mut report = report();
        report.comparison.findings.push(Finding {
            fault: Fault::Lost,
            key: "qdrant chunk x".to_owned(),
            expected: serde_json::json!({ "version": 3 }),
            found: serde_json::Value::Null,
        });
        let text = report.markdown();
        for part in ["BROKEN", "| lost | 1 |", "qdrant chunk x", "\"version\":3", "history.jsonl", "--seed 7"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
