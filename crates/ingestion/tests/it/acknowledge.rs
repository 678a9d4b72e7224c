//! When a put answers, and what it leaves. The relay is played by SQL.

use std::time::Duration;

use tokio::task::JoinHandle;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;
use waybill_api::ingestion::v1::{
    Acknowledge, DeleteSourceRequest, GetSourceRequest, PutSourceRequest, PutSourceResponse, UploadSourceRequest,
    put_sources_response::Result as Answer, upload_source_request::Part,
};
use waybill_domain::{FreshnessToken, ProjectId, SourceId};
use waybill_ingestion::Config;
use waybill_testkit::eventually;

use crate::support::{Fixture, item, text};

const PATIENCE: Duration = Duration::from_secs(60);

fn asking(mode: Acknowledge, timeout: Option<Duration>, request: PutSourceRequest) -> PutSourceRequest {
    PutSourceRequest {
        acknowledge: mode.into(),
        index_timeout: timeout.map(|timeout| timeout.try_into().unwrap()),
        ..request
    }
}

fn indexed(timeout: Duration) -> PutSourceRequest {
    asking(Acknowledge::Indexed, Some(timeout), text("a", "Text."))
}

fn all_or_nothing(timeout: Duration) -> PutSourceRequest {
    asking(Acknowledge::AllOrNothing, Some(timeout), text("a", "Text."))
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().unwrap().reason
}

fn start(t: &Fixture, request: PutSourceRequest) -> JoinHandle<Result<PutSourceResponse, Status>> {
    let mut client = t.client.clone();
    tokio::spawn(async move { client.put_source(request).await.map(tonic::Response::into_inner) })
}

/// Settles everything as it is now: chunks that are there, and tombstones of those that are not.
const RELAY: &str = "INSERT INTO index_state (sink, kind, key, version, deleted)
    SELECT DISTINCT 'qdrant', 'chunk', o.key, coalesce(c.version, 0), c.id IS NULL
    FROM outbox o LEFT JOIN chunk c ON c.id = o.key WHERE o.sink = 'qdrant'
    ON CONFLICT (sink, kind, key) DO UPDATE SET version = excluded.version, deleted = excluded.deleted, confirmed_at = now()";

async fn written(t: &Fixture) {
    eventually("the put is committed", PATIENCE, async || t.sql("SELECT count(*) FROM chunk").await != "0").await;
}

