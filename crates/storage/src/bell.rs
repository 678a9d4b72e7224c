//! Telling the relay that something was committed. Only a hint: the relay polls too.

use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};

use crate::{Db, OUTBOX_CHANNEL, Result, StorageError};

/// Rings closer together than this are one. NOTIFY takes a lock at commit that all databases
/// of an instance share: 200 a second and process are no burden, one for each write would be.
const COALESCE: Duration = Duration::from_millis(5);

/// How long one NOTIFY, with the connection it may need, is waited for.
const RING_TIMEOUT: Duration = Duration::from_secs(5);

/// After a failure. Nothing is lost meanwhile: the relay's own polling finds the rows.
const PAUSE: Duration = Duration::from_secs(1);

/// Rings the relay after commits, on a connection of its own and never inside a business
/// transaction. Clones share it; it ends with the last of them.
#[derive(Debug, Clone)]
pub struct Bell(mpsc::Sender<()>);

impl Bell {
    /// Starts the task that rings. Connects on the first ring. Needs a tokio runtime.
    #[must_use]
    pub fn start(db: &Db) -> Self {
        // Room for one: a ring that finds another waiting is told by it.
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(ring_on(db.clone(), receiver));
        Self(sender)
    }

    /// Rings, soon. Never waits and never fails.
    pub fn ring(&self) {
        // Full: a ring is waiting already. Closed: the runtime is going down.
        let _ = self.0.try_send(());
    }
}

async fn ring_on(db: Db, mut rings: mpsc::Receiver<()>) {
    let mut connection = None;
    while rings.recv().await.is_some() {
        let next = match timeout(RING_TIMEOUT, notify(&db, &mut connection)).await {
            Ok(Ok(())) => COALESCE,
            Ok(Err(error)) => {
                tracing::debug!(%error, "ring the relay");
                connection = None;
                PAUSE
            }
            Err(_) => {
                tracing::debug!(timeout_ms = RING_TIMEOUT.as_millis(), "ring the relay: no answer");
                connection = None;
                PAUSE
            }
        };
        sleep_until(Instant::now() + next).await;
    }
}

async fn notify(db: &Db, kept: &mut Option<PgConnection>) -> Result<()> {
    let connection = match kept {
        Some(connection) => connection,
        None => kept.insert(PgConnection::connect_with(&db.connect_options()).await.map_err(StorageError::from)?),
    };
    sqlx::query!("SELECT pg_notify($1, '')", OUTBOX_CHANNEL).execute(connection).await?;
    Ok(())
}
