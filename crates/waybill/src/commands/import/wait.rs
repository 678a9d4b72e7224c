//! `--wait`: until the index has everything.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::ProgressBar;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tonic::Code;
use waybill_api::relay::v1::{GetStatusRequest, GetStatusResponse, SinkStatus};
use waybill_domain::SinkName;

use crate::cli::ImportArgs;
use crate::client;
use crate::text;

/// The shortest time between two questions.
const POLL: Duration = Duration::from_millis(100);

/// Waits this many times as long as an answer took: counting a backlog costs the database
/// time, and who waits for the relay should not slow it down.
const POLL_FACTOR: u32 = 10;

/// Where lines pile up (a CI log), this often is enough.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// How long the relay may be away before waiting is given up.
const GIVE_UP_AFTER: Duration = Duration::from_secs(60);

/// Returns how long it took; `None` if `stop` fired before.
pub(super) async fn until_searchable(args: &ImportArgs, stop: &CancellationToken) -> anyhow::Result<Option<Duration>> {
    let (mut client, target) = client::relay(args.relay_endpoint.as_deref(), &args.endpoint)?;
    let spinner = std::io::stderr().is_terminal().then(ProgressBar::new_spinner);
    let begun = Instant::now();
    let mut next_line = begun + LINE_EVERY;
    let mut last_answer = begun;
    loop {
        let asked = Instant::now();
        match client.get_status(GetStatusRequest::default()).await {
            Ok(response) => {
                last_answer = Instant::now();
                let response = response.into_inner();
                let left = lag(&response);
                if left == 0 && index(&response).next().is_some() {
                    if let Some(spinner) = spinner {
                        spinner.finish_and_clear();
                    }
                    return Ok(Some(begun.elapsed()));
                }
                let message = format!("{} changes on their way to the index", text::count(left));
                if let Some(spinner) = &spinner {
                    spinner.set_message(message);
                    spinner.tick();
                } else if Instant::now() >= next_line {
                    next_line = Instant::now() + LINE_EVERY;
                    eprintln!("{message}{}", trouble(&response));
                }
            }
            Err(status) if status.code() == Code::Unavailable && last_answer.elapsed() < GIVE_UP_AFTER => {}
            Err(status) => return Err(target.explain(&status)),
        }
        tokio::select! {
            () = sleep(POLL.max(asked.elapsed() * POLL_FACTOR).min(LINE_EVERY)) => {}
            () = stop.cancelled() => return Ok(None),
        }
    }
}

/// What makes something searchable. A language model that is behind with its reading is
/// another matter.
fn index(response: &GetStatusResponse) -> impl Iterator<Item = &SinkStatus> {
    response.sinks.iter().filter(|sink| sink.sink == SinkName::Qdrant.as_str())
}

fn lag(response: &GetStatusResponse) -> u64 {
    index(response).map(|sink| sink.lag_rows.unsigned_abs()).sum()
}

fn trouble(response: &GetStatusResponse) -> String {
    let error = index(response).find(|sink| !sink.last_error.is_empty());
    error.map_or_else(String::new, |sink| format!(" ({}: {})", sink.sink, text::one_line(&sink.last_error)))
}
