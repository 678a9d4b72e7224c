//! What every operator's call says to input that can't be used.

use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt;
use uuid::Uuid;
use waybill_api::relay::v1::{
    BeginBulkLoadRequest, DeadLetterFilter, DisposeDeadLettersRequest, DrainRequest, EndBulkLoadRequest,
    GetDeadLetterRequest, ListDeadLettersRequest, PauseRequest, ResumeRequest,
    relay_service_client::RelayServiceClient,
};

/// Answers carry a part of a hostile value at the most.
const MESSAGE_BYTES_MAX: usize = 600;

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

fn time(seconds: i64, nanos: i32) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds, nanos })
}

#[track_caller]
fn assert_refused(what: &str, field: &str, answer: Result<(), Status>) {
    let status = answer.expect_err(what);
    assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status:?}");
    let details = status.get_error_details();
    let fields: Vec<&str> =
        details.bad_request().unwrap().field_violations.iter().map(|violation| violation.field.as_str()).collect();
    assert_eq!(fields, [field], "{what}: {status:?}");
    assert!(status.message().len() <= MESSAGE_BYTES_MAX, "{what}: {} bytes", status.message().len());
}

/// Filters that can't be used, with the field that is wrong.
fn bad_filters() -> Vec<(&'static str, DeadLetterFilter)> {
    let none = DeadLetterFilter::default;
    vec![
        ("filter.sink", DeadLetterFilter { sink: "redis".to_owned(), ..none() }),
        ("filter.sink", DeadLetterFilter { sink: "x".repeat(100_000), ..none() }),
        ("filter.kind", DeadLetterFilter { kind: "source".to_owned(), ..none() }),
        ("filter.kind", DeadLetterFilter { kind: "x".repeat(100_000), ..none() }),
        ("filter.project", DeadLetterFilter { project: "Not A Name".to_owned(), ..none() }),
        ("filter.project", DeadLetterFilter { project: "\0".to_owned(), ..none() }),
        ("filter.error_class", DeadLetterFilter { error_class: "fatal".to_owned(), ..none() }),
        ("filter.error_class", DeadLetterFilter { error_class: "x".repeat(100_000), ..none() }),
        ("filter.text", DeadLetterFilter { text: "x".repeat(257), ..none() }),
        ("filter.text", DeadLetterFilter { text: "a\0b".to_owned(), ..none() }),
        ("filter.since", DeadLetterFilter { since: time(i64::MAX, 0), ..none() }),
        ("filter.since", DeadLetterFilter { since: time(0, -1), ..none() }),
        ("filter.since", DeadLetterFilter { since: time(-99_999_999_999, 0), ..none() }),
        ("filter.until", DeadLetterFilter { until: time(i64::MIN, 0), ..none() }),
        ("filter.until", DeadLetterFilter { until: time(0, i32::MAX), ..none() }),
        ("filter.until", DeadLetterFilter { until: time(999_999_999_999, 0), ..none() }),
    ]
}

