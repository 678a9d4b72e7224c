//! Checks of requests. Each failure names the field and what would be right.

use tonic::Status;
use waybill_api::common::v1::Kind as ProtoKind;
use waybill_api::embedding::v1::{EmbedRequest, Purpose as ProtoPurpose, SearchMode, SearchRequest};
use waybill_domain::{FreshnessToken, InvalidToken, Kind, ProjectId, ProjectName};
use waybill_models::Purpose;
use waybill_runtime::status::invalid_argument;
use waybill_vectors::Mode;

use super::json;
use crate::limits::{
    DEFAULT_HITS, MAX_HITS, MAX_METADATA_FILTERS, MAX_QUERY_BYTES, MAX_SOURCE_URIS, MAX_TEXT_BYTES, MAX_TEXTS,
    MAX_TOKENS, MAX_URI_BYTES,
};
use crate::search::Search;

/// Checks everything in an embedding request but the model's name.
pub(super) fn embed(request: &EmbedRequest) -> Result<Purpose, Status> {
    let count = request.texts.len();
    if !(1..=MAX_TEXTS).contains(&count) {
        return Err(invalid_argument("texts", format!("has {count} entries, send 1 to {MAX_TEXTS}")));
    }
    for (place, text) in request.texts.iter().enumerate() {
        let bytes = text.len();
        if !(1..=MAX_TEXT_BYTES).contains(&bytes) {
            return Err(invalid_argument(
                format!("texts[{place}]"),
                format!("has {bytes} bytes, send 1 to {MAX_TEXT_BYTES}"),
            ));
        }
    }
    match ProtoPurpose::try_from(request.purpose) {
        Ok(ProtoPurpose::Document) => Ok(Purpose::Document),
        Ok(ProtoPurpose::Query) => Ok(Purpose::Query),
        Ok(ProtoPurpose::Unspecified) => {
            Err(invalid_argument("purpose", "is missing, send PURPOSE_DOCUMENT or PURPOSE_QUERY"))
        }
        Err(_) => Err(invalid_argument(
            "purpose",
            format!("{} is none, send PURPOSE_DOCUMENT or PURPOSE_QUERY", request.purpose),
        )),
    }
}

/// Checks a search.
pub(super) fn search(request: SearchRequest) -> Result<Search, Status> {
    let project: ProjectName = request
        .project
        .parse()
        .map_err(|error: waybill_domain::InvalidName| invalid_argument("project", error.to_string()))?;
    let bytes = request.query.len();
    if bytes > MAX_QUERY_BYTES {
        return Err(invalid_argument("query", format!("has {bytes} bytes, send 1 to {MAX_QUERY_BYTES}")));
    }
    if request.query.trim().is_empty() {
        return Err(invalid_argument("query", "is empty, say what to search for"));
    }
    if request.score_threshold.is_some_and(f32::is_nan) {
        return Err(invalid_argument("score_threshold", "is not a number"));
    }
    let at_least_as_fresh = tokens(&request.at_least_as_fresh, &project)?;
    Ok(Search {
        project,
        mode: mode(request.mode)?,
        limit: limit(request.limit)?,
        kinds: kinds(&request.kinds)?,
        source_uris: source_uris(request.source_uris)?,
        metadata: metadata(request.metadata)?,
        at_least_as_fresh,
        score_threshold: request.score_threshold,
        query: request.query,
    })
}

fn mode(mode: i32) -> Result<Mode, Status> {
    match SearchMode::try_from(mode) {
        Ok(SearchMode::Unspecified | SearchMode::Hybrid) => Ok(Mode::Hybrid),
        Ok(SearchMode::Dense) => Ok(Mode::Dense),
        Ok(SearchMode::Lexical) => Ok(Mode::Lexical),
        Err(_) => Err(invalid_argument(
            "mode",
            format!("{mode} is none, send SEARCH_MODE_HYBRID, SEARCH_MODE_DENSE or SEARCH_MODE_LEXICAL"),
        )),
    }
}

fn limit(limit: i32) -> Result<usize, Status> {
    match usize::try_from(limit) {
        Ok(0) => Ok(DEFAULT_HITS),
        Ok(limit @ 1..=MAX_HITS) => Ok(limit),
        _ => Err(invalid_argument("limit", format!("is {limit}, send 1 to {MAX_HITS}, or 0 for {DEFAULT_HITS}"))),
    }
}

fn kinds(kinds: &[i32]) -> Result<Vec<Kind>, Status> {
    let mut known = Vec::new();
    for (place, &kind) in kinds.iter().enumerate() {
        let kind = match ProtoKind::try_from(kind) {
            Ok(ProtoKind::Chunk) => Kind::Chunk,
            Ok(ProtoKind::Extraction) => Kind::Extraction,
            Ok(ProtoKind::Entity) => Kind::Entity,
            Ok(ProtoKind::Unspecified) | Err(_) => {
                let description = format!("{kind} is no kind, send KIND_CHUNK, KIND_EXTRACTION or KIND_ENTITY");
                return Err(invalid_argument(format!("kinds[{place}]"), description));
            }
        };
        // So that a request that repeats itself makes no long filter.
        if !known.contains(&kind) {
            known.push(kind);
        }
    }
    Ok(known)
}

fn source_uris(uris: Vec<String>) -> Result<Vec<String>, Status> {
    if uris.len() > MAX_SOURCE_URIS {
        return Err(invalid_argument(
            "source_uris",
            format!("has {} entries, send at most {MAX_SOURCE_URIS}", uris.len()),
        ));
    }
    for (place, uri) in uris.iter().enumerate() {
        let bytes = uri.len();
        if !(1..=MAX_URI_BYTES).contains(&bytes) {
            return Err(invalid_argument(
                format!("source_uris[{place}]"),
                format!("has {bytes} bytes, a uri has 1 to {MAX_URI_BYTES}"),
            ));
        }
    }
    Ok(uris)
}

fn tokens(tokens: &[String], project: &ProjectName) -> Result<Vec<FreshnessToken>, Status> {
    if tokens.len() > MAX_TOKENS {
        return Err(invalid_argument(
            "at_least_as_fresh",
            format!(
                "has {} entries, send at most {MAX_TOKENS}: of several writes to a source the last is enough",
                tokens.len()
            ),
        ));
    }
    let id = ProjectId::derive(project);
    tokens
        .iter()
        .enumerate()
        .map(|(place, text)| {
            let wrong = |description: String| invalid_argument(format!("at_least_as_fresh[{place}]"), description);
            let token: FreshnessToken = text.parse().map_err(|error: InvalidToken| wrong(error.to_string()))?;
            if token.project == id {
                Ok(token)
            } else {
                Err(wrong(format!("is a token of another project, send one of a write to {:?}", project.as_str())))
            }
        })
        .collect()
}

fn metadata(filter: Option<prost_types::Struct>) -> Result<serde_json::Map<String, serde_json::Value>, Status> {
    let fields = filter.map(|filter| filter.fields).unwrap_or_default();
    if fields.len() > MAX_METADATA_FILTERS {
        return Err(invalid_argument(
            "metadata",
            format!("has {} keys, send at most {MAX_METADATA_FILTERS}", fields.len()),
        ));
    }
    fields
        .into_iter()
        .map(|(key, value)| {
            if key.is_empty() || key.contains('"') {
                return Err(invalid_argument("metadata", format!("key {key:?} is empty or holds a quotation mark")));
            }
            let field = format!("metadata[{key:?}]");
            match json::scalar(&value) {
                Some(scalar) => Ok((key, scalar)),
                None => Err(invalid_argument(field, "is no string, finite number or bool")),
            }
        })
        .collect()
}
