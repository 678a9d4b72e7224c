//! Following one job to its end, through restarts of the service.

use std::time::Duration;

use tokio::time::sleep;
use tonic::Status;
use waybill_api::extraction::v1::extraction_service_client::ExtractionServiceClient;
use waybill_api::extraction::v1::{Job, JobState, WatchJobRequest};
use waybill_domain::Backoff;

use super::progress::Progress;
use crate::client::{self, Target, may_pass};
use waybill_runtime::grpc::Peer;

/// How often the stream is taken up again without a word of the job in between. With the
/// pauses that is half a minute: what a restart of the service takes, and some more.
const TRIES: u32 = 10;

const RECONNECT: Backoff = Backoff { base: Duration::from_millis(200), max: Duration::from_secs(5) };

/// How one stream ended.
enum Ended {
    /// The job has ended.
    Done(Job),
    /// The stream broke.
    Broken { status: Status, answered: bool },
}

/// Follows a job until it is done, failed or cancelled. `see` is given the job each time
/// that it has changed.
///
/// # Errors
/// If the service stays away, or refuses; or what `see` returns.
pub(crate) async fn follow(
    client: &mut ExtractionServiceClient<Peer>,
    target: &Target,
    id: &str,
    progress: &mut Progress,
    mut see: impl FnMut(&Job) -> anyhow::Result<()>,
) -> anyhow::Result<Job> {
    let mut failures = 0_u32;
    loop {
        let status = match stream(client, id, progress, &mut see).await? {
            Ended::Done(job) => return Ok(job),
            Ended::Broken { status, answered } => {
                if answered {
                    failures = 0;
                }
                status
            }
        };
        failures += 1;
        if !may_pass(status.code()) || failures > TRIES {
            return Err(target.explain(&status));
        }
        if failures == 1 {
            let reason = client::describe(status.code(), status.message());
            progress.say(&format!("connection lost ({reason}): trying again"));
        }
        let pause = RECONNECT.wait(failures, &mut rand::rng());
        sleep(pause).await;
    }
}

async fn stream(
    client: &mut ExtractionServiceClient<Peer>,
    id: &str,
    progress: &mut Progress,
    see: &mut impl FnMut(&Job) -> anyhow::Result<()>,
) -> anyhow::Result<Ended> {
    let mut answered = false;
    let mut jobs = match client.watch_job(WatchJobRequest { id: id.to_owned() }).await {
        Ok(jobs) => jobs.into_inner(),
        Err(status) => return Ok(Ended::Broken { status, answered }),
    };
    loop {
        let job = match jobs.message().await {
            Ok(Some(job)) => job,
            Ok(None) => {
                let status = Status::unavailable("the service closed the stream");
                return Ok(Ended::Broken { status, answered });
            }
            Err(status) => return Ok(Ended::Broken { status, answered }),
        };
        answered = true;
        progress.see(&job);
        see(&job)?;
        if has_ended(job.state()) {
            return Ok(Ended::Done(job));
        }
    }
}

const fn has_ended(state: JobState) -> bool {
    match state {
        JobState::Done | JobState::Failed | JobState::Cancelled => true,
        JobState::Unspecified | JobState::Queued | JobState::Running => false,
    }
}
