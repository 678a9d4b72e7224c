//! `waybill dlq`: what was given up, and what becomes of it.

use std::fmt::Write as _;

use console::style;
use prost_types::Timestamp;
use serde_json::{Value, json};
use tonic::Code;
use waybill_api::relay::v1::relay_service_client::RelayServiceClient;
use waybill_api::relay::v1::{
    DeadLetter, DeadLetterFilter, DisposeDeadLettersRequest, DisposeDeadLettersResponse, GetDeadLetterRequest,
    ListDeadLettersRequest,
};
use waybill_domain::{Clock, SystemClock};
use waybill_runtime::grpc::Peer;

use crate::ask;
use crate::cli::{DlqCommand, EndpointArgs, LetterFilterArgs, Moment, WhichLetters};
use crate::client::{self, Target};
use crate::exit::Usage;
use crate::out::Out;
use crate::{slow, text, values};

/// The most a page may hold.
const PAGE: u32 = 1_000;

/// The most ids that one call takes.
const IDS: usize = 1_000;

/// Runs the command.
pub(crate) async fn run(command: DlqCommand) -> anyhow::Result<()> {
    match command {
        DlqCommand::Ls { filter, endpoint, limit, json } => list(&filter, &endpoint, limit, json).await,
        DlqCommand::Show { id, endpoint, json } => show(id, &endpoint, json).await,
        DlqCommand::Redrive { which, endpoint, json } => dispose(&which, Disposal::Redrive, &endpoint, json).await,
        DlqCommand::Discard { which, yes, endpoint, json } => {
            dispose(&which, Disposal::Discard { yes }, &endpoint, json).await
        }
    }
}

#[derive(Clone, Copy)]
enum Disposal {
    Redrive,
    Discard { yes: bool },
}

impl Disposal {
    const fn verb(self) -> &'static str {
        match self {
            Self::Redrive => "redrive",
            Self::Discard { .. } => "discard",
        }
    }

    const fn done(self) -> &'static str {
        match self {
            Self::Redrive => "redriven",
            Self::Discard { .. } => "discarded",
        }
    }
}

async fn list(args: &LetterFilterArgs, endpoint: &EndpointArgs, limit: u32, as_json: bool) -> anyhow::Result<()> {
    let filter = filter(args)?;
    let (mut client, target) = client::relay(endpoint.endpoint.as_deref(), endpoint)?;
    let mut out = Out::new();
    let mut left = limit;
    let mut page_token = String::new();
    let mut found = false;
    loop {
        let request = ListDeadLettersRequest {
            filter: Some(filter.clone()),
            page_size: i32::try_from(left.min(PAGE)).unwrap_or(i32::MAX),
            page_token,
        };
        let page = client.list_dead_letters(request).await.map_err(|status| target.explain(&status))?.into_inner();
        left = left.saturating_sub(u32::try_from(page.dead_letters.len()).unwrap_or(u32::MAX));
        for letter in &page.dead_letters {
            if as_json {
                out.json(&letter_as_json(letter))?;
                continue;
            }
            if !found {
                out.line(heading())?;
            }
            found = true;
            out.text(&row(letter))?;
        }
        page_token = page.next_page_token;
        if page_token.is_empty() || left == 0 {
            break;
        }
    }
    out.flush()?;
    if !page_token.is_empty() {
        eprintln!("there may be more: --limit shows more than {limit}");
    }
    if !found && !as_json {
        eprintln!("no dead letters{}", if *args == LetterFilterArgs::default() { "" } else { " like that" });
    }
    Ok(())
}

async fn show(id: String, endpoint: &EndpointArgs, as_json: bool) -> anyhow::Result<()> {
    let (mut client, target) = client::relay(endpoint.endpoint.as_deref(), endpoint)?;
    let letter = client.get_dead_letter(GetDeadLetterRequest { id }).await.map_err(|status| {
        let error = target.explain(&status);
        if status.code() == Code::NotFound {
            return anyhow::anyhow!(
                "{error:#}: its key may have been delivered since\nhint: `waybill dlq ls` lists what there is"
            );
        }
        error
    })?;
    let letter = letter.into_inner();
    let mut out = Out::new();
    if as_json {
        out.json(&letter_as_json(&letter))?;
    } else {
        out.text(&whole(&letter))?;
    }
    out.flush()?;
    if !as_json {
        eprintln!("hint: once the cause is mended, `waybill dlq redrive {}` has it delivered again", letter.id);
    }
    Ok(())
}

