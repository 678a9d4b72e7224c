use futures::future::join_all;
use prost_types::value::Kind;
use tonic::Code;
use waybill_api::ingestion::v1::{
    DeleteSourceRequest, GetSourceRequest, ListSourcesRequest, MediaType, PutOutcome, PutSourceRequest,
    PutSourceResponse, SourceState, UploadSourceRequest, upload_source_request::Part,
};

use crate::support::{Fixture, metadata, outcome, string, text};

fn get(uri: &str) -> GetSourceRequest {
    GetSourceRequest { project: "p".to_owned(), uri: uri.to_owned(), with_text: true }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_goes_in_and_comes_back() {
    let t = Fixture::new().await;
    let mut client = t.client.clone();
    let request = PutSourceRequest {
        media_type: MediaType::Html.into(),
        body: b"<title>Sizes</title><h1>Sizes</h1><p>One <b>two</b>.<h2>More</h2><p>Three.".to_vec(),
        metadata: Some(metadata(&[
            ("lang", string("en")),
            ("n", Kind::NumberValue(3.0)),
            ("x", Kind::NumberValue(0.1)),
        ])),
        ..text("docs/a.html", "")
    };
    let put = t.put(request.clone()).await;
    assert_eq!((outcome(&put), put.chunk_count, put.chunks_added), (PutOutcome::Created, 2, 2));

    let source = client.get_source(get("docs/a.html")).await.unwrap().into_inner();
    assert_eq!(source.text.as_deref(), Some("# Sizes\n\nOne two.\n\n## More\n\nThree."));
    assert_eq!((&source.id, source.title.as_str(), source.version), (&put.source_id, "Sizes", put.version));
    assert_eq!((source.state(), source.media_type()), (SourceState::Chunked, MediaType::Html));
    assert_eq!(source.metadata, request.metadata);
    assert_eq!(t.sql("SELECT metadata->'n' FROM source").await, "3", "an integer is stored as one");
    assert_eq!(source.content_sha256.len(), 64);
    let places =
        "SELECT bool_and(c.text = convert_from(substring(convert_to(s.text, 'UTF8') FROM (c.start_byte + 1)::int
                      FOR (c.end_byte - c.start_byte)::int), 'UTF8')) FROM chunk c JOIN source s ON s.id = c.source_id";
    assert_eq!(t.sql(places).await, "t", "each chunk lies where it says");

    let again = t.put(request).await;
    assert_eq!((outcome(&again), again.version, again.chunks_added), (PutOutcome::Unchanged, put.version, 0));

    t.sql("INSERT INTO index_state (sink, kind, key, version) SELECT 'qdrant', 'chunk', id, version FROM chunk").await;
    assert_eq!(client.get_source(get("docs/a.html")).await.unwrap().into_inner().state(), SourceState::Indexed);

    let delete = DeleteSourceRequest { project: "p".to_owned(), uri: "docs/a.html".to_owned(), if_version: None };
    let late = DeleteSourceRequest { if_version: Some(put.version - 1), ..delete.clone() };
    let refused = client.delete_source(late).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains(&format!("version {}", put.version)), "{}", refused.message());
    assert_eq!(client.delete_source(delete.clone()).await.unwrap().into_inner().deleted_chunk_count, 2);
    for status in
        [client.delete_source(delete).await.unwrap_err(), client.get_source(get("docs/a.html")).await.unwrap_err()]
    {
        assert_eq!(status.code(), Code::NotFound);
        assert!(status.message().contains("docs/a.html"), "{}", status.message());
    }
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_with_its_id_gets_its_answer_and_writes_nothing() {
    let t = Fixture::new().await;
    let old = PutSourceRequest { request_id: "r1".to_owned(), ..text("a", "Old.") };
    let first = t.put(old.clone()).await;
    t.put(text("a", "New.")).await;
    let rows = t.rows().await;
    let again = t.put(old.clone()).await;
    assert_eq!(PutSourceResponse { backlog: first.backlog, ..again }, first);
    assert_eq!(t.rows().await, rows);
    assert_eq!(t.sql("SELECT text FROM source").await, "New.");

    let other = PutSourceRequest { body: b"Other.".to_vec(), ..old };
    let refused = t.client.clone().put_source(other).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().starts_with("request_id:"), "{}", refused.message());
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn puts_of_one_uri_at_once_leave_one_of_them() {
    let t = Fixture::new().await;
    let puts = (0..12).map(|n| t.put(text("a", &format!("Shared.\n\nOwn number {n}."))));
    let answers = join_all(puts).await;
    assert_eq!(answers.iter().filter(|answer| outcome(answer) == PutOutcome::Created).count(), 1);
    assert_eq!(t.sql("SELECT c.text = s.text FROM chunk c JOIN source s ON s.id = c.source_id").await, "t");
    let last = answers.iter().map(|answer| answer.version).max().unwrap();
    assert_eq!(t.sql("SELECT version FROM source").await, last.to_string());
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_is_the_same_as_a_put() {
    let t = Fixture::new().await;
    let mut client = t.client.clone();
    let body = "A sentence of the long document. ".repeat(100_000);
    let header = UploadSourceRequest { part: Some(Part::Header(text("big", ""))) };
    let data =
        body.as_bytes().chunks(512 * 1024).map(|data| UploadSourceRequest { part: Some(Part::Data(data.to_vec())) });
    let parts: Vec<_> = std::iter::once(header).chain(data).collect();
    let put = client.upload_source(tokio_stream::iter(parts)).await.unwrap().into_inner();
    assert_eq!(outcome(&put), PutOutcome::Created);
    assert!(put.chunk_count > 1_000);
    assert_eq!(outcome(&t.put(text("big", &body)).await), PutOutcome::Unchanged);
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sources_are_listed_in_pages_and_filtered() {
    let t = Fixture::new().await;
    let mut client = t.client.clone();
    for uri in ["a/1", "a/2", "a/3", "b"] {
        t.put(text(uri, "Text.")).await;
    }
    let all = ListSourcesRequest {
        project: "p".to_owned(),
        page_size: 2,
        uri_prefix: "a/".to_owned(),
        ..ListSourcesRequest::default()
    };
    let first = client.list_sources(all.clone()).await.unwrap().into_inner();
    let uris: Vec<_> = first.sources.iter().map(|source| source.uri.as_str()).collect();
    assert_eq!(uris, ["a/1", "a/2"]);
    let second = ListSourcesRequest { page_token: first.next_page_token.clone(), ..all.clone() };
    let second = client.list_sources(second).await.unwrap().into_inner();
    assert_eq!((second.sources.len(), second.sources[0].uri.as_str(), second.next_page_token.as_str()), (1, "a/3", ""));
    assert!(second.sources[0].text.is_none());

    let foreign = ListSourcesRequest { page_token: first.next_page_token, uri_prefix: "b".to_owned(), ..all.clone() };
    let refused = client.list_sources(foreign).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("page_token"), "{}", refused.message());

    let indexed = ListSourcesRequest { state: SourceState::Indexed.into(), ..all };
    assert!(client.list_sources(indexed).await.unwrap().into_inner().sources.is_empty());
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_way_of_cutting_cuts_the_same_content_again() {
    let t = Fixture::new().await;
    t.put(text("a", "Text.")).await;
    t.sql("UPDATE source SET chunker = 'v0'").await;
    let put = t.put(text("a", "Text.")).await;
    assert_eq!((outcome(&put), put.chunks_added, put.chunks_removed), (PutOutcome::Changed, 0, 0));
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_says_which_run_last_changed_it() {
    let t = Fixture::new().await;
    let run = |job: u128, body: &str| PutSourceRequest {
        job_id: uuid::Uuid::from_u128(job).to_string(),
        request_id: format!("{job}"),
        ..text("a", body)
    };
    let job = async || t.client.clone().get_source(get("a")).await.unwrap().into_inner().job_id;
    t.put(run(1, "One.")).await;
    assert_eq!(job().await, uuid::Uuid::from_u128(1).to_string());
    assert_eq!(outcome(&t.put(run(2, "One.")).await), PutOutcome::Unchanged);
    assert_eq!(job().await, uuid::Uuid::from_u128(1).to_string());
    t.put(run(3, "Two.")).await;
    assert_eq!(job().await, uuid::Uuid::from_u128(3).to_string());
    t.put(text("a", "Three.")).await;
    assert_eq!(job().await, "", "no run changed it last");
    t.stop().await;
}
