//! Bad input answers with the right code and a message that names the field, and nothing
//! is half-written.

use prost_types::{ListValue, Value, value::Kind};
use tonic::{Code, Request, Status, body::Body, client::Grpc, codegen::http};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt;
use tower::{Service, ServiceExt};
use waybill_api::ingestion::v1::{
    Acknowledge, CreateProjectRequest, DeleteProjectRequest, DeleteSourceRequest, GetProjectRequest, GetSourceRequest,
    ListProjectsRequest, ListSourcesRequest, MediaType, PutSourceRequest, PutSourceResponse, UploadSourceRequest,
    upload_source_request::Part,
};
use waybill_ingestion::Config;

use crate::support::{Fixture, metadata, string, text};

/// A limit that a test can pass quickly.
const MAX_BODY_BYTES: usize = 1 << 20;

fn config() -> Config {
    Config { max_body_bytes: MAX_BODY_BYTES, ..Config::default() }
}

/// Checks code, field and reason of a refusal. An empty field stands for none.
fn expect(what: &str, status: &Status, code: Code, field: &str, reason: &str) {
    assert_eq!(status.code(), code, "{what}: {status:?}");
    assert!(status.message().contains(reason), "{what}: {}", status.message());
    let details = status.get_error_details();
    assert_eq!(details.error_info().map(|info| info.domain.as_str()), Some("waybill"), "{what}");
    if !field.is_empty() {
        let violations =
            details.bad_request().unwrap_or_else(|| panic!("{what}: no violations")).field_violations.clone();
        assert!(violations.iter().any(|violation| violation.field == field), "{what}: {violations:?}");
        assert!(status.message().contains(field), "{what}: {}", status.message());
    }
}

