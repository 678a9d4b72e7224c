//! Documents over the `PutSources` stream, through disconnections.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use waybill_api::ingestion::v1::ingestion_service_client::IngestionServiceClient;
use waybill_api::ingestion::v1::put_sources_response::Result as PutResult;
use waybill_api::ingestion::v1::{PutError, PutSourcesRequest, PutSourcesResponse};
use waybill_domain::Backoff;

use super::progress::Progress;
use super::read::{Document, Item, Outcome};
use super::report::{Refusal, Report};
use super::upload;
use super::window::Window;
use crate::client::{self, Target, may_pass};
use waybill_runtime::grpc::Peer;

/// Messages handed to the connection ahead of its flow control. Few: the window is what
/// bounds an import, this only keeps the socket fed.
const HANDOVER: usize = 8;

/// The service's messages may hold 4 MiB (gRPC's usual limit). What is larger than this
/// goes in parts.
const MAX_STREAMED_BODY: usize = 2 * 1024 * 1024;

/// Restarting a service takes seconds, moving it to another machine a minute or two.
const GIVE_UP_AFTER: Duration = Duration::from_secs(180);

const RECONNECT: Backoff = Backoff { base: Duration::from_millis(200), max: Duration::from_secs(5) };

/// How long answers are awaited after Ctrl-C.
const LAST_ANSWERS: Duration = Duration::from_secs(10);

/// Sends documents of one import.
pub(super) struct Sender<'a> {
    client: IngestionServiceClient<Peer>,
    target: &'a Target,
    project: &'a str,
    window: Window,
    report: &'a mut Report,
    progress: &'a mut Progress,
}

/// How one connection ended.
enum Ended {
    /// Everything was sent and answered.
    Done,
    /// Ctrl-C, and the time for last answers is over.
    Interrupted,
    /// The connection broke.
    Broken { status: Status, answered: bool },
}

/// Where the documents come from, and whether there are more.
struct Input {
    items: mpsc::Receiver<Item>,
    open: bool,
}

impl<'a> Sender<'a> {
    pub(super) fn new(
        client: IngestionServiceClient<Peer>,
        target: &'a Target,
        project: &'a str,
        report: &'a mut Report,
        progress: &'a mut Progress,
    ) -> Self {
        let window = Window::new(project.to_owned(), report.job_id);
        Self { client, target, project, window, report, progress }
    }

    /// Sends everything, and returns when each document was answered, given up, or
    /// `stop` fired and the answers on their way have come.
    ///
    /// # Errors
    /// If the service can't be reached for three minutes, or refuses the stream.
    pub(super) async fn run(mut self, items: mpsc::Receiver<Item>, stop: &CancellationToken) -> anyhow::Result<()> {
        let mut input = Input { items, open: true };
        let mut failures = 0_u32;
        let mut last_answer = Instant::now();
        loop {
            let status = match self.connection(&mut input, stop).await {
                Ended::Done => return Ok(()),
                Ended::Interrupted => {
                    self.report.interrupted = true;
                    return Ok(());
                }
                Ended::Broken { status, answered } => {
                    if answered {
                        failures = 0;
                        last_answer = Instant::now();
                    }
                    status
                }
            };
            failures += 1;
            if !may_pass(status.code()) || last_answer.elapsed() > GIVE_UP_AFTER {
                return Err(self.target.explain(&status));
            }
            if failures == 1 {
                let reason = client::describe(status.code(), status.message());
                self.progress.say(&format!("connection lost ({reason}): trying again"));
            }
            tokio::select! {
                () = sleep(RECONNECT.wait(failures, &mut rand::rng())) => {}
                () = stop.cancelled() => {
                    self.report.interrupted = true;
                    return Ok(());
                }
            }
            self.window.rewind();
        }
    }