async fn dispose(
    which: &WhichLetters,
    disposal: Disposal,
    endpoint: &EndpointArgs,
    as_json: bool,
) -> anyhow::Result<()> {
    if which.ids.is_empty() && !which.all && which.filter == LetterFilterArgs::default() {
        let verb = disposal.verb();
        return Err(Usage(format!(
            "which dead letters? Give ids, a filter such as --sink, or --all: `waybill dlq {verb} --help`"
        ))
        .into());
    }
    let filter = filter(&which.filter)?;
    let (mut client, target) = client::relay(endpoint.endpoint.as_deref(), endpoint)?;
    if let Disposal::Discard { yes: false } = disposal {
        let count = match which.ids.len() {
            0 => matching(&mut client, &target, &filter).await?,
            count => u64::try_from(count).unwrap_or(u64::MAX),
        };
        let question = format!("discard {} dead letters? Nothing delivers them until they change.", text::count(count));
        if count > 0 && !ask::confirm(&question)? {
            eprintln!("nothing discarded");
            return Ok(());
        }
    }
    let mut requests: Vec<DisposeDeadLettersRequest> = which
        .ids
        .chunks(IDS)
        .map(|ids| DisposeDeadLettersRequest { ids: ids.to_vec(), filter: Some(filter.clone()), all: false })
        .collect();
    if requests.is_empty() {
        requests.push(DisposeDeadLettersRequest { ids: Vec::new(), filter: Some(filter), all: which.all });
    }
    let mut count = 0;
    for request in requests {
        let (done, broken) = part(&mut client, &target, request, disposal, count).await?;
        count += done;
        if let Some(error) = broken {
            let (done, verb) = (disposal.done(), disposal.verb());
            return Err(error.context(format!(
                "{} were {done} before it broke off; `waybill dlq {verb}` again does the rest",
                text::count(count)
            )));
        }
    }
    let mut out = Out::new();
    if as_json {
        out.json(&json!({"count": count}))?;
    } else {
        out.line(format_args!("{} {}", text::count(count), disposal.done()))?;
    }
    out.flush()?;
    if count == 0 {
        eprintln!("no such dead letter: `waybill dlq ls` lists what there is");
    }
    Ok(())
}

/// Makes one call. Returns how many letters it took, and what broke it off, if anything did.
async fn part(
    client: &mut RelayServiceClient<Peer>,
    target: &Target,
    request: DisposeDeadLettersRequest,
    disposal: Disposal,
    before: u64,
) -> anyhow::Result<(u64, Option<anyhow::Error>)> {
    let stream = match disposal {
        Disposal::Redrive => client.redrive_dead_letters(request).await,
        Disposal::Discard { .. } => client.discard_dead_letters(request).await,
    };
    let stream = stream.map_err(|status| target.explain(&status))?.into_inner();
    let describe = |so_far: &DisposeDeadLettersResponse| {
        format!("{} {}", text::count(before + so_far.count.unsigned_abs()), disposal.done())
    };
    let (last, broken) = slow::last(stream, describe).await;
    let count = last.map_or(0, |last| last.count.unsigned_abs());
    Ok((count, broken.map(|status| target.explain(&status))))
}

/// Counts the letters that match.
async fn matching(
    client: &mut RelayServiceClient<Peer>,
    target: &Target,
    filter: &DeadLetterFilter,
) -> anyhow::Result<u64> {
    let mut count = 0;
    let mut page_token = String::new();
    loop {
        let page_size = i32::try_from(PAGE).unwrap_or(i32::MAX);
        let request = ListDeadLettersRequest { filter: Some(filter.clone()), page_size, page_token };
        let page = client.list_dead_letters(request).await.map_err(|status| target.explain(&status))?.into_inner();
        count += u64::try_from(page.dead_letters.len()).unwrap_or(u64::MAX);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(count);
        }
    }
}

