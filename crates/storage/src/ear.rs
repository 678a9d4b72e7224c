//! Hearing that a writer has committed. Only a hint: the relay polls too.

use sqlx::postgres::PgListener;

use crate::{Db, Result};

/// The channel that writers ring after their commits.
pub const OUTBOX_CHANNEL: &str = "waybill_outbox";

/// Listens on a connection of its own.
pub struct Ear(PgListener);

impl Ear {
    /// Begins to listen.
    ///
    /// # Errors
    /// If Postgres is away, or is behind a pooler that doesn't carry LISTEN.
    pub async fn open(db: &Db) -> Result<Self> {
        let mut listener = PgListener::connect_with(db.pool().inner()).await?;
        listener.listen(OUTBOX_CHANNEL).await?;
        Ok(Self(listener))
    }

    /// Waits for the next ring. Returns after a broken connection was replaced, too: a ring
    /// may have been missed.
    ///
    /// # Errors
    /// If the connection broke and could not be replaced.
    pub async fn heard(&mut self) -> Result<()> {
        self.0.try_recv().await?;
        Ok(())
    }
}
