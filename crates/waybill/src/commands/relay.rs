//! `waybill relay`: pausing, resuming and draining sinks.

use std::time::Duration;

use serde_json::{Value, json};
use waybill_api::relay::v1::{DrainRequest, DrainResponse, Pause, PauseRequest, ResumeRequest};

use crate::cli::{EndpointArgs, RelayCommand, Sink};
use crate::client;
use crate::exit;
use crate::out::Out;
use crate::{slow, text, values};

/// What the service takes of a name, in bytes.
const NAME_BYTES_MAX: usize = 128;

/// Runs the command. Returns the exit code: a drain that left something makes it 1.
pub(crate) async fn run(command: RelayCommand) -> anyhow::Result<u8> {
    match command {
        RelayCommand::Pause { sink, reason, by, endpoint, json } => {
            let request = PauseRequest {
                sink: sink.as_str().to_owned(),
                paused_by: by.unwrap_or_else(myself),
                reason,
                ttl: None,
            };
            pause(request, &endpoint, json).await.map(|()| 0)
        }
        RelayCommand::Resume { sink, endpoint, json } => resume(sink, &endpoint, json).await.map(|()| 0),
        RelayCommand::Drain { sink, timeout, still, endpoint, json } => {
            drain(sink, timeout, still, &endpoint, json).await
        }
    }
}

async fn pause(request: PauseRequest, endpoint: &EndpointArgs, as_json: bool) -> anyhow::Result<()> {
    let (mut client, target) = client::relay(endpoint.endpoint.as_deref(), endpoint)?;
    let sink = request.sink.clone();
    let answer = client.pause(request).await.map_err(|status| target.explain(&status))?.into_inner();
    let pause = answer.pause.unwrap_or_default();
    let mut out = Out::new();
    if as_json {
        out.json(&json!({"sink": sink, "changed": answer.changed, "pause": pause_as_json(&pause)}))?;
    } else if answer.changed {
        out.line(format_args!("{sink} is paused: `waybill relay resume {sink}` lets it go on"))?;
    } else {
        out.line(format_args!("{sink} was paused already, {}", by_whom(&pause)))?;
    }
    out.flush()
}

async fn resume(sink: Sink, endpoint: &EndpointArgs, as_json: bool) -> anyhow::Result<()> {
    let (mut client, target) = client::relay(endpoint.endpoint.as_deref(), endpoint)?;
    let sink = sink.as_str();
    let request = ResumeRequest { sink: sink.to_owned(), paused_by: String::new() };
    let answer = client.resume(request).await.map_err(|status| target.explain(&status))?.into_inner();
    let mut out = Out::new();
    match answer.pause {
        pause if as_json => {
            out.json(&json!({"sink": sink, "changed": pause.is_some(), "pause": pause.as_ref().map(pause_as_json)}))?;
        }
        Some(pause) => out.line(format_args!("{sink} goes on; it was paused {}", by_whom(&pause)))?,
        None => out.line(format_args!("{sink} was not paused"))?,
    }
    out.flush()
}

async fn drain(
    sink: Sink,
    timeout: Duration,
    still: bool,
    endpoint: &EndpointArgs,
    as_json: bool,
) -> anyhow::Result<u8> {
    let (mut client, target) = client::relay(endpoint.endpoint.as_deref(), endpoint)?;
    let sink = sink.as_str();
    // Beyond what a Duration of the wire holds is beyond what the service takes.
    let seconds = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
    let timeout = Some(prost_types::Duration { seconds, nanos: 0 });
    let request = DrainRequest { sink: sink.to_owned(), timeout, until_still: still };
    let stream = client.drain(request).await.map_err(|status| target.explain(&status))?.into_inner();
    let mut warned = false;
    let describe = |left: &DrainResponse| {
        if let Some(pause) = left.pause.as_ref().filter(|_| !warned && !still && !left.drained) {
            warned = true;
            eprintln!("{sink} is paused {}: nothing moves until `waybill relay resume {sink}`", by_whom(pause));
        }
        what_is_left(left)
    };
    let (last, broken) = slow::last(stream, describe).await;
    if let Some(status) = broken {
        return Err(target.explain(&status));
    }
    let last = last.unwrap_or_default();
    let mut out = Out::new();
    if as_json {
        out.json(&as_json_object(sink, &last))?;
    } else {
        let outcome = match (last.drained, last.still) {
            (true, _) => "drained",
            (false, true) => "is paused, and nothing is under way",
            (false, false) => "not drained in time",
        };
        out.line(format_args!("{sink} {outcome}: {}", what_is_left(&last)))?;
    }
    out.flush()?;
    if last.dead_letter_count > 0 {
        eprintln!("hint: `waybill dlq ls --sink {sink}` says why keys were given up");
    }
    Ok(if last.drained || still && last.still { 0 } else { exit::FAILED })
}

