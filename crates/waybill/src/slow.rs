//! Answers that come in parts: following them to the last, and saying how far they are.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::ProgressBar;
use tokio::time::{Instant, interval};
use tonic::{Status, Streaming};

/// What is done sooner needs no word on the way.
const QUIET: Duration = Duration::from_secs(1);

/// Where lines pile up (a CI log), this often is enough.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Between two looks at the clock.
const TICK: Duration = Duration::from_millis(100);

/// Follows a stream to its end and returns its last message, if any came, and how it broke off,
/// if it did. `describe` says how far a message is, for stderr.
pub(crate) async fn last<T>(
    mut stream: Streaming<T>,
    mut describe: impl FnMut(&T) -> String,
) -> (Option<T>, Option<Status>) {
    let mut progress = Progress::begin();
    let mut ticks = interval(TICK);
    let mut last = None;
    let broken = loop {
        tokio::select! {
            message = stream.message() => match message {
                Ok(Some(message)) => {
                    progress.message = describe(&message);
                    last = Some(message);
                }
                Ok(None) => break None,
                Err(status) => break Some(status),
            },
            _ = ticks.tick() => progress.show(),
        }
    };
    progress.end();
    (last, broken)
}

/// A spinner on a terminal, a line now and then elsewhere.
struct Progress {
    message: String,
    spinner: Option<ProgressBar>,
    is_terminal: bool,
    next: Instant,
}

impl Progress {
    fn begin() -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        Self { message: String::new(), spinner: None, is_terminal, next: Instant::now() + QUIET }
    }

    fn show(&mut self) {
        if self.message.is_empty() || Instant::now() < self.next {
            return;
        }
        if self.is_terminal {
            let spinner = self.spinner.get_or_insert_with(ProgressBar::new_spinner);
            spinner.set_message(self.message.clone());
            spinner.tick();
        } else {
            self.next = Instant::now() + LINE_EVERY;
            eprintln!("{}", self.message);
        }
    }

    fn end(&self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }
}
