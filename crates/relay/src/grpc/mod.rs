//! RelayService: proto to domain and back.

mod letters;
mod operate;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use prost_types::Timestamp;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use waybill_api::relay::v1::{
    BeginBulkLoadRequest, BeginBulkLoadResponse, DeadLetter, DisposeDeadLettersRequest, DisposeDeadLettersResponse,
    DrainRequest, DrainResponse, EndBulkLoadRequest, EndBulkLoadResponse, GetDeadLetterRequest, GetStatusRequest,
    GetStatusResponse, LaneStatus, ListDeadLettersRequest, ListDeadLettersResponse, Owner, PauseRequest, PauseResponse,
    RecoverRequest, ReindexRequest, ResumeRequest, ResumeResponse, SinkStatus, VerifyConsistencyRequest,
    relay_service_server::RelayService,
};
use waybill_domain::{RelayId, SinkName};
use waybill_llm_queue::LlmQueue;
use waybill_outbox::Stats;
use waybill_runtime::status as answers;
use waybill_storage::{
    Bell, Db, StorageError,
    failures::{self, Disposal},
    pauses,
    status::{SinkLag, sink_lag},
};

use crate::grpc_verify::{ReindexStream, VerifyGrpc, VerifyStream};

/// When to try again after Postgres was away or busy.
const RETRY_AFTER: std::time::Duration = std::time::Duration::from_secs(1);

pub(crate) struct RelayGrpc {
    db: Db,
    owner: RelayId,
    stats: Vec<(SinkName, Stats)>,
    queue: LlmQueue,
    bell: Bell,
    stopping: CancellationToken,
    verify: VerifyGrpc,
}

impl RelayGrpc {
    pub(crate) fn new(
        db: Db,
        queue: LlmQueue,
        owner: RelayId,
        stats: Vec<(SinkName, Stats)>,
        verify: VerifyGrpc,
        stopping: CancellationToken,
    ) -> Self {
        let bell = Bell::start(&db);
        Self { db, owner, stats, queue, bell, stopping, verify }
    }

    async fn sink_status(
        &self,
        sink: SinkName,
        stats: &Stats,
        lag: &SinkLag,
        with_lanes: bool,
    ) -> Result<SinkStatus, Status> {
        let pause = pauses::paused(&self.db, sink).await.map_err(|error| storage(&error))?;
        let retry_count = failures::parked_count(&self.db, sink).await.map_err(|error| storage(&error))?;
        let dead_letter_count = failures::letter_count(&self.db, sink).await.map_err(|error| storage(&error))?;
        let pause = pause.as_ref().map(operate::paused);
        Ok(SinkStatus { pause, retry_count, dead_letter_count, ..sink_status(sink, stats, lag, with_lanes) })
    }
}

fn storage(error: &StorageError) -> Status {
    tracing::warn!(%error, class = %error.class(), "postgres didn't do what it was asked");
    answers::from_class(error.class(), "postgres doesn't answer", Some(RETRY_AFTER))
}

#[tonic::async_trait]
impl RelayService for RelayGrpc {
    async fn get_status(&self, request: Request<GetStatusRequest>) -> Result<Response<GetStatusResponse>, Status> {
        let with_lanes = request.into_inner().with_lanes;
        let mut observed_at = None;
        let mut sinks = Vec::with_capacity(self.stats.len());
        for (sink, stats) in &self.stats {
            let lag = sink_lag(&self.db, *sink).await.map_err(|error| storage(&error))?;
            observed_at = Some(timestamp(lag.now));
            sinks.push(self.sink_status(*sink, stats, &lag, with_lanes).await?);
        }
        let scrub = Some(self.verify.scrub_status().await?);
        let build = self.verify.build_status().await?;
        let instance = self.owner.to_string();
        Ok(Response::new(GetStatusResponse { instance, observe_time: observed_at, sinks, scrub, build }))
    }

    async fn pause(&self, request: Request<PauseRequest>) -> Result<Response<PauseResponse>, Status> {
        self.pause_sink(request.into_inner()).await.map(Response::new)
    }

    async fn resume(&self, request: Request<ResumeRequest>) -> Result<Response<ResumeResponse>, Status> {
        self.resume_sink(request.into_inner()).await.map(Response::new)
    }

    type DrainStream = ReceiverStream<Result<DrainResponse, Status>>;

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<Self::DrainStream>, Status> {
        self.drain_sink(&request.into_inner()).map(Response::new)
    }