fn what_is_left(left: &DrainResponse) -> String {
    let count = |number: i64| text::count(number.unsigned_abs());
    let more = if left.lag_rows_capped { "+" } else { "" };
    format!(
        "{}{more} rows to confirm, {} keys to retry, {} dead letters",
        count(left.lag_rows),
        count(left.retry_count),
        count(left.dead_letter_count)
    )
}

fn as_json_object(sink: &str, left: &DrainResponse) -> Value {
    json!({
        "sink": sink,
        "drained": left.drained,
        "still": left.still,
        "lag_rows": left.lag_rows,
        "lag_rows_capped": left.lag_rows_capped,
        "retry_count": left.retry_count,
        "dead_letter_count": left.dead_letter_count,
        "pause": left.pause.as_ref().map(pause_as_json),
    })
}

/// Says by whom, when and why a sink was paused.
pub(super) fn by_whom(pause: &Pause) -> String {
    let time = pause.pause_time.as_ref().map(values::time).unwrap_or_default();
    let reason = if pause.reason.is_empty() { String::new() } else { format!(" ({})", text::one_line(&pause.reason)) };
    let until = pause.expire_time.as_ref().map(|at| format!(" until {}", values::time(at))).unwrap_or_default();
    format!("by {} since {time}{until}{reason}", text::one_line(&pause.paused_by))
}

/// Writes a pause as JSON.
pub(super) fn pause_as_json(pause: &Pause) -> Value {
    json!({
        "paused_by": pause.paused_by,
        "reason": pause.reason,
        "pause_time": pause.pause_time.as_ref().map(values::time),
        "expire_time": pause.expire_time.as_ref().map(values::time),
    })
}

/// Returns who runs this, and where.
pub(super) fn myself() -> String {
    let user = ["USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    let user = user.or_else(|| nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten().map(|user| user.name));
    let host = std::process::Command::new("uname").arg("-n").output();
    let host = host.ok().and_then(|output| String::from_utf8(output.stdout).ok());
    let known = |name: Option<String>, else_: &str| {
        name.map(|name| text::one_line(&name)).filter(|name| !name.is_empty()).unwrap_or_else(|| else_.to_owned())
    };
    let mut name = format!("{}@{}", known(user, "somebody"), known(host, "somewhere"));
    while name.len() > NAME_BYTES_MAX {
        name.pop();
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_pauses_has_a_name() {
        let name = myself();
        assert!(name.contains('@') && name.len() <= NAME_BYTES_MAX, "{name}");
    }

    #[test]
    fn a_reason_cannot_colour_the_terminal() {
        let pause =
            Pause { paused_by: "ada@\u{1b}[31mhost".to_owned(), reason: "disk\nfull".to_owned(), ..Pause::default() };
        assert_eq!(by_whom(&pause), "by ada@[31mhost since  (disk full)");
    }

    #[test]
    fn what_is_left_is_counted() {
        let left =
            DrainResponse { lag_rows: 100_000, lag_rows_capped: true, retry_count: 2, ..DrainResponse::default() };
        assert_eq!(what_is_left(&left), "100,000+ rows to confirm, 2 keys to retry, 0 dead letters");
    }
}
