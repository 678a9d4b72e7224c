//! Imports, against a service of the test's own that loses connections.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};
use tonic_types::StatusExt;
use waybill_api::ingestion::v1 as pb;
use waybill_api::ingestion::v1::ingestion_service_server::{IngestionService, IngestionServiceServer};
use waybill_api::ingestion::v1::put_sources_response::Result as PutResult;

use crate::program::{Ran, assert_has, run};

/// The stream breaks after this many answers, each time but the last.
const ANSWERS_A_CONNECTION: usize = 7;
const BREAKS: usize = 3;

/// More often than a document that fails is tried.
const HOLDS: usize = 7;

#[derive(Debug, Default)]
struct State {
    projects: BTreeSet<String>,
    /// What was stored, by uri.
    bodies: BTreeMap<String, Vec<u8>>,
    /// The outcome of each request, by its id: a second one must not count twice.
    requests: BTreeMap<String, i32>,
    breaks: usize,
    uploads: usize,
    throttled: bool,
    /// How often a document was put off because the index is behind.
    held_back: usize,
    upload_held_back: bool,
}

/// Enough of the ingestion service for an import.
#[derive(Debug, Clone, Default)]
struct Fake(Arc<Mutex<State>>);

impl Fake {
    async fn serve(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let service = IngestionServiceServer::new(self.clone());
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        url
    }

    fn put(&self, source: pb::PutSourceRequest) -> Result<pb::PutSourceResponse, pb::PutError> {
        let mut state = self.0.lock().unwrap();
        if source.uri.contains("refused") {
            let message = "body: refused for the test".to_owned();
            return Err(pb::PutError { code: 3, message, field: "body".to_owned(), ..pb::PutError::default() });
        }
        if source.uri.contains("throttled") && !state.throttled {
            state.throttled = true;
            return Err(pb::PutError { code: 8, message: "later".to_owned(), ..pb::PutError::default() });
        }
        if source.uri.contains("held_back") && state.held_back < HOLDS {
            state.held_back += 1;
            let retry_after = Some(prost_types::Duration { seconds: 0, nanos: 1 });
            return Err(pb::PutError { code: 8, message: "behind".to_owned(), retry_after, ..pb::PutError::default() });
        }
        let outcome = match state.requests.get(&source.request_id) {
            Some(outcome) => *outcome,
            None => match state.bodies.insert(source.uri, source.body.clone()) {
                None => pb::PutOutcome::Created.into(),
                Some(old) if old == source.body => pb::PutOutcome::Unchanged.into(),
                Some(_) => pb::PutOutcome::Changed.into(),
            },
        };
        state.requests.insert(source.request_id, outcome);
        Ok(pb::PutSourceResponse { outcome, chunks_added: 2, ..pb::PutSourceResponse::default() })
    }

    fn breaks_now(&self) -> bool {
        let mut state = self.0.lock().unwrap();
        state.breaks += 1;
        state.breaks <= BREAKS
    }
}

#[tonic::async_trait]
impl IngestionService for Fake {
    type PutSourcesStream = ReceiverStream<Result<pb::PutSourcesResponse, Status>>;

    async fn get_project(&self, request: Request<pb::GetProjectRequest>) -> Result<Response<pb::Project>, Status> {
        let name = request.into_inner().name;
        if self.0.lock().unwrap().projects.contains(&name) {
            Ok(Response::new(pb::Project { name, ..pb::Project::default() }))
        } else {
            Err(Status::not_found("no such project"))
        }
    }

    async fn create_project(
        &self,
        request: Request<pb::CreateProjectRequest>,
    ) -> Result<Response<pb::Project>, Status> {
        let name = request.into_inner().name;
        self.0.lock().unwrap().projects.insert(name.clone());
        Ok(Response::new(pb::Project { name, ..pb::Project::default() }))
    }