    async fn begin_bulk_load(
        &self,
        request: Request<BeginBulkLoadRequest>,
    ) -> Result<Response<BeginBulkLoadResponse>, Status> {
        self.begin_bulk(&request.into_inner()).await.map(Response::new)
    }

    async fn end_bulk_load(
        &self,
        request: Request<EndBulkLoadRequest>,
    ) -> Result<Response<EndBulkLoadResponse>, Status> {
        self.end_bulk(&request.into_inner()).await.map(Response::new)
    }

    async fn list_dead_letters(
        &self,
        request: Request<ListDeadLettersRequest>,
    ) -> Result<Response<ListDeadLettersResponse>, Status> {
        self.letters(request.into_inner()).await.map(Response::new)
    }

    async fn get_dead_letter(&self, request: Request<GetDeadLetterRequest>) -> Result<Response<DeadLetter>, Status> {
        self.letter(&request.into_inner()).await.map(Response::new)
    }

    type RedriveDeadLettersStream = ReceiverStream<Result<DisposeDeadLettersResponse, Status>>;

    async fn redrive_dead_letters(
        &self,
        request: Request<DisposeDeadLettersRequest>,
    ) -> Result<Response<Self::RedriveDeadLettersStream>, Status> {
        self.dispose(request.into_inner(), Disposal::Redrive).await.map(Response::new)
    }

    type DiscardDeadLettersStream = ReceiverStream<Result<DisposeDeadLettersResponse, Status>>;

    async fn discard_dead_letters(
        &self,
        request: Request<DisposeDeadLettersRequest>,
    ) -> Result<Response<Self::DiscardDeadLettersStream>, Status> {
        self.dispose(request.into_inner(), Disposal::Discard).await.map(Response::new)
    }

    type VerifyConsistencyStream = VerifyStream;

    async fn verify_consistency(
        &self,
        request: Request<VerifyConsistencyRequest>,
    ) -> Result<Response<VerifyStream>, Status> {
        self.verify.verify(request.into_inner()).await
    }

    type RecoverStream = VerifyStream;

    async fn recover(&self, request: Request<RecoverRequest>) -> Result<Response<VerifyStream>, Status> {
        self.verify.recover(request.into_inner()).await
    }

    type ReindexStream = ReindexStream;

    async fn reindex(&self, request: Request<ReindexRequest>) -> Result<Response<ReindexStream>, Status> {
        self.verify.reindex(request.into_inner()).await
    }
}

fn sink_status(sink: SinkName, stats: &Stats, lag: &SinkLag, with_lanes: bool) -> SinkStatus {
    let stats = stats.read();
    let mut owners: BTreeMap<String, Owner> = BTreeMap::new();
    for lane in &lag.lanes {
        let Some(owner) = lane.owner else { continue };
        let entry = owners.entry(owner.to_string()).or_insert_with(|| Owner {
            instance: owner.to_string(),
            lane_count: 0,
            lease_until: lane.lease_until.map(timestamp),
        });
        entry.lane_count += 1;
    }
    let oldest = lag.oldest_unconfirmed_at.map(|at| (lag.now - at).max(chrono::TimeDelta::zero()));
    let lanes = lag.lanes.iter().filter(|_| with_lanes).map(|lane| LaneStatus {
        lane: lane.lane.get().into(),
        owner: lane.owner.map(|owner| owner.to_string()).unwrap_or_default(),
        epoch: lane.epoch,
        closed_seq: lane.closed_seq,
        lag_rows: lane.lag_rows,
    });
    SinkStatus {
        sink: sink.as_str().to_owned(),
        lag_rows: lag.lanes.iter().map(|lane| lane.lag_rows).sum(),
        lag_rows_capped: lag.capped,
        oldest_unconfirmed: oldest
            .map(|age| prost_types::Duration { seconds: age.num_seconds(), nanos: age.subsec_nanos() }),
        confirmed_per_second: stats.confirmed_per_second,
        confirmed_total: i64::try_from(stats.confirmed_total).unwrap_or(i64::MAX),
        in_flight: i64::try_from(stats.in_flight).unwrap_or(i64::MAX),
        last_error: stats.last_error,
        owners: owners.into_values().collect(),
        lanes: lanes.collect(),
        breaker: stats.breaker.as_str().to_owned(),
        ..SinkStatus::default()
    }
}

pub(crate) fn timestamp(at: DateTime<Utc>) -> Timestamp {
    Timestamp { seconds: at.timestamp(), nanos: i32::try_from(at.timestamp_subsec_nanos()).unwrap_or(0) }
}
