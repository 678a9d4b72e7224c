//! `waybill facts`.

use console::style;
use serde_json::{Value, json};
use waybill_api::extraction::v1::{
    Entity, Extraction, ListEntitiesRequest, ListExtractionsRequest, RejectExtractionsRequest, RejectFilter,
};

use crate::cli::FactsArgs;
use crate::client;
use crate::out::Out;
use crate::{text, values};

/// The most a page may hold.
const PAGE: u32 = 1_000;

const INDENT: &str = "    ";

/// Runs the command.
pub(crate) async fn run(args: FactsArgs) -> anyhow::Result<()> {
    if args.reject {
        return reject(&args).await;
    }
    let listed = if args.entities { entities(&args).await? } else { facts(&args).await? };
    match listed {
        // Not a result, so not for stdout.
        Listed::Nothing => eprintln!("{}", why_nothing(&args)),
        Listed::Some => eprintln!("there are more: --limit shows more than {}", args.limit),
        Listed::All => {}
    }
    Ok(())
}

/// How much of what there is was shown.
enum Listed {
    Nothing,
    Some,
    All,
}

impl Listed {
    const fn of(shown: u32, next_page_token: &str) -> Self {
        match (shown, next_page_token.is_empty()) {
            (0, _) => Self::Nothing,
            (_, true) => Self::All,
            (_, false) => Self::Some,
        }
    }
}

async fn facts(args: &FactsArgs) -> anyhow::Result<Listed> {
    let (mut client, target) = client::extraction(&args.endpoint)?;
    let mut out = Out::new();
    let width = text::width();
    let mut shown = 0;
    let mut page_token = String::new();
    loop {
        let request = ListExtractionsRequest {
            project: args.project.project.clone(),
            chunk_id: args.chunk.clone().unwrap_or_default(),
            job_id: args.job.clone().unwrap_or_default(),
            entity: args.entity.clone().unwrap_or_default(),
            page_size: page_size(args, shown),
            page_token,
            uri_prefix: args.prefix.clone().unwrap_or_default(),
            r#type: args.kind.clone().unwrap_or_default(),
            confidence_below: args.below,
        };
        let page = client.list_extractions(request).await.map_err(|status| target.explain(&status))?;
        let page = page.into_inner();
        for fact in page.extractions {
            if args.json {
                out.json(&fact_as_json(fact))?;
            } else {
                if shown > 0 {
                    out.line("")?;
                }
                print_fact(&mut out, &fact, width)?;
            }
            shown += 1;
        }
        page_token = page.next_page_token;
        if page_token.is_empty() || shown >= args.limit {
            break;
        }
    }
    out.flush()?;
    Ok(Listed::of(shown, &page_token))
}

async fn reject(args: &FactsArgs) -> anyhow::Result<()> {
    let (mut client, target) = client::extraction(&args.endpoint)?;
    let filter = RejectFilter {
        chunk_id: args.chunk.clone().unwrap_or_default(),
        uri_prefix: args.prefix.clone().unwrap_or_default(),
        job_id: args.job.clone().unwrap_or_default(),
        r#type: args.kind.clone().unwrap_or_default(),
        entity: args.entity.clone().unwrap_or_default(),
        confidence_below: args.below,
        all: args.all,
    };
    let project = args.project.project.clone();
    let request = RejectExtractionsRequest { project, ids: Vec::new(), filter: Some(filter) };
    let rejected = client.reject_extractions(request).await.map_err(|status| target.explain(&status))?;
    let count = rejected.into_inner().rejected_count;
    let mut out = Out::new();
    if args.json {
        out.json(&json!({ "rejected_count": count }))?;
    } else {
        out.line(format_args!("{} facts rejected", text::count(count.unsigned_abs())))?;
    }
    out.flush()
}

async fn entities(args: &FactsArgs) -> anyhow::Result<Listed> {
    let (mut client, target) = client::extraction(&args.endpoint)?;
    let mut out = Out::new();
    let mut shown = 0;
    let mut page_token = String::new();
    loop {
        let request = ListEntitiesRequest {
            project: args.project.project.clone(),
            page_size: page_size(args, shown),
            page_token,
        };
        let page = client.list_entities(request).await.map_err(|status| target.explain(&status))?;
        let page = page.into_inner();
        for entity in page.entities {
            if args.json {
                out.json(&entity_as_json(entity))?;
            } else {
                out.line(entity_line(&entity))?;
            }
            shown += 1;
        }
        page_token = page.next_page_token;
        if page_token.is_empty() || shown >= args.limit {
            break;
        }
    }
    out.flush()?;
    Ok(Listed::of(shown, &page_token))
}

