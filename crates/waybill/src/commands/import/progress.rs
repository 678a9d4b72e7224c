//! How far an import is: a bar on a terminal, a line now and then elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::text;

/// Fast enough to look alive, slow enough not to matter.
const TICK: Duration = Duration::from_millis(120);

/// Where lines pile up (a CI log), this often is enough.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Shows progress on stderr.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    begun: Instant,
    next_line: Instant,
    total_bytes: Option<u64>,
    bytes: u64,
    documents: u64,
}

impl Progress {
    /// Begins. `total_bytes` is the size of the input, `None` if it isn't known.
    pub(super) fn begin(total_bytes: Option<u64>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| bar(total_bytes));
        let begun = Instant::now();
        Self { bar, begun, next_line: begun + LINE_EVERY, total_bytes, bytes: 0, documents: 0 }
    }

    /// Notes a document that is done, one way or the other.
    pub(super) fn done(&mut self, input_bytes: u64) {
        self.bytes += input_bytes;
        self.documents += 1;
        if let Some(bar) = &self.bar {
            bar.set_position(self.bytes);
            bar.set_message(self.counts());
        } else if Instant::now() >= self.next_line {
            self.next_line = Instant::now() + LINE_EVERY;
            eprintln!("{}{}", self.counts(), self.left());
        }
    }

    /// Says something without disturbing the bar.
    pub(super) fn say(&self, message: &str) {
        match &self.bar {
            Some(bar) => bar.println(message),
            None => eprintln!("{message}"),
        }
    }

    /// Takes the bar away.
    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn counts(&self) -> String {
        let rate = self.documents as f64 / self.begun.elapsed().as_secs_f64().max(0.001);
        format!("{} documents, {rate:.0}/s", text::count(self.documents))
    }

    /// Guesses the time left by bytes: documents differ in size too much to count them.
    fn left(&self) -> String {
        match self.total_bytes {
            Some(total) if self.bytes > 0 => {
                let left = total.saturating_sub(self.bytes) as f64 / self.bytes as f64;
                let left = self.begun.elapsed().mul_f64(left.min(1e6));
                format!(", {:.0} %, about {} left", self.percent(total), text::span(left))
            }
            _ => String::new(),
        }
    }

    fn percent(&self, total: u64) -> f64 {
        self.bytes as f64 * 100.0 / (total.max(1)) as f64
    }
}

fn bar(total_bytes: Option<u64>) -> ProgressBar {
    let (bar, template) = match total_bytes {
        Some(total) => (ProgressBar::new(total), "{bar:32.cyan/dim} {percent:>3} %  {msg}  {eta} left"),
        None => (ProgressBar::new_spinner(), "{spinner}  {msg}  {elapsed}"),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸─"));
    }
    bar.enable_steady_tick(TICK);
    bar
}