    async fn connection(&mut self, input: &mut Input, stop: &CancellationToken) -> Ended {
        let (requests, mut answers) = open(self.client.clone());
        let mut answered = false;
        let mut sendable = true;
        let mut last_call: Option<Instant> = None;
        loop {
            if self.window.is_empty() && !input.open {
                if last_call.is_some() {
                    self.report.interrupted = true;
                }
                return Ended::Done;
            }
            let due = self.window.next_due();
            tokio::select! {
                answer = answers.recv() => match answer {
                    Some(Ok(answer)) => {
                        answered = true;
                        self.settle(answer);
                    }
                    Some(Err(status)) => return Ended::Broken { status, answered },
                    None => {
                        let status = Status::unavailable("the service closed the stream");
                        return Ended::Broken { status, answered };
                    }
                },
                permit = requests.reserve(), if sendable && self.window.has_unsent() => {
                    match permit {
                        Ok(permit) => {
                            if let Some(message) = self.window.take() {
                                permit.send(message);
                            }
                        }
                        // The stream ended: its last answer says why.
                        Err(_) => sendable = false,
                    }
                }
                item = input.items.recv(), if input.open && self.window.has_room() => match item {
                    Some(item) => self.take(item).await,
                    None => input.open = false,
                },
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.window.resume(Instant::now());
                }
                () = stop.cancelled(), if last_call.is_none() => {
                    last_call = Some(Instant::now() + LAST_ANSWERS);
                    input.open = false;
                    input.items.close();
                    let left = self.window.len();
                    self.progress.say(&format!("stopping: {left} documents are on their way"));
                }
                () = sleep_until(last_call.unwrap_or_else(Instant::now)), if last_call.is_some() => {
                    return Ended::Interrupted;
                }
            }
        }
    }

    async fn take(&mut self, item: Item) {
        self.report.see(item.read.uri());
        match item.read {
            Outcome::Skipped(refusal) => {
                self.report.skip(refusal);
                self.progress.done(item.input_bytes);
            }
            Outcome::Failed(refusal) => {
                self.report.fail(refusal);
                self.progress.done(item.input_bytes);
            }
            Outcome::Document(document) if document.body.len() > MAX_STREAMED_BODY => {
                self.upload(document).await;
                self.progress.done(item.input_bytes);
            }
            Outcome::Document(document) => self.window.add(document, item.input_bytes),
        }
    }

    /// Sends a large document by itself. The stream waits: there are few of them.
    async fn upload(&mut self, document: Document) {
        let uri = document.uri.clone();
        match upload::run(&mut self.client, self.project, self.report.job_id, document).await {
            Ok(response) => self.report.put(&response),
            Err(status) => {
                let reason = client::describe(status.code(), status.message());
                self.report.fail(Refusal { uri, reason });
            }
        }
    }

    fn settle(&mut self, answer: PutSourcesResponse) {
        let sequence = answer.sequence;
        let failure = match answer.result {
            Some(PutResult::Put(response)) => {
                if let Some((_, bytes)) = self.window.settle(sequence) {
                    self.report.put(&response);
                    self.progress.done(bytes);
                }
                return;
            }
            Some(PutResult::Error(error)) => error,
            None => PutError {
                code: Code::Unimplemented.into(),
                message: "the service answered what this program doesn't know".to_owned(),
                ..PutError::default()
            },
        };
        let code = Code::from(failure.code);
        if code == Code::ResourceExhausted
            && let Some(pause) = failure.retry_after.and_then(|pause| Duration::try_from(pause).ok())
            && self.window.hold_back(sequence, pause, Instant::now())
        {
            return;
        }
        if may_pass(code) && self.window.retry(sequence, Instant::now()) {
            return;
        }
        if let Some((uri, bytes)) = self.window.settle(sequence) {
            let reason = client::describe(code, &failure.message);
            self.report.fail(Refusal { uri, reason });
            self.progress.done(bytes);
        }
    }
}

/// Opens a stream. What goes into the first end is sent; the answers, and why the stream
/// ended, come out of the second.
fn open(
    mut client: IngestionServiceClient<Peer>,
) -> (mpsc::Sender<PutSourcesRequest>, mpsc::Receiver<Result<PutSourcesResponse, Status>>) {
    let (requests, outgoing) = mpsc::channel(HANDOVER);
    let (incoming, answers) = mpsc::channel(HANDOVER);
    // A task of its own, because a server may wait for the first message before it answers
    // the call. It ends with the stream, which ends when either end is dropped.
    tokio::spawn(async move {
        let mut stream = match client.put_sources(ReceiverStream::new(outgoing)).await {
            Ok(response) => response.into_inner(),
            Err(status) => {
                // Nobody listens if the import ended meanwhile.
                let _ = incoming.send(Err(status)).await;
                return;
            }
        };
        loop {
            let answer = match stream.message().await {
                Ok(Some(answer)) => Ok(answer),
                Ok(None) => return,
                Err(status) => Err(status),
            };
            let is_last = answer.is_err();
            if incoming.send(answer).await.is_err() || is_last {
                return;
            }
        }
    });
    (requests, answers)
}
