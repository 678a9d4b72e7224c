//! What `waybill up` says while it starts: a line for each step, with its time.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use console::style;
use tokio::time::{Instant, sleep};

use crate::text;

/// A step that takes longer is announced, so that nobody wonders.
const ANNOUNCE_AFTER: Duration = Duration::from_secs(1);

/// What a step gives, and what is worth saying about it.
pub(super) struct Done<T> {
    pub(super) value: T,
    pub(super) note: String,
}

impl<T> Done<T> {
    pub(super) fn new(value: T, note: impl Display) -> Self {
        Self { value, note: note.to_string() }
    }
}

/// Says something that took no step.
pub(super) fn note(name: &str, note: &str) {
    eprintln!("  {} {name:<12} {:>8}  {note}", style("✓").for_stderr().green(), "");
}

/// Runs a step. `slow` says why it may take a while.
pub(super) async fn step<T>(
    name: &str,
    slow: &str,
    work: impl Future<Output = anyhow::Result<Done<T>>>,
) -> anyhow::Result<T> {
    let begun = Instant::now();
    tokio::pin!(work);
    let early = tokio::select! {
        result = &mut work => Some(result),
        () = sleep(ANNOUNCE_AFTER) => None,
    };
    let result = match early {
        Some(result) => result,
        None => {
            eprintln!("  {} {name:<12} {slow} ...", style("·").for_stderr().dim());
            work.await
        }
    };
    match result {
        Ok(done) => {
            let took = style(format!("{:>8}", text::span(begun.elapsed()))).for_stderr().dim();
            eprintln!("  {} {name:<12} {took}  {}", style("✓").for_stderr().green(), done.note);
            Ok(done.value)
        }
        Err(error) => {
            eprintln!("  {} {name}", style("✗").for_stderr().red());
            Err(error)
        }
    }
}
