//! Deletes what is settled and old, in small steps, beside the hot path.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use waybill_domain::{Lane, SinkName};
use waybill_storage::{Db, outbox};

use crate::{EngineConfig, sink::Holdings};

/// Rows deleted in one statement: a few milliseconds of work.
const STEP_ROWS: i64 = 2_000;
/// The pause between two steps, so that delivery has the disk to itself most of the time.
const STEP_PAUSE: Duration = Duration::from_millis(50);
/// The pause when nothing is left to trim.
const IDLE_PAUSE: Duration = Duration::from_secs(10);

/// Trims for as long as this relay holds the first lane, so that one relay does it.
pub(crate) async fn run(db: Db, sink: SinkName, config: EngineConfig, holdings: Holdings, stop: CancellationToken) {
    let first_lane = Lane::all().next();
    let retention = Duration::from_secs(config.retention_s);
    let tombstones = Duration::from_secs(config.tombstone_retention_s);
    let mut after = 0;
    loop {
        let mut pause = IDLE_PAUSE;
        if first_lane.is_some_and(|lane| holdings.holds(lane)) {
            match outbox::trim(&db, sink, after, retention, STEP_ROWS).await {
                Ok((upto, rows)) => {
                    after = upto;
                    if rows > 0 {
                        tracing::debug!(%sink, rows, upto, "outbox trimmed");
                        pause = STEP_PAUSE;
                    }
                }
                Err(error) => tracing::debug!(%sink, %error, "outbox not trimmed, tried again"),
            }
            match outbox::trim_tombstones(&db, tombstones, STEP_ROWS).await {
                Ok(rows) if rows > 0 => pause = STEP_PAUSE,
                Ok(_) => {}
                Err(error) => tracing::debug!(%sink, %error, "tombstones not trimmed, tried again"),
            }
        } else {
            // Whoever holds it may be behind or ahead: begin anew when it comes back.
            after = 0;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}
