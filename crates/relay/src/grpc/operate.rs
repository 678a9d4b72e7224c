//! Pausing, resuming and draining a sink.

use std::time::Duration;

use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use waybill_api::relay::v1::{
    self as proto, BeginBulkLoadRequest, BeginBulkLoadResponse, DrainRequest, DrainResponse, EndBulkLoadRequest,
    EndBulkLoadResponse, PauseRequest, PauseResponse, ResumeRequest, ResumeResponse,
};
use waybill_domain::SinkName;
use waybill_runtime::status;
use waybill_storage::{
    Db, bulk, failures,
    pauses::{self, Pause},
    status::sink_lag,
};

use super::{RelayGrpc, storage, timestamp};

const PAUSED_BY_BYTES_MAX: usize = 128;
const REASON_BYTES_MAX: usize = 1_024;
const PAUSE_TTL_MAX: Duration = Duration::from_secs(24 * 3_600);
const BULK_ID_BYTES_MAX: usize = 128;
const BULK_TTL: Duration = Duration::from_secs(60);
const BULK_TTL_MAX: Duration = Duration::from_secs(3_600);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(300);
const DRAIN_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3_600);
/// Between two looks at what is left: counting it is work.
const DRAIN_INTERVAL: Duration = Duration::from_millis(250);

impl RelayGrpc {
    pub(super) async fn pause_sink(&self, request: PauseRequest) -> Result<PauseResponse, Status> {
        let sink = sink("sink", &request.sink)?;
        text("paused_by", &request.paused_by, 1, PAUSED_BY_BYTES_MAX)?;
        text("reason", &request.reason, 0, REASON_BYTES_MAX)?;
        let ttl = duration("ttl", request.ttl, PAUSE_TTL_MAX)?;
        let (pause, changed) = pauses::pause(&self.db, sink, &request.paused_by, &request.reason, ttl)
            .await
            .map_err(|error| storage(&error))?;
        if changed {
            tracing::warn!(%sink, paused_by = %request.paused_by, reason = %request.reason, "sink paused");
        }
        // Relays look when they are rung, and at the latest when they poll.
        self.bell.ring();
        Ok(PauseResponse { pause: Some(paused(&pause)), changed })
    }

    pub(super) async fn resume_sink(&self, request: ResumeRequest) -> Result<ResumeResponse, Status> {
        let sink = sink("sink", &request.sink)?;
        text("paused_by", &request.paused_by, 0, PAUSED_BY_BYTES_MAX)?;
        let by = Some(request.paused_by.as_str()).filter(|by| !by.is_empty());
        let pause = pauses::resume(&self.db, sink, by).await.map_err(|error| storage(&error))?;
        if let Some(pause) = &pause {
            tracing::warn!(%sink, paused_by = %pause.paused_by, "sink resumed");
        }
        self.bell.ring();
        Ok(ResumeResponse { pause: pause.as_ref().map(paused) })
    }

    pub(super) async fn begin_bulk(&self, request: &BeginBulkLoadRequest) -> Result<BeginBulkLoadResponse, Status> {
        text("id", &request.id, 1, BULK_ID_BYTES_MAX)?;
        let ttl = duration("ttl", request.ttl, BULK_TTL_MAX)?.unwrap_or(BULK_TTL);
        bulk::begin(&self.db, &request.id, ttl).await.map_err(|error| storage(&error))?;
        self.bell.ring();
        Ok(BeginBulkLoadResponse {})
    }

    pub(super) async fn end_bulk(&self, request: &EndBulkLoadRequest) -> Result<EndBulkLoadResponse, Status> {
        text("id", &request.id, 1, BULK_ID_BYTES_MAX)?;
        let ended = bulk::end(&self.db, &request.id).await.map_err(|error| storage(&error))?;
        self.bell.ring();
        Ok(EndBulkLoadResponse { ended })
    }