/// Calls everything with what can't be used.
pub(crate) async fn check(client: &mut RelayServiceClient<Channel>) {
    let long = "x".repeat(100_000);
    let of = |sink: &str, paused_by: &str, reason: &str| PauseRequest {
        sink: sink.to_owned(),
        paused_by: paused_by.to_owned(),
        reason: reason.to_owned(),
        ttl: None,
    };
    for (field, request) in [
        ("ttl", PauseRequest { ttl: seconds(-1), ..of("qdrant", "ada", "") }),
        ("ttl", PauseRequest { ttl: seconds(24 * 3_600 + 1), ..of("qdrant", "ada", "") }),
        ("sink", of("", "ada", "")),
        ("sink", of("Qdrant", "ada", "")),
        ("sink", of(&long, "ada", "")),
        ("sink", of("llm\0", "ada", "")),
        ("paused_by", of("qdrant", "", "")),
        ("paused_by", of("qdrant", &"x".repeat(129), "")),
        ("paused_by", of("qdrant", "a\0b", "")),
        ("reason", of("qdrant", "ada", &"x".repeat(1_025))),
        ("reason", of("qdrant", "ada", "a\0b")),
    ] {
        assert_refused("pause", field, client.pause(request).await.map(drop));
    }
    for sink in ["", "redis", &long] {
        let request = ResumeRequest { sink: sink.to_owned(), ..ResumeRequest::default() };
        assert_refused("resume", "sink", client.resume(request).await.map(drop));
    }
    let request = ResumeRequest { sink: "qdrant".to_owned(), paused_by: "x".repeat(129) };
    assert_refused("resume", "paused_by", client.resume(request).await.map(drop));
    for (field, id, ttl) in [
        ("id", "", None),
        ("id", "a\0b", None),
        ("id", &*"x".repeat(129), None),
        ("ttl", "load", seconds(3_601)),
        ("ttl", "load", seconds(i64::MIN)),
    ] {
        let request = BeginBulkLoadRequest { id: id.to_owned(), ttl };
        assert_refused("begin bulk load", field, client.begin_bulk_load(request).await.map(drop));
    }
    assert_refused("end bulk load", "id", client.end_bulk_load(EndBulkLoadRequest::default()).await.map(drop));
    for (field, sink, timeout) in [
        ("sink", "", None),
        ("sink", "redis", None),
        ("timeout", "qdrant", seconds(-1)),
        ("timeout", "qdrant", seconds(24 * 3_600 + 1)),
        ("timeout", "qdrant", seconds(i64::MAX)),
        ("timeout", "qdrant", seconds(i64::MIN)),
        ("timeout", "qdrant", Some(prost_types::Duration { seconds: 0, nanos: -1 })),
        ("timeout", "qdrant", Some(prost_types::Duration { seconds: i64::MIN, nanos: i32::MIN })),
        ("timeout", "qdrant", Some(prost_types::Duration { seconds: i64::MAX, nanos: i32::MAX })),
        ("timeout", "qdrant", Some(prost_types::Duration { seconds: 0, nanos: i32::MAX })),
    ] {
        let request = DrainRequest { sink: sink.to_owned(), timeout, until_still: false };
        assert_refused("drain", field, client.drain(request).await.map(drop));
    }

    let list = |page_size: i32, page_token: &str| ListDeadLettersRequest {
        filter: None,
        page_size,
        page_token: page_token.to_owned(),
    };
    for (field, request) in [
        ("page_size", list(-1, "")),
        ("page_size", list(1_001, "")),
        ("page_size", list(i32::MAX, "")),
        ("page_size", list(i32::MIN, "")),
        ("page_token", list(0, "nonsense")),
        ("page_token", list(0, &long)),
        ("page_token", list(0, "\0")),
    ] {
        assert_refused("list", field, client.list_dead_letters(request).await.map(drop));
    }
    for id in ["", "nonsense", "\0", &long] {
        let request = GetDeadLetterRequest { id: id.to_owned() };
        assert_refused("get", "id", client.get_dead_letter(request).await.map(drop));
    }

    let ids = |ids: Vec<String>| DisposeDeadLettersRequest { ids, ..DisposeDeadLettersRequest::default() };
    let mut disposals = vec![
        // Nothing is narrowed, and `all` is not set.
        ("filter", ids(Vec::new())),
        ("filter", DisposeDeadLettersRequest { filter: Some(DeadLetterFilter::default()), ..ids(Vec::new()) }),
        ("ids", ids(vec![Uuid::nil().to_string(); 1_001])),
        ("ids[1]", ids(vec![Uuid::nil().to_string(), "nonsense".to_owned()])),
        ("ids[0]", ids(vec![long.clone()])),
        ("ids[0]", DisposeDeadLettersRequest { all: true, ..ids(vec![String::new()]) }),
    ];
    for (field, filter) in bad_filters() {
        let request = ListDeadLettersRequest { filter: Some(filter.clone()), ..list(0, "") };
        assert_refused("list", field, client.list_dead_letters(request).await.map(drop));
        disposals.push((field, DisposeDeadLettersRequest { filter: Some(filter), all: true, ids: Vec::new() }));
    }
    for (field, request) in disposals {
        assert_refused("redrive", field, client.redrive_dead_letters(request.clone()).await.map(drop));
        assert_refused("discard", field, client.discard_dead_letters(request).await.map(drop));
    }

    let unknown = GetDeadLetterRequest { id: Uuid::from_u128(7).to_string() };
    assert_eq!(client.get_dead_letter(unknown).await.unwrap_err().code(), Code::NotFound);
    let filter = DeadLetterFilter { project: "no-such".to_owned(), ..DeadLetterFilter::default() };
    let request = ListDeadLettersRequest { filter: Some(filter), ..list(0, "") };
    assert_eq!(client.list_dead_letters(request).await.unwrap_err().code(), Code::NotFound);
}
