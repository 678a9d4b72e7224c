//! How far something is, on stderr: a bar on a terminal, a line now and then elsewhere. What is
//! over within a second shows nothing.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

/// What takes less needs no progress.
const SHOWN_AFTER: Duration = Duration::from_secs(1);
/// Where lines pile up (a CI log), this often is enough.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Steps of the bar.
const STEPS: f64 = 1_000.0;

/// Shows progress; takes it away when dropped.
pub(super) struct Gauge {
    begun: Instant,
    next_line: Instant,
    bar: Option<ProgressBar>,
}

impl Gauge {
    pub(super) fn new() -> Self {
        let begun = Instant::now();
        Self { begun, next_line: begun + SHOWN_AFTER, bar: None }
    }

    /// Notes that `share` (0 to 1) is done.
    pub(super) fn see(&mut self, share: f64, message: &str) {
        if self.begun.elapsed() < SHOWN_AFTER {
            return;
        }
        if std::io::stderr().is_terminal() {
            let bar = self.bar.get_or_insert_with(bar);
            bar.set_position((share.clamp(0.0, 1.0) * STEPS) as u64);
            bar.set_message(message.to_owned());
        } else if Instant::now() >= self.next_line {
            self.next_line = Instant::now() + LINE_EVERY;
            eprintln!("{:.0} %, {message}", share * 100.0);
        }
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new(STEPS as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:32.cyan/dim} {percent:>3} %  {msg}  {eta} left") {
        bar.set_style(style.progress_chars("━╸─"));
    }
    bar
}
