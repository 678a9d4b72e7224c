//! What happened, as it happened: a line of JSON for each fault, operation and finding.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

/// Violations that are kept in memory; each stands in the file.
const KEPT_MAX: usize = 100;

/// The history of a run. It is written as it goes, so that it is there after any end.
#[derive(Debug)]
pub(crate) struct History {
    begun: Instant,
    path: PathBuf,
    out: Mutex<BufWriter<File>>,
    tally: Mutex<Tally>,
}

#[derive(Debug, Default)]
struct Tally {
    counts: BTreeMap<String, u64>,
    violations: Vec<String>,
    violation_count: u64,
}

impl History {
    /// Begins a history at `path`, in place of an older one.
    ///
    /// # Errors
    /// If the file can't be written.
    pub(crate) fn begin(path: &Path) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self {
            begun: Instant::now(),
            path: path.to_owned(),
            out: Mutex::new(BufWriter::new(file)),
            tally: Mutex::default(),
        })
    }

    /// Returns where it is written.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns how long ago it began.
    pub(crate) fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Writes down that `who` did or saw `what`. `details` is an object.
    pub(crate) fn note(&self, who: &str, what: &str, details: Value) {
        let mut line = Map::new();
        // To the millisecond, in seconds.
        line.insert("t".to_owned(), json!(self.now().as_millis() as f64 / 1_000.0));
        line.insert("who".to_owned(), json!(who));
        line.insert("what".to_owned(), json!(what));
        if let Value::Object(details) = details {
            line.extend(details);
        }
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        // A full disk shows at the end, when the file is flushed.
        let _ = writeln!(out, "{}", Value::Object(line));
    }

    /// Counts one more of `what`.
    pub(crate) fn count(&self, what: &str) {
        self.count_many(what, 1);
    }

    /// Counts `by` more of `what`.
    pub(crate) fn count_many(&self, what: &str, by: u64) {
        *self.tally().counts.entry(what.to_owned()).or_default() += by;
    }

    /// Returns the count of `what`.
    pub(crate) fn counted(&self, what: &str) -> u64 {
        self.tally().counts.get(what).copied().unwrap_or_default()
    }

    /// Returns every count whose name begins with `prefix`, without it.
    pub(crate) fn counts(&self, prefix: &str) -> Vec<(String, u64)> {
        let tally = self.tally();
        let ours = tally.counts.iter().filter_map(|(name, count)| Some((name.strip_prefix(prefix)?, *count)));
        ours.map(|(name, count)| (name.to_owned(), count)).collect()
    }

    /// Writes down that a promise was broken, and that `who` saw it.
    pub(crate) fn violation(&self, who: &str, text: String, details: Value) {
        self.note(who, "VIOLATION", json!({ "text": text, "seen": details }));
        eprintln!("[{:7.1} s] VIOLATION, seen by {who}: {text}", self.now().as_secs_f64());
        let mut tally = self.tally();
        tally.violation_count += 1;
        if tally.violations.len() < KEPT_MAX {
            let at = self.begun.elapsed().as_secs_f64();
            tally.violations.push(format!("{at:.3} s, {who}: {text}"));
        }
    }

    /// Returns how many promises were broken.
    pub(crate) fn violation_count(&self) -> u64 {
        self.tally().violation_count
    }

    /// Returns the first of the broken promises, as text.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.tally().violations.clone()
    }

    /// Writes out what is buffered.
    ///
    /// # Errors
    /// If the file can't be written.
    pub(crate) fn flush(&self) -> anyhow::Result<()> {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        out.flush().with_context(|| format!("write {}", self.path.display()))
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
