//! From what is stored to what is answered.

use std::time::Duration;

use prost_types::{ListValue, Struct, Timestamp, Value as ProtoValue, value::Kind};
use serde_json::{Map, Value};
use waybill_api::ingestion::v1 as proto;
use waybill_domain::{MediaType, ProjectId, ProjectName, PutOutcome, SourceState};
use waybill_storage::{
    projects::Project,
    sources::{PutResult, Source},
};

use crate::acknowledge;

pub(crate) fn project(project: Project, source_count: Option<i64>) -> proto::Project {
    proto::Project {
        id: project.id.to_string(),
        name: project.name,
        create_time: Some(timestamp(project.created_at.timestamp(), project.created_at.timestamp_subsec_nanos())),
        source_count,
    }
}

pub(crate) fn source(source: Source, project: &ProjectName) -> proto::Source {
    let media_type = match source.media_type {
        MediaType::Text => proto::MediaType::Text,
        MediaType::Markdown => proto::MediaType::Markdown,
        MediaType::Html => proto::MediaType::Html,
    };
    let state = match source.state {
        SourceState::Received => proto::SourceState::Received,
        SourceState::Chunked => proto::SourceState::Chunked,
        SourceState::Extracting => proto::SourceState::Extracting,
        SourceState::Indexed => proto::SourceState::Indexed,
        SourceState::Failed => proto::SourceState::Failed,
    };
    proto::Source {
        id: source.id.to_string(),
        project: project.to_string(),
        uri: source.uri,
        title: source.title,
        media_type: media_type.into(),
        metadata: match source.metadata {
            Value::Object(fields) => Some(object(fields)),
            _ => None,
        },
        state: state.into(),
        version: source.version,
        content_sha256: source.content_hash.to_string(),
        chunk_count: source.chunk_count,
        create_time: Some(timestamp(source.created_at.timestamp(), source.created_at.timestamp_subsec_nanos())),
        update_time: Some(timestamp(source.updated_at.timestamp(), source.updated_at.timestamp_subsec_nanos())),
        text: source.text,
        job_id: source.job_id.map(|id| id.to_string()).unwrap_or_default(),
    }
}

/// `backlog`: the rows, and how long to wait before the next put.
pub(crate) fn put(project: ProjectId, result: PutResult, backlog: (u64, Option<Duration>)) -> proto::PutSourceResponse {
    let outcome = match result.outcome {
        PutOutcome::Created => proto::PutOutcome::Created,
        PutOutcome::Changed => proto::PutOutcome::Changed,
        PutOutcome::Unchanged => proto::PutOutcome::Unchanged,
    };
    proto::PutSourceResponse {
        source_id: result.source_id.to_string(),
        outcome: outcome.into(),
        version: result.version,
        chunk_count: result.chunk_count,
        chunks_added: result.chunks_added,
        chunks_removed: result.chunks_removed,
        freshness_token: acknowledge::token(project, &result).to_string(),
        backlog: i64::try_from(backlog.0).unwrap_or(i64::MAX),
        slow_down: backlog.1.and_then(|wait| wait.try_into().ok()),
    }
}

fn timestamp(seconds: i64, nanos: u32) -> Timestamp {
    Timestamp { seconds, nanos: i32::try_from(nanos).unwrap_or_default() }
}

fn object(fields: Map<String, Value>) -> Struct {
    Struct { fields: fields.into_iter().map(|(key, value)| (key, json(value))).collect() }
}

/// Its depth is bounded where metadata is taken in; what was written past that by hand is
/// bounded by what Postgres and serde_json read.
fn json(value: Value) -> ProtoValue {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(bool) => Kind::BoolValue(bool),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(string) => Kind::StringValue(string),
        Value::Array(values) => Kind::ListValue(ListValue { values: values.into_iter().map(json).collect() }),
        Value::Object(fields) => Kind::StructValue(object(fields)),
    };
    ProtoValue { kind: Some(kind) }
}
