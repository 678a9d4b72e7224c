//! RelayService: proto to domain and back.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use prost_types::Timestamp;
use tonic::{Request, Response, Status};
use waybill_api::relay::v1::{
    GetStatusRequest, GetStatusResponse, LaneStatus, Owner, RecoverRequest, ReindexRequest, SinkStatus,
    VerifyConsistencyRequest, relay_service_server::RelayService,
};
use waybill_domain::{RelayId, SinkName};
use waybill_outbox::Stats;
use waybill_runtime::status as answers;
use waybill_storage::{
    Db,
    status::{SinkLag, sink_lag},
};

use crate::grpc_verify::{ReindexStream, VerifyGrpc, VerifyStream};

pub(crate) struct RelayGrpc {
    db: Db,
    owner: RelayId,
    stats: Vec<(SinkName, Stats)>,
    verify: VerifyGrpc,
}

impl RelayGrpc {
    pub(crate) const fn new(db: Db, owner: RelayId, stats: Vec<(SinkName, Stats)>, verify: VerifyGrpc) -> Self {
        Self { db, owner, stats, verify }
    }
}

#[tonic::async_trait]
impl RelayService for RelayGrpc {
    async fn get_status(&self, request: Request<GetStatusRequest>) -> Result<Response<GetStatusResponse>, Status> {
        let with_lanes = request.into_inner().with_lanes;
        let mut observed_at = None;
        let mut sinks = Vec::with_capacity(self.stats.len());
        for (sink, stats) in &self.stats {
            let lag = sink_lag(&self.db, *sink).await.map_err(|error| {
                tracing::warn!(%error, class = %error.class(), "status not read");
                answers::from_class(error.class(), "postgres doesn't answer", None)
            })?;
            observed_at = Some(timestamp(lag.now));
            sinks.push(sink_status(*sink, stats, &lag, with_lanes));
        }
        let scrub = Some(self.verify.scrub_status().await?);
        let response = GetStatusResponse { instance: self.owner.to_string(), observe_time: observed_at, sinks, scrub };
        Ok(Response::new(response))
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
    }
}

pub(crate) fn timestamp(at: DateTime<Utc>) -> Timestamp {
    Timestamp { seconds: at.timestamp(), nanos: i32::try_from(at.timestamp_subsec_nanos()).unwrap_or(0) }
}
