//! How far a job is: a bar on a terminal, a line now and then elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;
use waybill_api::extraction::v1::Job;

use super::show;
use crate::text;

/// Fast enough to look alive, slow enough not to matter.
const TICK: Duration = Duration::from_millis(120);

/// Where lines pile up (a CI log), this often is enough.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Shows progress on stderr.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    begun: Instant,
    next_line: Instant,
    /// Requests that were settled before we looked: they say nothing about the rate.
    before: u64,
}

impl Progress {
    /// Begins with a job as it is now.
    pub(crate) fn begin(job: &Job) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| bar(job));
        let begun = Instant::now();
        Self { bar, begun, next_line: begun + LINE_EVERY, before: show::settled(job) }
    }

    /// Notes how far the job is.
    pub(crate) fn see(&mut self, job: &Job) {
        let rate = self.rate(job);
        if let Some(bar) = &self.bar {
            // Requests whose documents are deleted are gone.
            bar.set_length(show::total(job));
            bar.set_position(show::settled(job));
            bar.set_message(counts(job, rate));
        } else if Instant::now() >= self.next_line {
            self.next_line = Instant::now() + LINE_EVERY;
            eprintln!("{}{}", counts(job, rate), left(job, rate));
        }
    }

    /// Says something without disturbing the bar.
    pub(crate) fn say(&self, message: &str) {
        match &self.bar {
            Some(bar) => bar.println(message),
            None => eprintln!("{message}"),
        }
    }

    /// Takes the bar away.
    pub(crate) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn rate(&self, job: &Job) -> f64 {
        let settled = show::settled(job).saturating_sub(self.before);
        settled as f64 / self.begun.elapsed().as_secs_f64().max(0.001)
    }
}

fn counts(job: &Job, rate: f64) -> String {
    let settled = text::count(show::settled(job));
    let total = text::count(show::total(job));
    let facts = text::count(job.fact_count.unsigned_abs());
    format!("{settled} of {total} requests, {rate:.1}/s, {facts} facts")
}

fn left(job: &Job, rate: f64) -> String {
    let left = show::total(job).saturating_sub(show::settled(job));
    if rate <= 0.0 || left == 0 {
        return String::new();
    }
    // A rate close to nothing promises centuries, which a Duration need not hold.
    let left = Duration::from_secs_f64((left as f64 / rate).min(1e9));
    format!(", about {} left", text::span(left))
}

fn bar(job: &Job) -> ProgressBar {
    let bar = ProgressBar::new(show::total(job)).with_position(show::settled(job));
    if let Ok(style) = ProgressStyle::with_template("{bar:32.cyan/dim} {percent:>3} %  {msg}  {eta} left") {
        bar.set_style(style.progress_chars("━╸─"));
    }
    bar.reset_eta();
    bar.enable_steady_tick(TICK);
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_long_it_will_take() {
        let job = Job { done_count: 30, pending_count: 60, dead_count: 10, fact_count: 5, ..Job::default() };
        assert_eq!(counts(&job, 2.0), "40 of 100 requests, 2.0/s, 5 facts");
        assert_eq!(left(&job, 2.0), ", about 30.0 s left");
        assert_eq!(left(&job, 0.0), "");
    }
}
