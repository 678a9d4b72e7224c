//! `waybill search`.

use std::time::Duration;

use anyhow::ensure;
use console::{StyledObject, style};
use serde_json::{Value, json};
use tokio::time::Instant;
use waybill_api::common::v1::Kind;
use waybill_api::embedding::v1::{Hit, SearchMode, SearchRequest, SearchResponse};

use crate::cli::{HitKind, Mode, SearchArgs};
use crate::client;
use crate::out::Out;
use crate::{text, values};

/// A search embeds one query and asks one store: if that takes longer, something hangs.
const DEADLINE: Duration = Duration::from_secs(30);

/// How many lines of a passage are shown, unless it is asked for whole.
const SNIPPET_LINES: usize = 3;

const INDENT: &str = "    ";

/// Runs the command.
pub(crate) async fn run(args: SearchArgs) -> anyhow::Result<()> {
    let (mut client, target) = client::search(&args.endpoint)?;
    let query = args.query.join(" ");
    let metadata = values::from_pairs(&args.filter);
    let mut request = tonic::Request::new(SearchRequest {
        project: args.project.project.clone(),
        query: query.clone(),
        mode: mode(args.mode).into(),
        limit: args.limit.into(),
        score_threshold: args.min_score,
        kinds: args.kind.iter().map(|kind| kind_of(*kind).into()).collect(),
        source_uris: args.source.clone(),
        metadata: (!metadata.is_empty()).then(|| values::to_struct(metadata)),
        at_least_as_fresh: args.at_least_as_fresh.clone(),
    });
    request.set_timeout(DEADLINE);

    let begun = Instant::now();
    let response = client.search(request).await.map_err(|status| target.explain(&status))?;
    let took = begun.elapsed();
    let response = response.into_inner();
    let is_empty = response.hits.is_empty();

    let mut out = Out::new();
    if args.json {
        out.json(&as_json(response, &query, took))?;
    } else {
        print(&mut out, &args, &query, response, took)?;
    }
    out.flush()?;
    ensure!(!(args.require_hit && is_empty), "the search finds nothing, and --require-hit is given");
    Ok(())
}

const fn kind_of(kind: HitKind) -> Kind {
    match kind {
        HitKind::Passage => Kind::Chunk,
        HitKind::Fact => Kind::Extraction,
        HitKind::Entity => Kind::Entity,
    }
}

const fn mode(mode: Mode) -> SearchMode {
    match mode {
        Mode::Hybrid => SearchMode::Hybrid,
        Mode::Dense => SearchMode::Dense,
        Mode::Lexical => SearchMode::Lexical,
    }
}

fn as_json(response: SearchResponse, query: &str, took: Duration) -> Value {
    let hits: Vec<_> = response.hits.into_iter().map(hit_as_json).collect();
    json!({
        "query": query,
        "model": response.model,
        "stale_count": response.stale_count,
        "took_ms": u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        "hits": hits,
    })
}

const fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Chunk => "passage",
        Kind::Extraction => "fact",
        Kind::Entity => "entity",
        Kind::Unspecified => "",
    }
}

fn hit_as_json(hit: Hit) -> Value {
    json!({
        "id": hit.id,
        "kind": kind_name(hit.kind()),
        "score": hit.score,
        "uri": hit.source_uri,
        "title": hit.source_title,
        "headings": hit.headings,
        "text": hit.text,
        "quote": hit.quote,
        "metadata": hit.metadata.map(values::from_struct).unwrap_or_default(),
        "start_byte": hit.start_byte,
        "end_byte": hit.end_byte,
        "version": hit.version,
        "source_update_time": hit.source_update_time.as_ref().map(values::time),
    })
}

fn print(
    out: &mut Out,
    args: &SearchArgs,
    query: &str,
    response: SearchResponse,
    took: Duration,
) -> anyhow::Result<()> {
    if response.hits.is_empty() {
        // Not a result, so not for stdout.
        eprintln!("nothing found in project {:?}{}", args.project.project, why_nothing(args, &response));
        return Ok(());
    }
    let width = text::width();
    for (index, hit) in response.hits.iter().enumerate() {
        if index > 0 {
            out.line("")?;
        }
        print_hit(out, index + 1, hit, query, width, args.full)?;
    }
    out.flush()?;
    let count = response.hits.len();
    let hits = if count == 1 { "hit" } else { "hits" };
    eprintln!("\n{}", style(format!("{count} {hits} in {}", text::span(took))).for_stderr().dim());
    if response.stale_count > 0 {
        eprintln!("{}", stale(response.stale_count));
    }
    Ok(())
}

