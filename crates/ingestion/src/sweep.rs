//! Taking back what nobody confirmed in time: the puts whose process died, and those whose
//! caller went away.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use waybill_storage::sources;

use crate::service::Ingestion;

/// How often it is looked. An index holds provisional sources only: it costs next to nothing.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long a put has for taking its source back itself: it knows best when that is done in
/// the vector store too, and tells its caller.
const GRACE: Duration = Duration::from_secs(5);

/// Sources of one statement. A source may have thousands of chunks.
const STEP: i64 = 16;

/// Sweeps until `stopping`. Any number of processes may do so.
pub(crate) async fn run(ingestion: Ingestion, stopping: CancellationToken) -> anyhow::Result<()> {
    let mut failing = false;
    let sweeping = async {
        loop {
            match sources::sweep(ingestion.db(), GRACE, STEP).await {
                Ok(0) => failing = false,
                Ok(count) => {
                    failing = false;
                    ingestion.ring();
                    tracing::info!(count, "took provisional sources back");
                    if count == STEP.unsigned_abs() {
                        continue;
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "provisional sources are not swept, to be tried again");
                    }
                }
            }
            sleep(INTERVAL).await;
        }
    };
    stopping.run_until_cancelled(sweeping).await;
    Ok(())
}