    async fn put_sources(
        &self,
        request: Request<Streaming<pb::PutSourcesRequest>>,
    ) -> Result<Response<Self::PutSourcesStream>, Status> {
        let mut stream = request.into_inner();
        let (answers, receiver) = tokio::sync::mpsc::channel(1);
        let fake = self.clone();
        tokio::spawn(async move {
            let mut answered = 0;
            while let Ok(Some(message)) = stream.message().await {
                let result = match fake.put(message.source.unwrap()) {
                    Ok(put) => PutResult::Put(put),
                    Err(error) => PutResult::Error(error),
                };
                // Stored, and the answer lost: the hard case.
                if answered == ANSWERS_A_CONNECTION && fake.breaks_now() {
                    let _ = answers.send(Err(Status::unavailable("cut for the test"))).await;
                    return;
                }
                answered += 1;
                let answer = pb::PutSourcesResponse { sequence: message.sequence, result: Some(result) };
                if answers.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn upload_source(
        &self,
        request: Request<Streaming<pb::UploadSourceRequest>>,
    ) -> Result<Response<pb::PutSourceResponse>, Status> {
        let mut stream = request.into_inner();
        let mut source = pb::PutSourceRequest::default();
        while let Some(message) = stream.message().await? {
            match message.part.unwrap() {
                pb::upload_source_request::Part::Header(header) => source = header,
                pb::upload_source_request::Part::Data(data) => source.body.extend(data),
            }
        }
        if !std::mem::replace(&mut self.0.lock().unwrap().upload_held_back, true) {
            let wait = Some(std::time::Duration::from_millis(1));
            let details = tonic_types::ErrorDetails::with_retry_info(wait);
            return Err(Status::with_error_details(tonic::Code::ResourceExhausted, "behind", details));
        }
        self.0.lock().unwrap().uploads += 1;
        self.put(source).map(Response::new).map_err(|error| Status::invalid_argument(error.message))
    }

    async fn list_sources(
        &self,
        request: Request<pb::ListSourcesRequest>,
    ) -> Result<Response<pb::ListSourcesResponse>, Status> {
        let prefix = request.into_inner().uri_prefix;
        let state = self.0.lock().unwrap();
        let uris = state.bodies.keys().filter(|uri| uri.starts_with(&prefix)).cloned();
        let sources = uris.map(|uri| pb::Source { uri, ..pb::Source::default() }).collect();
        Ok(Response::new(pb::ListSourcesResponse { sources, ..pb::ListSourcesResponse::default() }))
    }

    async fn delete_source(
        &self,
        request: Request<pb::DeleteSourceRequest>,
    ) -> Result<Response<pb::DeleteSourceResponse>, Status> {
        self.0.lock().unwrap().bodies.remove(&request.into_inner().uri);
        Ok(Response::new(pb::DeleteSourceResponse::default()))
    }

    async fn list_projects(
        &self,
        _: Request<pb::ListProjectsRequest>,
    ) -> Result<Response<pb::ListProjectsResponse>, Status> {
        Err(Status::unimplemented("not for an import"))
    }

    async fn delete_project(
        &self,
        _: Request<pb::DeleteProjectRequest>,
    ) -> Result<Response<pb::DeleteProjectResponse>, Status> {
        Err(Status::unimplemented("not for an import"))
    }

    async fn put_source(&self, _: Request<pb::PutSourceRequest>) -> Result<Response<pb::PutSourceResponse>, Status> {
        Err(Status::unimplemented("not for an import"))
    }

    async fn get_source(&self, _: Request<pb::GetSourceRequest>) -> Result<Response<pb::Source>, Status> {
        Err(Status::unimplemented("not for an import"))
    }
}

async fn import(home: &Path, args: &[&str]) -> Ran {
    let home = home.to_owned();
    let args: Vec<_> = std::iter::once("import").chain(args.iter().copied()).map(str::to_owned).collect();
    tokio::task::spawn_blocking(move || run(&home, &args)).await.unwrap()
}

fn counts(ran: &Ran) -> Vec<u64> {
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    ["new", "changed", "unchanged", "failed", "skipped"].iter().map(|name| report[name].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_document_arrives_once_through_broken_connections() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("docs");
    fs::create_dir_all(folder.join("sub")).unwrap();
    for number in 0..40 {
        fs::write(folder.join(format!("sub/{number:02}.md")), format!("# {number}\n")).unwrap();
    }
    fs::write(folder.join("large.txt"), "x".repeat(3 * 1024 * 1024)).unwrap();
    fs::write(folder.join("refused.txt"), "x").unwrap();
    fs::write(folder.join("throttled.txt"), "x").unwrap();
    fs::write(folder.join("held_back.txt"), "x").unwrap();
    fs::write(folder.join("picture.png"), "x").unwrap();

    let fake = Fake::default();
    let url = fake.serve().await;
    let folder_arg = folder.to_str().unwrap();
    let args = [folder_arg, "--endpoint", &url, "--uri-prefix", "p/", "--json"];
    let first = import(home.path(), &args).await.expect_code(1);
    // 40 and three more are new, whatever was sent twice; one is refused, one skipped.
    assert_eq!(counts(&first), [43, 0, 0, 1, 1], "{first:#?}");
    assert_has(&first.stderr, &["created project default", "trying again"]);
    assert_has(&first.stdout, &["p/refused.txt", "refused for the test", "picture.png"]);
    {
        let state = fake.0.lock().unwrap();
        assert!(state.breaks > BREAKS, "the stream was cut");
        assert_eq!(state.uploads, 1, "the large one went in parts");
        assert_eq!(state.bodies.len(), 43);
        assert_eq!((state.held_back, state.upload_held_back), (HOLDS, true), "and they waited");
        assert_eq!(state.bodies["p/sub/07.md"], b"# 7\n");
        assert_eq!(state.bodies["p/large.txt"].len(), 3 * 1024 * 1024);
    }

    fs::remove_file(folder.join("refused.txt")).unwrap();
    fs::remove_file(folder.join("sub/00.md")).unwrap();
    fs::write(folder.join("sub/01.md"), "# changed\n").unwrap();
    let again = import(home.path(), &[&args[..], &["--prune"]].concat()).await.expect_code(0);
    assert_eq!(counts(&again), [0, 1, 41, 0, 1], "{again:#?}");
    assert!(!fake.0.lock().unwrap().bodies.contains_key("p/sub/00.md"), "pruned");
}

#[tokio::test(flavor = "multi_thread")]
async fn json_lines_keep_going_after_a_bad_one() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("docs.jsonl");
    let lines = "{\"uri\":\"a\",\"text\":\"x\",\"metadata\":{\"n\":1}}\nnonsense\n{\"uri\":\"b\",\"text\":\"y\"}\n";
    fs::write(&file, lines).unwrap();
    let url = Fake::default().serve().await;
    let ran = import(home.path(), &[file.to_str().unwrap(), "--endpoint", &url]).await.expect_code(1);
    assert_has(&ran.stdout, &["2 new", "1 failed", "docs.jsonl:2", "documents/s"]);
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let home = tempfile::tempdir().unwrap();
    let failed = run(home.path(), &["import", "/no/such/folder"]).expect_code(1);
    assert_has(&failed.stderr, &["/no/such/folder", "No such file"]);
}
