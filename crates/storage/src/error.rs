use waybill_domain::ErrorClass;

/// Why Postgres did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The connection, the pool or the statement failed.
    #[error(transparent)]
    Sqlx(#[from] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("migrate the schema: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// The schema is older or newer than this program.
    #[error("schema version is {found}, this program needs {needed}: run `waybill migrate`")]
    SchemaVersion {
        /// The newest migration that was applied, 0 for none.
        found: i64,
        /// The newest migration this program knows.
        needed: i64,
    },
    /// Postgres did not answer in time.
    #[error("no answer from postgres within {0:?}")]
    Timeout(std::time::Duration),
    /// Other transactions kept changing the same rows.
    #[error("lost against other transactions, every time it was tried")]
    Contended,
    /// A row holds what no version of this program writes.
    #[error("corrupt row: {0}")]
    Corrupt(String),
}

impl StorageError {
    /// Says what the failure means for a retry.
    ///
    /// A connection that broke while a commit was under way leaves the outcome unknown;
    /// all writes here can be done twice, so that is said and nothing more.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Sqlx(error) => sqlx_class(error),
            Self::Timeout(_) => ErrorClass::Unknown,
            Self::Contended => ErrorClass::Transient,
            Self::Migrate(_) | Self::SchemaVersion { .. } | Self::Corrupt(_) => ErrorClass::Permanent,
        }
    }

    /// Says whether Postgres took the transaction back as the victim of a deadlock or of a
    /// serialization failure: certainly not done, and worth another try at once.
    pub(crate) fn was_rolled_back(&self) -> bool {
        let Self::Sqlx(sqlx::Error::Database(database)) = self else {
            return false;
        };
        matches!(database.code().as_deref(), Some("40P01" | "40001"))
    }
}

fn sqlx_class(error: &sqlx::Error) -> ErrorClass {
    match error {
        sqlx::Error::PoolTimedOut => ErrorClass::Transient,
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => ErrorClass::Unknown,
        sqlx::Error::Database(database) => match database.code().as_deref().unwrap_or_default() {
            // Deadlock, serialization failure, lock timeout, cancelled statement, too many
            // connections, out of memory or disk, administrator shutdown and start-up.
            code if code.starts_with("40") || code.starts_with("53") || code.starts_with("57") || code == "55P03" => {
                ErrorClass::Transient
            }
            code if code.starts_with("08") => ErrorClass::Unknown,
            _ => ErrorClass::Permanent,
        },
        _ => ErrorClass::Permanent,
    }
}
