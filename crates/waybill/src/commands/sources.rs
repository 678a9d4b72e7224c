//! `waybill sources`.

use serde_json::{Value, json};
use waybill_api::ingestion::v1::{
    DeleteSourceRequest, GetSourceRequest, ListSourcesRequest, MediaType, Source, SourceState,
};

use crate::cli::{EndpointArgs, SourcesCommand};
use crate::client;
use crate::out::Out;
use crate::{text, values};

/// The most a page may hold.
const PAGE: u32 = 1_000;

/// Runs the command.
pub(crate) async fn run(command: SourcesCommand) -> anyhow::Result<()> {
    match command {
        SourcesCommand::Ls { project, endpoint, prefix, limit, json } => {
            let view = List { project: project.project, prefix, limit, as_json: json };
            list(view, &endpoint).await
        }
        SourcesCommand::Get { uri, project, endpoint, text, json } => {
            let form = match (text, json) {
                (true, _) => Form::Text,
                (false, true) => Form::Json,
                (false, false) => Form::Lines,
            };
            get(project.project, uri, form, &endpoint).await
        }
        SourcesCommand::Delete { uri, project, endpoint } => delete(project.project, uri, &endpoint).await,
    }
}

struct List {
    project: String,
    prefix: String,
    limit: u32,
    as_json: bool,
}

enum Form {
    Lines,
    Text,
    Json,
}

async fn list(view: List, endpoint: &EndpointArgs) -> anyhow::Result<()> {
    let (mut client, target) = client::ingestion(endpoint)?;
    let mut out = Out::new();
    let mut left = view.limit;
    let mut page_token = String::new();
    loop {
        let request = ListSourcesRequest {
            project: view.project.clone(),
            page_size: i32::try_from(left.min(PAGE)).unwrap_or(i32::MAX),
            page_token,
            uri_prefix: view.prefix.clone(),
            state: SourceState::Unspecified.into(),
        };
        let page = client.list_sources(request).await.map_err(|status| target.explain(&status))?;
        let page = page.into_inner();
        left = left.saturating_sub(u32::try_from(page.sources.len()).unwrap_or(u32::MAX));
        for source in page.sources {
            if view.as_json {
                out.json(&as_json(source))?;
            } else {
                out.line(format_args!(
                    "{:<9} {:>5} chunks  {}  {}",
                    state(source.state()),
                    source.chunk_count,
                    text::one_line(&source.uri),
                    console::style(text::one_line(&source.title)).dim()
                ))?;
            }
        }
        page_token = page.next_page_token;
        if page_token.is_empty() || left == 0 {
            break;
        }
    }
    out.flush()?;
    if !page_token.is_empty() {
        eprintln!("there are more: --limit shows more than {}", view.limit);
    }
    Ok(())
}

async fn get(project: String, uri: String, form: Form, endpoint: &EndpointArgs) -> anyhow::Result<()> {
    let (mut client, target) = client::ingestion(endpoint)?;
    let request = GetSourceRequest { project, uri, with_text: matches!(form, Form::Text) };
    let source = client.get_source(request).await.map_err(|status| target.explain(&status))?;
    let source = source.into_inner();
    let mut out = Out::new();
    match form {
        Form::Text => out.text(&source.text.unwrap_or_default())?,
        Form::Json => out.json(&as_json(source))?,
        Form::Lines => print(&mut out, source)?,
    }
    out.flush()
}

async fn delete(project: String, uri: String, endpoint: &EndpointArgs) -> anyhow::Result<()> {
    let (mut client, target) = client::ingestion(endpoint)?;
    let request = DeleteSourceRequest { project, uri: uri.clone(), if_version: None };
    let deleted = client.delete_source(request).await.map_err(|status| target.explain(&status))?;
    let mut out = Out::new();
    out.line(format_args!("deleted {uri}, {} chunks", deleted.into_inner().deleted_chunk_count))?;
    out.flush()
}

fn print(out: &mut Out, source: Source) -> anyhow::Result<()> {
    let mut row = |name: &str, value: &str| out.line(format_args!("{name:<10} {value}"));
    row("uri", &text::one_line(&source.uri))?;
    row("title", &text::one_line(&source.title))?;
    row("project", &source.project)?;
    row("id", &source.id)?;
    row("state", state(source.state()))?;
    row("media type", media_type(source.media_type()))?;
    row("version", &source.version.to_string())?;
    row("chunks", &source.chunk_count.to_string())?;
    row("sha256", &source.content_sha256)?;
    if !source.job_id.is_empty() {
        row("job", &source.job_id)?;
    }
    row("created", &source.create_time.as_ref().map(values::time).unwrap_or_default())?;
    row("updated", &source.update_time.as_ref().map(values::time).unwrap_or_default())?;
    let metadata = Value::Object(source.metadata.map(values::from_struct).unwrap_or_default());
    row("metadata", &text::one_line(&metadata.to_string()))
}

fn as_json(source: Source) -> Value {
    json!({
        "id": source.id,
        "project": source.project,
        "uri": source.uri,
        "title": source.title,
        "media_type": media_type(source.media_type()),
        "state": state(source.state()),
        "version": source.version,
        "chunk_count": source.chunk_count,
        "content_sha256": source.content_sha256,
        "job_id": source.job_id,
        "create_time": source.create_time.as_ref().map(values::time),
        "update_time": source.update_time.as_ref().map(values::time),
        "metadata": source.metadata.map(values::from_struct).unwrap_or_default(),
    })
}

const fn state(state: SourceState) -> &'static str {
    match state {
        SourceState::Unspecified => "unknown",
        SourceState::Received => "received",
        SourceState::Chunked => "chunked",
        SourceState::Extracting => "extracting",
        SourceState::Indexed => "indexed",
        SourceState::Failed => "failed",
    }
}

const fn media_type(media_type: MediaType) -> &'static str {
    match media_type {
        MediaType::Unspecified => "unknown",
        MediaType::Text => "text",
        MediaType::Markdown => "markdown",
        MediaType::Html => "html",
    }
}