fn page_size(args: &FactsArgs, shown: u32) -> i32 {
    i32::try_from(args.limit.saturating_sub(shown).min(PAGE)).unwrap_or(i32::MAX)
}

fn print_fact(out: &mut Out, fact: &Extraction, width: usize) -> anyhow::Result<()> {
    for line in text::wrap(&text::one_line(&fact.statement), width) {
        out.line(style(line).bold())?;
    }
    let quote = format!("“{}”", text::one_line(&fact.quote));
    for line in text::wrap(&quote, width - INDENT.len()) {
        out.line(format_args!("{INDENT}{line}"))?;
    }
    out.line(format_args!("{INDENT}{}", style(place(fact)).dim()))
}

fn place(fact: &Extraction) -> String {
    format!(
        "{}  bytes {}–{}  confidence {:.2}  {}",
        text::one_line(&fact.source_uri),
        fact.quote_start,
        fact.quote_end,
        fact.confidence,
        text::one_line(&fact.r#type),
    )
}

fn entity_line(entity: &Entity) -> String {
    let count = text::count(entity.fact_count.unsigned_abs());
    let noun = if entity.fact_count == 1 { "fact " } else { "facts" };
    let aliases: Vec<_> = entity.aliases.iter().map(|alias| text::one_line(alias)).collect();
    format!(
        "{count:>9} {noun}  {:<16}  {}  {}",
        text::one_line(&entity.r#type),
        text::one_line(&entity.canonical_name),
        style(aliases.join(", ")).dim(),
    )
}

fn fact_as_json(fact: Extraction) -> Value {
    json!({
        "id": fact.id,
        "type": fact.r#type,
        "statement": fact.statement,
        "subject": fact.subject,
        "predicate": fact.predicate,
        "object": fact.object,
        "confidence": fact.confidence,
        "quote": fact.quote,
        "quote_start": fact.quote_start,
        "quote_end": fact.quote_end,
        "chunk_id": fact.chunk_id,
        "uri": fact.source_uri,
        "job_id": fact.job_id,
        "model": fact.model,
        "create_time": fact.create_time.as_ref().map(values::time),
    })
}

fn entity_as_json(entity: Entity) -> Value {
    json!({
        "id": entity.id,
        "type": entity.r#type,
        "canonical_name": entity.canonical_name,
        "aliases": entity.aliases,
        "fact_count": entity.fact_count,
    })
}

fn why_nothing(args: &FactsArgs) -> &'static str {
    if args.entities {
        "no entities yet: `waybill extract` finds some"
    } else if [&args.entity, &args.job, &args.chunk, &args.prefix, &args.kind].iter().any(|filter| filter.is_some())
        || args.below.is_some()
    {
        "no such facts: try it with less conditions (`waybill facts --entities` lists entities)"
    } else {
        "no facts yet: `waybill extract` finds some"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fact_says_where_its_words_stand() {
        let fact = Extraction {
            r#type: "definition".to_owned(),
            confidence: 0.5,
            quote_start: 7,
            quote_end: 42,
            source_uri: "a\u{1b}[31m.md".to_owned(),
            ..Extraction::default()
        };
        assert_eq!(place(&fact), "a[31m.md  bytes 7–42  confidence 0.50  definition");
    }

    #[test]
    fn an_entity_lists_its_spellings() {
        let entity = Entity {
            r#type: "person".to_owned(),
            canonical_name: "ada lovelace".to_owned(),
            aliases: vec!["Ada Lovelace".to_owned(), "ADA LOVELACE".to_owned()],
            fact_count: 1_000,
            ..Entity::default()
        };
        let line = entity_line(&entity);
        for part in ["1,000 facts", "person", "ada lovelace", "Ada Lovelace, ADA LOVELACE"] {
            assert!(line.contains(part), "{part} in {line}");
        }
    }
}