async fn delete(t: &Fixture, uri: &str) -> Result<String, Status> {
    let request = DeleteSourceRequest { project: "p".to_owned(), uri: uri.to_owned(), if_version: None };
    t.client.clone().delete_source(request).await.map(|answer| answer.into_inner().freshness_token)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_write_returns_its_token() {
    let t = Fixture::new().await;
    let project = ProjectId::derive(&"p".parse().unwrap());
    let expected =
        |version, deleted| FreshnessToken { project, source: SourceId::derive(project, "a"), version, deleted };
    let put = t.put(text("a", "Text.")).await;
    assert_eq!(put.freshness_token.parse(), Ok(expected(put.version, false)));

    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    sender.send(item(1, text("a", "Newer."))).await.unwrap();
    drop(sender);
    let answers = t.client.clone().put_sources(tokio_stream::wrappers::ReceiverStream::new(receiver)).await;
    let answer = answers.unwrap().into_inner().message().await.unwrap().unwrap();
    let Some(Answer::Put(newer)) = answer.result else { panic!("{answer:?}") };
    assert!(newer.version > put.version);
    assert_eq!(newer.freshness_token.parse(), Ok(expected(newer.version, false)));

    let token = delete(&t, "a").await.unwrap();
    assert_eq!(token.parse(), Ok(expected(newer.version, true)));
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn indexed_answers_when_it_is_confirmed() {
    let t = Fixture::new().await;
    let put = start(&t, indexed(PATIENCE));
    written(&t).await;
    assert!(!put.is_finished());
    t.sql(RELAY).await;
    let put = put.await.unwrap().unwrap();
    assert_eq!(put.chunks_added, 1);
    // What is unchanged and confirmed answers at once, in parts too.
    let parts =
        [Part::Header(PutSourceRequest { body: Vec::new(), ..indexed(PATIENCE) }), Part::Data(b"Text.".to_vec())];
    let parts = parts.map(|part| UploadSourceRequest { part: Some(part) });
    let again = t.client.clone().upload_source(tokio_stream::iter(parts)).await.unwrap().into_inner();
    assert_eq!((again.version, again.chunks_added), (put.version, 0));
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn indexed_that_takes_too_long_is_durable_and_gives_its_token() {
    let t = Fixture::new().await;
    let timeout = Duration::from_millis(50);
    let refused = t.client.clone().put_source(indexed(timeout)).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::DeadlineExceeded, "NOT_INDEXED_IN_TIME"));
    for part in ["\"a\"", "durable", "freshness_token"] {
        assert!(refused.message().contains(part), "{}", refused.message());
    }
    let token: FreshnessToken = refused.get_details_error_info().unwrap().metadata["freshness_token"].parse().unwrap();
    assert_eq!(t.sql("SELECT version FROM source").await, token.version.to_string());

    // The call's own deadline is shorter than what it asks for.
    let mut request = Request::new(indexed(PATIENCE));
    request.set_timeout(Duration::from_secs(2));
    let refused = t.client.clone().put_source(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::DeadlineExceeded, "{refused:?}");
    assert_eq!(reason(&refused), "NOT_INDEXED_IN_TIME", "our answer, not the transport's");
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_or_nothing_is_seen_when_all_of_it_is_confirmed() {
    let t = Fixture::new().await;
    let request = PutSourceRequest { request_id: "r1".to_owned(), ..all_or_nothing(PATIENCE) };
    let put = start(&t, request.clone());
    written(&t).await;
    let get = GetSourceRequest { project: "p".to_owned(), uri: "a".to_owned(), with_text: false };
    assert_eq!(t.client.clone().get_source(get.clone()).await.unwrap_err().code(), Code::NotFound);
    for other in [text("a", "Text."), all_or_nothing(PATIENCE), request.clone()] {
        let refused = t.client.clone().put_source(other).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Aborted, "SOURCE_PROVISIONAL"));
        assert!(refused.get_details_retry_info().unwrap().retry_delay.is_some());
    }
    assert!(!put.is_finished());
    t.sql(RELAY).await;
    let put = put.await.unwrap().unwrap();
    let got = t.client.clone().get_source(get).await.unwrap().into_inner();
    assert_eq!(got.version, put.version);
    assert_eq!(put.freshness_token.parse::<FreshnessToken>().unwrap().version, put.version);

    let again = t.put(request).await;
    assert_eq!((again.version, again.outcome), (put.version, put.outcome), "a retry gets its answer");
    let refused = t.client.clone().put_source(all_or_nothing(PATIENCE)).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "SOURCE_EXISTS"));
    let plain = PutSourceRequest { request_id: "r1".to_owned(), ..text("a", "Text.") };
    let refused = t.client.clone().put_source(plain).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "another promise is another request");
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_or_nothing_is_aborted_when_nothing_is_left() {
    let t = Fixture::new().await;
    let empty = t.sql("SELECT count(*) FROM source").await;
    // A point that was written, and is to go.
    let put = start(&t, all_or_nothing(Duration::from_secs(1)));
    written(&t).await;
    eventually("it is taken back", PATIENCE, async || t.sql("SELECT count(*) FROM source").await == empty).await;
    assert!(!put.is_finished(), "the vector store has not confirmed that");
    assert_eq!(t.sql("SELECT count(*) FROM chunk").await, "0");
    t.sql(RELAY).await;
    let refused = put.await.unwrap().unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Aborted, "TAKEN_BACK"));
    assert!(refused.message().contains("nothing of it is left"), "{}", refused.message());
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_or_nothing_says_when_points_may_be_left() {
    let t = Fixture::with(Config { take_back_wait_ms: 100, ..Config::default() }).await;
    let refused = t.client.clone().put_source(all_or_nothing(Duration::from_millis(50))).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "TAKEN_BACK_UNCONFIRMED"));
    assert!(refused.message().contains("points go when the vector store is back"), "{}", refused.message());
    assert_eq!(t.sql("SELECT (SELECT count(*) FROM source) + (SELECT count(*) FROM chunk)").await, "0");

    // The call's own deadline leaves time for that.
    let mut request = Request::new(all_or_nothing(PATIENCE));
    request.set_timeout(Duration::from_secs(4));
    let refused = t.client.clone().put_source(request).await.unwrap_err();
    assert_eq!(reason(&refused), "TAKEN_BACK_UNCONFIRMED", "{refused:?}");

    // Deleted by another call meanwhile.
    let put = start(&t, all_or_nothing(PATIENCE));
    written(&t).await;
    delete(&t, "a").await.unwrap();
    t.sql(RELAY).await;
    let refused = put.await.unwrap().unwrap_err();
    assert_eq!(reason(&refused), "TAKEN_BACK_UNCONFIRMED");
    assert!(refused.message().contains("DeleteSource"), "{}", refused.message());
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_leaves_leaves_nothing() {
    let t = Fixture::new().await;
    let put = start(&t, all_or_nothing(Duration::from_millis(1_500)));
    written(&t).await;
    put.abort();
    let left =
        "SELECT (SELECT count(*) FROM source) + (SELECT count(*) FROM chunk) + (SELECT count(*) FROM put_request)";
    eventually("the sweeper takes it back", PATIENCE, async || t.sql(left).await == "0").await;
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn puts_that_wait_are_bounded() {
    let t = Fixture::with(Config { max_waiting_puts: 1, ..Config::default() }).await;
    let put = start(&t, indexed(PATIENCE));
    written(&t).await;
    let rows = t.rows().await;
    let other = PutSourceRequest { uri: "b".to_owned(), ..indexed(PATIENCE) };
    let refused = t.client.clone().put_source(other).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "TOO_MANY_WAITING"));
    assert_eq!(t.rows().await, rows);
    t.put(text("b", "Others need not wait.")).await;
    t.sql(RELAY).await;
    put.await.unwrap().unwrap();
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn producers_hear_of_the_backlog_and_are_held_back() {
    let t = Fixture::with(Config { backlog_soft_limit: 2, backlog_hard_limit: 4, ..Config::default() }).await;
    let put = async |n: i32| {
        t.client.clone().put_source(text(&n.to_string(), "Text.")).await.map(tonic::Response::into_inner)
    };
    let mut n = 0;
    let mut hinted = false;
    let mut refused = None;
    eventually("a put is refused", PATIENCE, async || {
        n += 1;
        match put(n).await {
            Ok(answer) => {
                assert_eq!(answer.slow_down.is_some(), answer.backlog > 2, "{answer:?}");
                hinted |= answer.slow_down.is_some();
            }
            Err(status) => refused = Some(status),
        }
        refused.is_some()
    })
    .await;
    let rows = t.rows().await;
    let refused = refused.unwrap();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "BACKLOG"));
    assert!(refused.get_details_retry_info().unwrap().retry_delay.is_some());
    for part in ["ingestion.backlog_hard_limit", "limit of 4", "nothing was written"] {
        assert!(refused.message().contains(part), "{}", refused.message());
    }
    // Items of a stream and uploads as well.
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    sender.send(item(1, text("x", "Text."))).await.unwrap();
    drop(sender);
    let answers = t.client.clone().put_sources(tokio_stream::wrappers::ReceiverStream::new(receiver)).await;
    let answer = answers.unwrap().into_inner().message().await.unwrap().unwrap();
    let Some(Answer::Error(error)) = answer.result else { panic!("{answer:?}") };
    assert_eq!(Code::from_i32(error.code), Code::ResourceExhausted);
    assert!(error.retry_after.is_some());
    let header = UploadSourceRequest { part: Some(Part::Header(text("x", ""))) };
    let upload = t.client.clone().upload_source(tokio_stream::iter([header])).await.unwrap_err();
    assert_eq!(reason(&upload), "BACKLOG");
    assert_eq!(t.rows().await, rows, "nothing is written");

    t.sql(RELAY).await;
    eventually("puts are taken again", PATIENCE, async || put(0).await.is_ok()).await;
    assert!(t.rows().await != rows);
    t.stop().await;
}