fn print_hit(out: &mut Out, rank: usize, hit: &Hit, query: &str, width: usize, full: bool) -> anyhow::Result<()> {
    let title = text::one_line(&hit.source_title);
    let title = match hit.kind() {
        Kind::Entity => text::one_line(&hit.text),
        _ if title.is_empty() => text::one_line(&hit.source_uri),
        _ => title,
    };
    out.line(format_args!(
        "{} {}  {}",
        style(format!("{rank:>2}.")).dim(),
        style(&title).bold(),
        style(format!("{:.4}", hit.score)).green(),
    ))?;
    if hit.kind() == Kind::Entity {
        return Ok(());
    }
    let headings = headings(hit, &title);
    if !headings.is_empty() {
        let line = console::truncate_str(&headings, width - INDENT.len(), "…").into_owned();
        out.line(format_args!("{INDENT}{}", style(line).cyan()))?;
    }
    let place = format!("{}  bytes {}–{}", text::one_line(&hit.source_uri), hit.start_byte, hit.end_byte);
    out.line(format_args!("{INDENT}{}", style(place).dim()))?;

    if full {
        for line in text::printable(&hit.text).lines() {
            out.line(format_args!("{INDENT}{line}"))?;
        }
        return Ok(());
    }
    let columns = width - INDENT.len();
    let line = text::one_line(&hit.text);
    let piece = text::excerpt(&line, query, SNIPPET_LINES * columns - columns / 4);
    for line in text::wrap(&piece, columns) {
        out.line(format_args!("{INDENT}{}", highlight(&line, query)))?;
    }
    if !hit.quote.is_empty() {
        let quote = console::truncate_str(&text::one_line(&hit.quote), columns - 2, "…").into_owned();
        out.line(format_args!("{INDENT}{}", style(format!("“{quote}”")).dim()))?;
    }
    Ok(())
}

/// Joins the headings above a passage. Many documents repeat their title there, or a
/// heading: once is enough.
fn headings(hit: &Hit, title: &str) -> String {
    let mut headings: Vec<_> = hit.headings.iter().map(|heading| text::one_line(heading)).collect();
    headings.dedup();
    if headings.first().is_some_and(|first| first == title) {
        headings.remove(0);
    }
    headings.join(" › ")
}

/// Makes the words of the query stand out, where colours are on.
fn highlight(line: &str, query: &str) -> String {
    if !console::colors_enabled() {
        return line.to_owned();
    }
    let wanted: Vec<_> = text::words(query).collect();
    let paint = |word: &str| -> StyledObject<String> {
        let bare = word.trim_matches(|char: char| !char.is_alphanumeric()).to_lowercase();
        let styled = style(word.to_owned());
        if wanted.iter().any(|wanted| bare.starts_with(wanted.as_str())) { styled.bold().yellow() } else { styled }
    };
    line.split(' ').map(|word| paint(word).to_string()).collect::<Vec<_>>().join(" ")
}

fn why_nothing(args: &SearchArgs, response: &SearchResponse) -> String {
    if response.stale_count > 0 {
        return format!("; {}", stale(response.stale_count));
    }
    if args.min_score.is_some() || !args.filter.is_empty() || !args.source.is_empty() {
        return ": try it without --filter, --source and --min-score".to_owned();
    }
    ": `waybill status` says whether something is still on its way".to_owned()
}

fn stale(count: i32) -> String {
    format!("{count} more left out: they have just changed and are on their way to the index")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headings_leave_out_what_was_said() {
        let headings_of = |headings: &[&str]| {
            let headings = headings.iter().map(|&heading| heading.to_owned()).collect();
            super::headings(&Hit { headings, ..Hit::default() }, "Manual")
        };
        assert_eq!(headings_of(&["Manual", "Backup", "Backup", "Dumps"]), "Backup › Dumps");
        assert_eq!(headings_of(&["Manual"]), "");
        assert_eq!(headings_of(&["Backup"]), "Backup");
    }
}
