//! What goes on meanwhile: the relays' counters, and a line of progress now and then.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::Deserialize;
use serde_json::Value;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Request;
use waybill_api::relay::v1::{GetStatusRequest, relay_service_client::RelayServiceClient};
use waybill_runtime::grpc::channel;
use waybill_testkit::psql;

use crate::{history::History, strike::Wipes, world::World};

/// How often the relays are asked.
const EVERY: Duration = Duration::from_millis(500);

/// How long a relay may take to answer: it counts its backlog.
const ANSWER: Duration = Duration::from_secs(5);

/// Between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// A comparison of everything that was wanted because of a wipe begins within this time.
const SCRUB_LATE: Duration = Duration::from_secs(60);

/// What relays have confirmed: by instance, since a restart begins anew.
#[derive(Debug, Default)]
pub(crate) struct Deliveries(Mutex<BTreeMap<(String, String), u64>>);

impl Deliveries {
    /// Returns how many keys were confirmed, by sink: at least, as the last moments before a
    /// kill are not seen.
    pub(crate) fn by_sink(&self) -> BTreeMap<String, u64> {
        let mut sums = BTreeMap::new();
        for ((_, sink), count) in &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            *sums.entry(sink.clone()).or_default() += count;
        }
        sums
    }

    /// Says whether nothing is left to deliver, by the word of a relay.
    pub(crate) async fn ask(&self, url: &str) -> anyhow::Result<bool> {
        let mut client = RelayServiceClient::new(channel(url)?);
        let mut request = Request::new(GetStatusRequest { with_lanes: false });
        request.set_timeout(ANSWER);
        let status = timeout(ANSWER, client.get_status(request)).await??.into_inner();
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for sink in &status.sinks {
            let count = u64::try_from(sink.confirmed_total).unwrap_or_default();
            counts.insert((status.instance.clone(), sink.sink.clone()), count);
        }
        Ok(status.sinks.iter().all(|sink| sink.lag_rows == 0))
    }
}

/// Asks the relays until `stopping`.
pub(crate) async fn relays(world: Arc<World>, deliveries: Arc<Deliveries>, stopping: CancellationToken) {
    while stopping.run_until_cancelled(sleep(EVERY)).await.is_some() {
        for url in &world.relay_urls {
            // One that is down has nothing to say.
            let _ = deliveries.ask(url).await;
        }
    }
}

/// A pass of the comparison in the background, as it left it in Postgres.
#[derive(Debug, Deserialize)]
struct Pass {
    begun_ago_s: f64,
    ended_at: String,
    tally: Value,
}

/// Looks at what the relays' own comparisons found, until `stopping`. Only after a wipe may they
/// find anything: a key that they had to mend was lost by a delivery.
pub(crate) async fn scrubs(world: Arc<World>, wipes: Arc<Wipes>, history: Arc<History>, stopping: CancellationToken) {
    let query = "SELECT row_to_json(t) FROM (SELECT extract(epoch FROM now() - last_started_at) AS begun_ago_s,
                     last_ended_at::text AS ended_at, last_tally AS tally
                 FROM relay_scrub WHERE last_ended_at IS NOT NULL AND last_started_at IS NOT NULL) t";
    let mut seen = String::new();
    while stopping.run_until_cancelled(sleep(EVERY)).await.is_some() {
        let Ok(text) = psql(&world.db_url, query).await else { continue };
        let Ok(pass) = serde_json::from_str::<Pass>(&text) else { continue };
        if pass.ended_at == seen {
            continue;
        }
        seen.clone_from(&pass.ended_at);
        history.count("comparisons by the relays");
        history.note("scrub", "ended", pass.tally.clone());
        let begun = history.now().saturating_sub(Duration::from_secs_f64(pass.begun_ago_s.max(0.0)));
        if !wipes.any_between(begun.saturating_sub(SCRUB_LATE), history.now()) {
            let text = "the relays compared everything, and no wipe explains why".to_owned();
            history.violation("scrub", text, pass.tally);
        }
    }
}

/// Says how far the run is, until `stopping`.
pub(crate) async fn progress(history: Arc<History>, length: Duration, stopping: CancellationToken) {
    while stopping.run_until_cancelled(sleep(PROGRESS_EVERY)).await.is_some() {
        eprintln!(
            "[{:5.0} s of {:.0}] faults {}, writes {}, deletions {}, searches {}, with a token {} of {} answered, unclear answers {}, violations {}",
            history.now().as_secs_f64(),
            length.as_secs_f64(),
            history.counted("faults"),
            history.counted("writes"),
            history.counted("deletions"),
            history.counted("searches"),
            history.counted("token searches answered"),
            history.counted("token searches"),
            history.counted("unclear answers"),
            history.violation_count(),
        );
    }
}