fn nested(depth: usize) -> Kind {
    (0..depth)
        .fold(Kind::NullValue(0), |inner, _| Kind::ListValue(ListValue { values: vec![Value { kind: Some(inner) }] }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_put_is_refused_and_writes_nothing() {
    use Code::{InvalidArgument, NotFound, ResourceExhausted};

    let t = Fixture::with(config()).await;
    t.put(text("a", "Text.")).await;
    let rows = t.rows().await;
    let good = || text("a", "Changed.");
    let with_metadata = |kind: Kind| PutSourceRequest { metadata: Some(metadata(&[("k", kind)])), ..good() };
    let cases = [
        ("unknown project", PutSourceRequest { project: "nobody".to_owned(), ..good() }, NotFound, "project", "nobody"),
        ("no project", PutSourceRequest { project: String::new(), ..good() }, InvalidArgument, "project", "1 to 64"),
        (
            "a project's name",
            PutSourceRequest { project: "No Name".to_owned(), ..good() },
            InvalidArgument,
            "project",
            "a-z",
        ),
        ("no uri", PutSourceRequest { uri: String::new(), ..good() }, InvalidArgument, "uri", "empty"),
        ("a long uri", PutSourceRequest { uri: "u".repeat(2_049), ..good() }, InvalidArgument, "uri", "2048"),
        ("NUL in the uri", PutSourceRequest { uri: "a\0".to_owned(), ..good() }, InvalidArgument, "uri", "U+0000"),
        ("a long title", PutSourceRequest { title: "t".repeat(1_025), ..good() }, InvalidArgument, "title", "1024"),
        (
            "NUL in the title",
            PutSourceRequest { title: "a\0".to_owned(), ..good() },
            InvalidArgument,
            "title",
            "U+0000",
        ),
        (
            "no media type",
            PutSourceRequest { media_type: 0, ..good() },
            InvalidArgument,
            "media_type",
            "MEDIA_TYPE_MARKDOWN",
        ),
        (
            "an unknown media type",
            PutSourceRequest { media_type: 17, ..good() },
            InvalidArgument,
            "media_type",
            "is 17",
        ),
        ("large metadata", with_metadata(string(&"m".repeat(17_000))), InvalidArgument, "metadata", "16384"),
        ("deep metadata", with_metadata(nested(30)), InvalidArgument, "metadata", "deeper than 16"),
        ("NaN", with_metadata(Kind::NumberValue(f64::NAN)), InvalidArgument, "metadata", "NaN"),
        ("infinity", with_metadata(Kind::NumberValue(f64::INFINITY)), InvalidArgument, "metadata", "inf"),
        ("NUL in metadata", with_metadata(string("\0")), InvalidArgument, "metadata", "U+0000"),
        (
            "a long request id",
            PutSourceRequest { request_id: "r".repeat(129), ..good() },
            InvalidArgument,
            "request_id",
            "128",
        ),
        ("a job id", PutSourceRequest { job_id: "x".to_owned(), ..good() }, InvalidArgument, "job_id", "no UUID"),
        ("an empty body", PutSourceRequest { body: Vec::new(), ..good() }, InvalidArgument, "body", "is empty"),
        (
            "a blank body",
            PutSourceRequest { body: b" \n\t".to_vec(), ..good() },
            InvalidArgument,
            "body",
            "white space",
        ),
        (
            "a body of Latin-1",
            PutSourceRequest { body: b"caf\xe9".to_vec(), ..good() },
            InvalidArgument,
            "body",
            "UTF-8 at byte 3",
        ),
        (
            "NUL in the body",
            PutSourceRequest { body: b"a\0".to_vec(), ..good() },
            InvalidArgument,
            "body",
            "U+0000 at byte 1",
        ),
        (
            "a page with nothing to read",
            PutSourceRequest {
                body: b"<script>x</script><nav>y</nav>".to_vec(),
                media_type: MediaType::Html.into(),
                ..good()
            },
            InvalidArgument,
            "body",
            "nothing to read",
        ),
        (
            "a body just over the limit",
            PutSourceRequest { body: vec![b'a'; MAX_BODY_BYTES + 1], ..good() },
            ResourceExhausted,
            "body",
            "1048576 bytes (ingestion.max_body_bytes)",
        ),
    ];
    for (what, request, code, field, reason) in cases {
        let status = t.client.clone().put_source(request).await.unwrap_err();
        expect(what, &status, code, field, reason);
    }
    let waiting =
        |mode: Acknowledge, timeout| PutSourceRequest { acknowledge: mode.into(), index_timeout: timeout, ..good() };
    let seconds = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
    let cases = [
        ("an unknown mode", PutSourceRequest { acknowledge: 9, ..good() }, "acknowledge", "is 9"),
        ("no time", waiting(Acknowledge::Indexed, seconds(0, 0)), "index_timeout", "above 0"),
        ("a negative time", waiting(Acknowledge::AllOrNothing, seconds(-1, 0)), "index_timeout", "above 0"),
        (
            "a long time",
            waiting(Acknowledge::Indexed, seconds(600, 1)),
            "index_timeout",
            "ingestion.index_timeout_max_ms",
        ),
        ("an endless time", waiting(Acknowledge::Indexed, seconds(i64::MAX, i32::MAX)), "index_timeout", "at most"),
        ("a time for nothing", waiting(Acknowledge::Accepted, seconds(1, 0)), "index_timeout", "leave it out"),
    ];
    for (what, request, field, reason) in cases {
        let status = t.client.clone().put_source(request).await.unwrap_err();
        expect(what, &status, InvalidArgument, field, reason);
    }
    let twice = PutSourceRequest { uri: String::new(), body: Vec::new(), media_type: 0, ..good() };
    let status = t.client.clone().put_source(twice).await.unwrap_err();
    expect("several at once", &status, InvalidArgument, "uri", "media_type");
    assert_eq!(t.rows().await, rows, "nothing is half-written");
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_over_the_limit_names_it() {
    let t = Fixture::with(config()).await;
    let rows = t.rows().await;
    let request = PutSourceRequest { body: vec![b'a'; 3 * MAX_BODY_BYTES], ..text("a", "") };
    let status = t.client.clone().put_source(request).await.unwrap_err();
    expect("3 MiB", &status, Code::ResourceExhausted, "", "ingestion.max_body_bytes");
    assert_eq!(t.rows().await, rows);
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claimed_gigabyte_is_refused_by_its_claim() {
    let t = Fixture::with(config()).await;
    // The length of the message that follows, in big endian; nothing follows.
    let frame = format!("\0{}\0\0\0", char::from(0x40));
    let request = http::Request::post("/waybill.ingestion.v1.IngestionService/PutSource")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(frame))
        .unwrap();
    let mut channel = t.channel.clone();
    let response = channel.ready().await.unwrap().call(request).await.unwrap();
    let status = Status::from_header_map(response.headers()).expect("a status at once");
    expect("1 GiB", &status, Code::ResourceExhausted, "", "ingestion.max_body_bytes");
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_is_cut_off_at_the_limit() {
    let t = Fixture::with(config()).await;
    let rows = t.rows().await;
    let header = UploadSourceRequest { part: Some(Part::Header(text("a", ""))) };
    // A gigabyte, if anybody read it.
    let data =
        std::iter::repeat_with(|| UploadSourceRequest { part: Some(Part::Data(vec![b'a'; 256 << 10])) }).take(4_096);
    let (sent, count) = std::sync::mpsc::channel();
    let parts = std::iter::once(header).chain(data.inspect(move |_| sent.send(()).unwrap()));
    let status = t.client.clone().upload_source(tokio_stream::iter(parts)).await.unwrap_err();
    expect("1 GiB in parts", &status, Code::ResourceExhausted, "data", "1048576 bytes (ingestion.max_body_bytes)");
    assert!(count.try_iter().count() < 100, "the rest was not read");
    assert_eq!(t.rows().await, rows);
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_upload_is_refused() {
    let t = Fixture::with(config()).await;
    let header = |request| UploadSourceRequest { part: Some(Part::Header(request)) };
    let data = |bytes: &[u8]| UploadSourceRequest { part: Some(Part::Data(bytes.to_vec())) };
    let cases = [
        ("no message", vec![], "header"),
        ("data first", vec![data(b"a")], "header"),
        ("a header with a body", vec![header(text("a", "body"))], "header.body"),
        ("a bad header", vec![header(text("", ""))], "header.uri"),
        ("two headers", vec![header(text("a", "")), header(text("a", ""))], "header"),
        ("no data", vec![header(text("a", ""))], "body"),
        ("an unknown mode", vec![header(PutSourceRequest { acknowledge: -1, ..text("a", "") })], "header.acknowledge"),
        ("half a character", vec![header(text("a", "")), data(b"caf\xc3")], "body"),
        ("a large part", vec![header(text("a", "")), data(&vec![b'a'; (1 << 20) + 1])], "data"),
        ("an empty message", vec![header(text("a", "")), UploadSourceRequest { part: None }], "part"),
    ];
    let rows = t.rows().await;
    for (what, parts, field) in cases {
        let status = t.client.clone().upload_source(tokio_stream::iter(parts)).await.unwrap_err();
        expect(what, &status, Code::InvalidArgument, field, "");
    }
    // A character may lie across two parts.
    let split = vec![header(text("a", "")), data(b"caf\xc3"), data(b"\xa9")];
    t.client.clone().upload_source(tokio_stream::iter(split)).await.unwrap();
    assert_ne!(t.rows().await, rows);
    t.stop().await;
}

/// `PutSourceRequest` with a uri that may be no text.
#[derive(Clone, PartialEq, prost::Message)]
struct RawPut {
    #[prost(string, tag = "1")]
    project: String,
    #[prost(bytes = "vec", tag = "2")]
    uri: Vec<u8>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_string_that_is_not_utf8_is_refused_by_name() {
    let t = Fixture::with(config()).await;
    let mut grpc = Grpc::new(t.channel.clone());
    grpc.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/waybill.ingestion.v1.IngestionService/PutSource");
    let request = Request::new(RawPut { project: "p".to_owned(), uri: b"caf\xe9".to_vec() });
    let status = grpc.unary(request, path, ProstCodec::<RawPut, PutSourceResponse>::default()).await.unwrap_err();
    expect("Latin-1 in uri", &status, Code::InvalidArgument, "", "uri");
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_bad_calls_are_refused() {
    use Code::{InvalidArgument, NotFound};

    let t = Fixture::with(config()).await;
    let mut client = t.client.clone();
    let rows = t.rows().await;
    let name = |name: &str| name.to_owned();
    let status = client.create_project(CreateProjectRequest { name: name("-") }).await.unwrap_err();
    expect("a project's name", &status, InvalidArgument, "name", "a-z");
    let status = client.get_project(GetProjectRequest { name: name("nobody") }).await.unwrap_err();
    expect("get nobody", &status, NotFound, "name", "nobody");
    let status = client.delete_project(DeleteProjectRequest { name: name("nobody") }).await.unwrap_err();
    expect("delete nobody", &status, NotFound, "name", "nobody");
    let status = client
        .get_source(GetSourceRequest { project: name("nobody"), uri: name("a"), with_text: false })
        .await
        .unwrap_err();
    expect("get from nobody", &status, NotFound, "project", "nobody");
    let status = client
        .delete_source(DeleteSourceRequest { project: name("p"), uri: name("a\0"), if_version: None })
        .await
        .unwrap_err();
    expect("delete NUL", &status, InvalidArgument, "uri", "U+0000");

    let status =
        client.list_projects(ListProjectsRequest { page_size: -1, page_token: String::new() }).await.unwrap_err();
    expect("a negative page", &status, InvalidArgument, "page_size", "-1");
    let status =
        client.list_projects(ListProjectsRequest { page_size: 1, page_token: name("AZmFrZQ") }).await.unwrap_err();
    expect("a forged token", &status, InvalidArgument, "page_token", "next_page_token");
    let list = || ListSourcesRequest { project: name("p"), ..ListSourcesRequest::default() };
    let cases = [
        ("list nobody", ListSourcesRequest { project: name("nobody"), ..list() }, NotFound, "project"),
        ("a negative page", ListSourcesRequest { page_size: -5, ..list() }, InvalidArgument, "page_size"),
        ("a forged token", ListSourcesRequest { page_token: name("AQ=="), ..list() }, InvalidArgument, "page_token"),
        ("an unknown state", ListSourcesRequest { state: 40, ..list() }, InvalidArgument, "state"),
        ("NUL in a prefix", ListSourcesRequest { uri_prefix: name("\0"), ..list() }, InvalidArgument, "uri_prefix"),
    ];
    for (what, request, code, field) in cases {
        let status = client.list_sources(request).await.unwrap_err();
        expect(what, &status, code, field, "");
    }
    assert_eq!(t.rows().await, rows);
    t.stop().await;
}
