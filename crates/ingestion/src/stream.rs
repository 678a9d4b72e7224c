//! `PutSources`: many sources on one stream.
//!
//! Two tasks, joined by a channel of one group: the first reads items, checks and collects
//! them; the second stores a group while the next is being cut. Nothing is read ahead of
//! that, so a caller that is faster than the database is held back by its own stream.

use std::{collections::HashSet, mem, time::Duration};

use futures::FutureExt;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tracing::Instrument;
use waybill_api::ingestion::v1::{
    PutSourceRequest, PutSourcesRequest, PutSourcesResponse, put_sources_response::Result as Answer,
};
use waybill_domain::{ProjectId, ProjectName, SourceId};
use waybill_runtime::status;

use crate::{
    convert, errors,
    grpc::Grpc,
    limits::Held,
    service::Prepared,
    validate::{Header, Put},
};

/// Answers that wait for a caller to read them.
const ANSWERS: usize = 64;

/// How long a caller may leave its answers unread before its stream ends: until then it
/// holds a group's worth of memory.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

type Answers = mpsc::Sender<Result<PutSourcesResponse, Status>>;

/// Starts the tasks of a stream.
pub(crate) fn start(
    grpc: Grpc,
    items: Streaming<PutSourcesRequest>,
) -> Result<ReceiverStream<Result<PutSourcesResponse, Status>>, Status> {
    let admitted = grpc.limits.stream()?;
    let (answers, receiver) = mpsc::channel(ANSWERS);
    let (groups, ready) = mpsc::channel(1);
    let headers = errors::outbox_headers();
    let storing = store_groups(grpc.clone(), ready, answers.clone(), headers);
    let collecting =
        Collector { grpc, groups, group: Group::default(), in_flight: HashSet::new(), last_sequence: None }.run(items);
    tokio::spawn(
        async move {
            let _admitted = admitted;
            let (end, stored) = tokio::join!(collecting, tokio::spawn(storing.in_current_span()));
            // A caller that is gone needs no reason.
            if let (Err(status), Ok(true)) = (end, stored) {
                send(&answers, Err(status)).await;
            }
        }
        .in_current_span(),
    );
    Ok(ReceiverStream::new(receiver))
}

/// One item, as far as it has come.
enum Item {
    Refused(Status),
    Accepted { project: ProjectName, id: ProjectId, request_id: Option<String> },
}

/// Items that are stored together.
#[derive(Default)]
struct Group {
    items: Vec<(i64, Item)>,
    puts: Vec<Put>,
    held: Vec<Held>,
    bytes: usize,
}

/// A group on its way to being stored.
struct Prepare {
    items: Vec<(i64, Item)>,
    prepared: tokio::task::JoinHandle<Prepared>,
    _held: Vec<Held>,
}

struct Collector {
    grpc: Grpc,
    groups: mpsc::Sender<Prepare>,
    group: Group,
    /// The sources of the group that was handed on last, and may not be stored yet.
    in_flight: HashSet<SourceId>,
    last_sequence: Option<i64>,
}

