//! What can go wrong, and the gRPC status a real Qdrant answers with.

use std::io;
use std::path::PathBuf;

use qdrant_edge::OperationError;
use tonic::Status;

/// Failure of one request.
///
/// The texts are those of a real server, so that callers that read them (as
/// `qdrant-client` users sometimes must) can't tell the difference.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("Not found: Collection `{0}` doesn't exist!")]
    CollectionNotFound(String),
    #[error("Not found: Alias {0} does not exists!")]
    AliasNotFound(String),
    #[error("Already exists: Collection `{0}` already exists!")]
    CollectionExists(String),
    #[error("Wrong input: {0}")]
    Invalid(String),
    #[error("{0} is not implemented by this server")]
    Unimplemented(String),
    #[error("Service internal error: {0}")]
    Internal(String),
    /// The engine gave up in the middle of something; its state is unknown.
    #[error("Service internal error: {0}")]
    Panicked(String),
    #[error("{0} writes are under way in this collection: try again later")]
    Busy(usize),
    #[error("the server is shutting down")]
    Closed,
}

impl Error {
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid(message.into())
    }

    /// Names a feature this server doesn't have.
    pub(crate) fn unimplemented(feature: impl Into<String>) -> Self {
        Self::Unimplemented(feature.into())
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::CollectionNotFound(_) | Error::AliasNotFound(_) => Self::not_found(message),
            Error::CollectionExists(_) => Self::already_exists(message),
            Error::Invalid(_) => Self::invalid_argument(message),
            Error::Unimplemented(_) => Self::unimplemented(message),
            Error::Internal(_) | Error::Panicked(_) => {
                tracing::error!(error = %message, "request failed");
                Self::internal(message)
            }
            Error::Busy(_) => Self::resource_exhausted(message),
            Error::Closed => Self::unavailable(message),
        }
    }
}

impl From<OperationError> for Error {
    fn from(error: OperationError) -> Self {
        match &error {
            OperationError::ServiceError { description, .. } => Self::Internal(description.clone()),
            OperationError::InconsistentStorage { .. }
            | OperationError::OutOfMemory { .. }
            | OperationError::Cancelled { .. }
            | OperationError::Timeout { .. } => Self::Internal(error.to_string()),
            _ => Self::Invalid(error.to_string()),
        }
    }
}

/// Failure to open a data directory or to serve it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another process holds the data directory.
    #[error("data directory {dir} is in use by process {pid}: stop it, or choose another directory")]
    InUse {
        /// The directory both want.
        dir: PathBuf,
        /// The process that holds it, as it wrote itself down.
        pid: String,
    },
    /// The manifest is there but can't be understood.
    #[error("manifest {path}: {reason}")]
    Manifest {
        /// The manifest file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A collection's files can't be opened by the engine.
    #[error("open collection `{collection}`: {reason}")]
    Collection {
        /// The collection's name.
        collection: String,
        /// What the engine said.
        reason: String,
    },
    /// The file system refused something.
    #[error("{context}")]
    Io {
        /// What was tried, and on which path.
        context: String,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
}

impl StartError {
    /// Wraps an I/O error with what was tried; for use with `map_err`.
    pub(crate) fn io(context: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let context = context.into();
        move |source| Self::Io { context, source }
    }
}