fn filter(args: &LetterFilterArgs) -> Result<DeadLetterFilter, Usage> {
    let now = SystemClock.now();
    let time = |name: &str, moment: Option<Moment>| match moment {
        None => Ok(None),
        Some(moment) => match moment.at(now) {
            Some(at) => Ok(Some(Timestamp {
                seconds: at.timestamp(),
                nanos: i32::try_from(at.timestamp_subsec_nanos()).unwrap_or(0),
            })),
            None => Err(Usage(format!("--{name} is further back than time goes: give a shorter span"))),
        },
    };
    let owned = |name: Option<&str>| name.unwrap_or_default().to_owned();
    Ok(DeadLetterFilter {
        sink: owned(args.sink.map(crate::cli::Sink::as_str)),
        kind: owned(args.kind.map(crate::cli::LetterKind::as_str)),
        project: owned(args.project.as_deref()),
        error_class: owned(args.class.map(crate::cli::Class::as_str)),
        since: time("since", args.since)?,
        until: time("until", args.until)?,
        text: owned(args.text.as_deref()),
    })
}

fn heading() -> String {
    let heading =
        format!("{:<36}  {:<6}  {:<11}  {:<9}  {:>5}  {:<20}", "ID", "SINK", "KIND", "CLASS", "TRIES", "LAST FAILURE");
    style(heading).bold().to_string()
}

/// Two lines: what it is, and why it was given up.
fn row(letter: &DeadLetter) -> String {
    let failed = letter.last_failure_time.as_ref().map(values::time).unwrap_or_default();
    let why = format!("{}: {}", project(letter), text::one_line(&letter.error));
    let why = text::excerpt(&why, "", text::width().saturating_sub(4));
    format!(
        "{:<36}  {:<6}  {:<11}  {:<9}  {:>5}  {failed:<20}\n    {}\n",
        letter.id,
        letter.sink,
        letter.kind,
        letter.error_class,
        letter.attempts,
        style(why).dim()
    )
}

fn project(letter: &DeadLetter) -> String {
    if letter.project.is_empty() { format!("{} (gone)", letter.project_id) } else { text::one_line(&letter.project) }
}

fn whole(letter: &DeadLetter) -> String {
    let time = |time: &Option<Timestamp>| time.as_ref().map(values::time).unwrap_or_default();
    let lines = [
        ("id", letter.id.clone()),
        ("sink", letter.sink.clone()),
        ("kind", letter.kind.clone()),
        ("key", letter.key.clone()),
        ("project", project(letter)),
        ("class", letter.error_class.clone()),
        ("tries", letter.attempts.to_string()),
        ("first failure", time(&letter.first_failure_time)),
        ("last failure", time(&letter.last_failure_time)),
        ("model", letter.model.clone()),
        ("prompt", letter.prompt_version.clone()),
        ("trace", letter.trace_id.clone()),
        ("error", letter.error.clone()),
        ("answer", letter.excerpt.clone()),
    ];
    let mut whole = String::new();
    for (name, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
        // Writing to a String can't fail.
        let _ = writeln!(whole, "{name:<14} {}", text::printable(value).replace('\n', "\n               "));
    }
    whole
}

fn letter_as_json(letter: &DeadLetter) -> Value {
    json!({
        "id": letter.id,
        "sink": letter.sink,
        "kind": letter.kind,
        "key": letter.key,
        "project_id": letter.project_id,
        "project": letter.project,
        "error": letter.error,
        "error_class": letter.error_class,
        "attempts": letter.attempts,
        "excerpt": letter.excerpt,
        "model": letter.model,
        "prompt_version": letter.prompt_version,
        "trace_id": letter.trace_id,
        "first_failure_time": letter.first_failure_time.as_ref().map(values::time),
        "last_failure_time": letter.last_failure_time.as_ref().map(values::time),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter() -> DeadLetter {
        DeadLetter {
            id: "0c9f3a5b-8d4e-4c61-9f3a-5b1e2d4c6a80".to_owned(),
            sink: "llm".to_owned(),
            kind: "llm_request".to_owned(),
            project_id: "7".to_owned(),
            error: format!("refused\u{1b}[31m {}", "word ".repeat(200)),
            error_class: "permanent".to_owned(),
            attempts: 3,
            ..DeadLetter::default()
        }
    }

    #[test]
    fn a_row_fits_a_terminal() {
        let row = row(&letter());
        assert!(row.contains("7 (gone): refused[31m word"), "{row}");
        for line in row.lines() {
            let width = console::measure_text_width(line);
            assert!(width <= text::width(), "{width}: {line}");
        }
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let whole = whole(&letter());
        assert!(whole.contains("tries          3\n"), "{whole}");
        assert!(!whole.contains("trace"), "{whole}");
        assert!(!whole.contains('\u{1b}'), "{whole}");
    }
}