impl Collector {
    /// Reads until the caller ends, the service stops, or nobody wants the groups any more.
    /// An error is how the stream is to end.
    async fn run(mut self, mut items: Streaming<PutSourcesRequest>) -> Result<(), Status> {
        let stopping = self.grpc.shutdown.soft();
        let idle = Duration::from_millis(self.grpc.config.group_idle_ms);
        let mut due: Option<Instant> = None;
        loop {
            let wait = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stopping.cancelled() => {
                    self.flush().await;
                    return Err(self.stopped());
                }
                message = items.message() => match message {
                    Ok(Some(message)) => {
                        if !self.take(message).await {
                            return Ok(());
                        }
                        due = (!self.group.items.is_empty()).then(|| Instant::now() + idle);
                    }
                    Ok(None) => {
                        self.flush().await;
                        return Ok(());
                    }
                    Err(status) => {
                        self.flush().await;
                        return Err(status::from_decode(status));
                    }
                },
                // Nobody takes the answers any more.
                () = self.groups.closed() => return Ok(()),
                () = wait => {
                    if !self.flush().await {
                        return Ok(());
                    }
                    due = None;
                }
            }
        }
    }

    /// Adds an item. Returns whether to go on.
    async fn take(&mut self, message: PutSourcesRequest) -> bool {
        let PutSourcesRequest { sequence, source } = message;
        self.last_sequence = Some(sequence);
        let Some(request) = source else {
            return self.add(sequence, Err(status::invalid_argument("source", "is missing")), 0).await;
        };
        let bytes = request.body.len();
        if bytes <= self.grpc.config.max_body_bytes {
            let held = match self.grpc.limits.bytes(bytes) {
                Ok(held) => Some(held),
                Err(_) => {
                    // What this stream holds itself might be what it waits for.
                    if !self.flush().await {
                        return false;
                    }
                    self.grpc.limits.wait_for_bytes(bytes).await
                }
            };
            self.group.held.extend(held);
        }
        let put = self.check(request);
        self.add(sequence, put, bytes).await
    }

    fn check(&self, mut request: PutSourceRequest) -> Result<Put, Status> {
        self.grpc.backlog.admit()?;
        let body = mem::take(&mut request.body);
        let max_bytes = self.grpc.config.max_body_bytes;
        Header::check(&request, "source.", None)?.with_body(
            body,
            "source.",
            max_bytes,
            self.grpc.ingestion.chunker_id(),
        )
    }

    async fn add(&mut self, sequence: i64, put: Result<Put, Status>, bytes: usize) -> bool {
        let item = match put {
            Err(status) => Item::Refused(status),
            Ok(put) => {
                let request_id = put.key.request.as_ref().map(|request| request.id.clone());
                let item = Item::Accepted { project: put.project.clone(), id: put.key.project_id, request_id };
                self.group.puts.push(put);
                item
            }
        };
        self.group.items.push((sequence, item));
        self.group.bytes += bytes;
        let config = &self.grpc.config;
        if self.group.items.len() < config.group_items && self.group.bytes < config.group_bytes {
            return true;
        }
        self.flush().await
    }

    /// Hands the group on. Returns whether anybody wants it.
    async fn flush(&mut self) -> bool {
        let Group { items, puts, held, .. } = mem::take(&mut self.group);
        if items.is_empty() {
            return true;
        }
        // Taken before it is begun: so at most two groups are beyond this point, one being
        // stored and this one.
        let Ok(slot) = self.groups.reserve().await else {
            return false;
        };
        let ids = puts.iter().map(|put| put.key.source_id()).collect();
        let in_flight = mem::replace(&mut self.in_flight, ids);
        let ingestion = self.grpc.ingestion.clone();
        let prepared = tokio::spawn(async move { ingestion.prepare(puts, &in_flight).await }.in_current_span());
        slot.send(Prepare { items, prepared, _held: held });
        true
    }

    fn stopped(&self) -> Status {
        let after = match self.last_sequence {
            Some(sequence) => format!("send again what came after sequence {sequence}"),
            None => "send all of it again".to_owned(),
        };
        status::unavailable("SHUTTING_DOWN", format!("shutting down: {after}"), None)
    }
}

/// Stores groups one after the other and answers their items. Returns whether the caller
/// was there to the end.
async fn store_groups(
    grpc: Grpc,
    mut groups: mpsc::Receiver<Prepare>,
    answers: Answers,
    headers: Option<String>,
) -> bool {
    while let Some(group) = groups.recv().await {
        let mut stored = match group.prepared.await {
            Ok(prepared) => grpc.ingestion.store(prepared, headers.as_deref()).await.into_iter(),
            Err(error) => {
                send(&answers, Err(status::internal(error))).await;
                return false;
            }
        };
        for (sequence, item) in group.items {
            let answer = match item {
                Item::Refused(status) => Err(status),
                Item::Accepted { project, id, request_id } => match stored.next() {
                    Some(Ok(result)) => Ok(convert::put(id, result, grpc.backlog.hint())),
                    Some(Err(refusal)) => Err(errors::refusal(&refusal, &project, request_id.as_deref(), "source.")),
                    None => Err(status::internal("an item without an answer")),
                },
            };
            let result = match answer {
                Ok(put) => Answer::Put(put),
                Err(status) => Answer::Error(errors::of_item(&status)),
            };
            if !send(&answers, Ok(PutSourcesResponse { sequence, result: Some(result) })).await {
                return false;
            }
        }
    }
    true
}

/// Sends an answer. Returns whether the caller takes it.
async fn send(answers: &Answers, answer: Result<PutSourcesResponse, Status>) -> bool {
    tokio::time::timeout(ANSWER_TIMEOUT, answers.send(answer)).map(|sent| matches!(sent, Ok(Ok(())))).await
}