    pub(super) fn drain_sink(
        &self,
        request: &DrainRequest,
    ) -> Result<ReceiverStream<Result<DrainResponse, Status>>, Status> {
        let sink = sink("sink", &request.sink)?;
        let timeout = duration("timeout", request.timeout, DRAIN_TIMEOUT_MAX)?.unwrap_or(DRAIN_TIMEOUT);
        let until_still = request.until_still;
        let (sender, receiver) = mpsc::channel(1);
        let (db, stopping) = (self.db.clone(), self.stopping.clone());
        tokio::spawn(async move {
            let deadline = Instant::now() + timeout;
            let drained = stopping.run_until_cancelled(drain(&db, sink, until_still, deadline, &sender)).await;
            let last = match drained {
                Some(Ok(last)) => Ok(last),
                Some(Err(status)) => Err(status),
                None => Err(status::unavailable("SHUTTING_DOWN", "the relay is stopping: ask another one", None)),
            };
            // Nobody listens any more? Then nobody has to be told.
            let _ = sender.send(last).await;
        });
        Ok(ReceiverStream::new(receiver))
    }
}

/// Reads a duration; zero is none. Field by field: converting one of the wire's extremes panics.
fn duration(field: &str, value: Option<prost_types::Duration>, most: Duration) -> Result<Option<Duration>, Status> {
    let Some(value) = value else { return Ok(None) };
    match (u64::try_from(value.seconds), u32::try_from(value.nanos)) {
        (Ok(0), Ok(0)) => Ok(None),
        (Ok(seconds), Ok(nanos @ 0..1_000_000_000)) if Duration::new(seconds, nanos) <= most => {
            Ok(Some(Duration::new(seconds, nanos)))
        }
        _ => Err(status::invalid_argument(field, format!("is out of range: 0 to {} hours", most.as_secs() / 3_600))),
    }
}

/// Reports what is left until nothing is, or `deadline` has passed; returns the last report.
async fn drain(
    db: &Db,
    sink: SinkName,
    until_still: bool,
    deadline: Instant,
    sender: &mpsc::Sender<Result<DrainResponse, Status>>,
) -> Result<DrainResponse, Status> {
    let mut last = None;
    loop {
        let mut left = left(db, sink).await?;
        if left.drained || until_still && left.still || Instant::now() >= deadline {
            left.done = true;
            return Ok(left);
        }
        if last.as_ref() != Some(&left) {
            if sender.send(Ok(left.clone())).await.is_err() {
                return Ok(left);
            }
            last = Some(left);
        }
        tokio::time::sleep_until((Instant::now() + DRAIN_INTERVAL).min(deadline)).await;
    }
}

async fn left(db: &Db, sink: SinkName) -> Result<DrainResponse, Status> {
    let lag = sink_lag(db, sink).await.map_err(|error| storage(&error))?;
    let retry_count = failures::parked_count(db, sink).await.map_err(|error| storage(&error))?;
    let dead_letter_count = failures::letter_count(db, sink).await.map_err(|error| storage(&error))?;
    let pause = pauses::paused(db, sink).await.map_err(|error| storage(&error))?;
    let lag_rows = lag.lanes.iter().map(|lane| lane.lag_rows).sum();
    Ok(DrainResponse {
        done: false,
        drained: lag_rows == 0 && retry_count == 0,
        lag_rows,
        lag_rows_capped: lag.capped,
        retry_count,
        dead_letter_count,
        still: pause.is_some() && pauses::is_still(db, sink).await.map_err(|error| storage(&error))?,
        pause: pause.as_ref().map(paused),
    })
}

pub(super) fn paused(pause: &Pause) -> proto::Pause {
    proto::Pause {
        paused_by: pause.paused_by.clone(),
        reason: pause.reason.clone(),
        pause_time: Some(timestamp(pause.paused_at)),
        expire_time: pause.until.map(timestamp),
    }
}

pub(super) fn sink(field: &str, name: &str) -> Result<SinkName, Status> {
    name.parse().map_err(|_| status::invalid_argument(field, format!("is {:?}: qdrant or llm", short(name))))
}

pub(super) fn text(field: &str, value: &str, least: usize, most: usize) -> Result<(), Status> {
    if value.len() < least {
        return Err(status::invalid_argument(field, "is empty: fill it in"));
    }
    if value.len() > most {
        return Err(status::invalid_argument(field, format!("has {} bytes: at most {most}", value.len())));
    }
    if value.contains('\0') {
        return Err(status::invalid_argument(field, "has a NUL: leave it out"));
    }
    Ok(())
}

/// A hostile value is not carried into answers whole.
pub(super) fn short(value: &str) -> String {
    value.chars().take(80).collect()
}
