//! Waking the engine when a writer has committed.

use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use waybill_storage::{Db, Ear};

/// The wait before a broken ear is opened again. Meanwhile the engine polls.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

/// A bell in this process. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Wake(Arc<Notify>);

impl Wake {
    /// Says that there may be something to read.
    pub fn ring(&self) {
        self.0.notify_one();
    }

    /// Waits for a ring. One that came while nobody waited is not lost.
    pub(crate) async fn rung(&self) {
        self.0.notified().await;
    }

    /// Rings whenever a writer notifies, until `stop` is cancelled.
    pub async fn listen(self, db: Db, stop: CancellationToken) {
        let mut reported = false;
        while !stop.is_cancelled() {
            let listen = async {
                let mut ear = Ear::open(&db).await?;
                loop {
                    self.ring();
                    ear.heard().await?;
                }
            };
            let ended: waybill_storage::Result<()> = tokio::select! {
                ended = listen => ended,
                () = stop.cancelled() => return,
            };
            if let Err(error) = ended
                && !reported
            {
                reported = true;
                tracing::warn!(%error, "can't listen for writers, polling meanwhile; set listen = false behind a transaction pooler");
            }
            tokio::select! {
                () = tokio::time::sleep(REOPEN_PAUSE) => {}
                () = stop.cancelled() => return,
            }
        }
    }
}
