//! What became of each passage of a job.

use std::collections::HashMap;
use std::fmt::Write as _;

use console::style;
use serde_json::{Value, json};
use waybill_api::extraction::v1::{EntitiesState, ExtractionRequest, ListRequestsRequest, RequestState as WireState};

use super::View;
use crate::cli::RequestState;
use crate::out::Out;
use crate::{text, values};

impl View {
    /// Lists at most `--limit` requests of a job.
    pub(super) async fn requests(mut self, job_id: String, state: Option<RequestState>) -> anyhow::Result<()> {
        let request = ListRequestsRequest {
            project: self.project,
            job_id,
            chunk_id: String::new(),
            state: state.map_or(WireState::Unspecified, wire).into(),
            page_size: self.limit.into(),
            page_token: String::new(),
        };
        let page = self.client.list_requests(request).await.map_err(|status| self.target.explain(&status))?;
        let page = page.into_inner();
        let mut out = Out::new();
        for request in &page.requests {
            if self.as_json {
                out.json(&as_json(request))?;
            } else {
                out.text(&lines(request))?;
            }
        }
        out.flush()?;
        if page.requests.is_empty() {
            // Not a result, so not for stdout.
            eprintln!("no such requests");
        } else if !page.next_page_token.is_empty() {
            eprintln!("there are more: --limit shows more than {}", self.limit);
        }
        Ok(())
    }
}

const fn wire(state: RequestState) -> WireState {
    match state {
        RequestState::Pending => WireState::Pending,
        RequestState::Queued => WireState::Queued,
        RequestState::Running => WireState::Running,
        RequestState::Done => WireState::Done,
        RequestState::Dead => WireState::Dead,
        RequestState::Cancelled => WireState::Cancelled,
    }
}

fn lines(request: &ExtractionRequest) -> String {
    let mut lines = String::new();
    // Writing to a String can't fail.
    let _ = writeln!(
        lines,
        "{}  {:<9}  {} facts{}, entities {}{}  {}",
        request.chunk_id,
        state(request.state()),
        text::count(request.fact_count.unsigned_abs()),
        dropped(&request.dropped_facts),
        entities(request.entities_state()),
        dropped(&request.dropped_entities),
        style(text::one_line(&request.source_uri)).dim(),
    );
    if !request.last_error.is_empty() {
        let attempts = if request.attempts == 1 { "1 attempt" } else { &format!("{} attempts", request.attempts) };
        let error = text::one_line(&request.last_error);
        let _ = writeln!(lines, "    {attempts}, {}: {error}", request.last_error_class);
    }
    lines
}

/// Why something is missing: " (2 dropped: too_long 2)". Empty if nothing is.
fn dropped(reasons: &HashMap<String, i64>) -> String {
    if reasons.is_empty() {
        return String::new();
    }
    let mut named: Vec<_> = reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    named.sort();
    format!(" ({} dropped: {})", reasons.values().sum::<i64>(), named.join(", "))
}

fn as_json(request: &ExtractionRequest) -> Value {
    json!({
        "id": request.id,
        "job_id": request.job_id,
        "chunk_id": request.chunk_id,
        "uri": request.source_uri,
        "state": state(request.state()),
        "attempts": request.attempts,
        "last_error": request.last_error,
        "last_error_class": request.last_error_class,
        "model": request.model,
        "prompt_tokens": request.prompt_tokens,
        "completion_tokens": request.completion_tokens,
        "cost": request.cost,
        "fact_count": request.fact_count,
        "dropped_facts": request.dropped_facts,
        "entities_state": entities(request.entities_state()),
        "dropped_entities": request.dropped_entities,
        "create_time": request.create_time.as_ref().map(values::time),
        "update_time": request.update_time.as_ref().map(values::time),
    })
}

const fn state(state: WireState) -> &'static str {
    match state {
        WireState::Unspecified => "unknown",
        WireState::Pending => "pending",
        WireState::Queued => "queued",
        WireState::Running => "running",
        WireState::Done => "done",
        WireState::Dead => "dead",
        WireState::Cancelled => "cancelled",
    }
}

const fn entities(state: EntitiesState) -> &'static str {
    match state {
        EntitiesState::Unspecified => "unknown",
        EntitiesState::None => "none",
        EntitiesState::Partial => "partial",
        EntitiesState::Complete => "complete",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_what_is_missing_and_why() {
        let request = ExtractionRequest {
            chunk_id: "c1".to_owned(),
            state: WireState::Done.into(),
            fact_count: 3,
            dropped_facts: [("too_long".to_owned(), 1), ("quote_not_found".to_owned(), 2)].into(),
            entities_state: EntitiesState::Partial.into(),
            dropped_entities: [("unknown_type".to_owned(), 1)].into(),
            attempts: 1,
            last_error: "no\nanswer".to_owned(),
            last_error_class: "transient".to_owned(),
            ..ExtractionRequest::default()
        };
        let shown = lines(&request);
        for part in [
            "done       3 facts (3 dropped: quote_not_found 2, too_long 1), entities partial (1 dropped: unknown_type 1)",
            "1 attempt, transient: no answer",
        ] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
    }
}
