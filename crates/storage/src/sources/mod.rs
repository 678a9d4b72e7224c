//! Sources and their chunks: the write path, and reading them back.

mod chunks;
mod provisional;
mod put;
mod read;
mod requests;
mod rows;

use std::{ops::Range, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::{Postgres, Transaction};
use uuid::Uuid;
use waybill_domain::{ContentHash, MediaType, ProjectId, PutOutcome, SourceId, SourceState, TextHash};

use crate::{Db, Result, StorageError};

pub use provisional::{Provisional, TakeBack, Traces, confirm, sweep, take_back, wait_until_gone};
pub use put::{peek, put_group};
pub use read::{Deleted, Deletion, SourceFilter, SourcePage, delete, get, list};
pub use requests::purge as purge_requests;

/// How long a statement here waits for a row that another transaction holds. Puts hold
/// theirs for milliseconds; what holds one longer is a person or a backup, and then the
/// caller is better told.
const LOCK_TIMEOUT_MS: &str = "10000";

/// What decides, before a body is read, whether a put changes anything.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceKey {
    /// The project, which must exist.
    pub project_id: ProjectId,
    /// Identifies the source in its project.
    pub uri: String,
    /// The title that the caller gave; `None` has it taken from the document.
    pub given_title: Option<String>,
    /// How the body is to be read.
    pub media_type: MediaType,
    /// A JSON object.
    pub metadata: serde_json::Value,
    /// Of the body as it was sent.
    pub content_hash: ContentHash,
    /// How the text is cut.
    pub chunker: String,
    /// Makes a retry safe, where the caller gave one.
    pub request: Option<RequestKey>,
    /// The run of puts that this one is part of: stored with what it writes. That it differs
    /// changes nothing.
    pub job_id: Option<Uuid>,
    /// Has a new source hidden until it is confirmed, and refuses to change one that exists:
    /// for so long it may stay unconfirmed. `None`: it is there with the commit.
    pub provisional: Option<Duration>,
}

impl SourceKey {
    /// Derives the id of the source.
    #[must_use]
    pub fn source_id(&self) -> SourceId {
        SourceId::derive(self.project_id, &self.uri)
    }
}

/// Names a put for its retries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestKey {
    /// The caller's own id, 1 to 128 bytes.
    pub id: String,
    /// SHA-256 of everything that was asked for.
    pub fingerprint: [u8; 32],
}

/// A source that was read and cut, ready to be stored.
#[derive(Debug, Clone, PartialEq)]
pub struct NewSource {
    /// What was asked for.
    pub key: SourceKey,
    /// The title: as given, or as found.
    pub title: String,
    /// The readable text.
    pub text: String,
    /// Its chunks, in the order of the text.
    pub chunks: Vec<NewChunk>,
}

/// A passage of a [`NewSource`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewChunk {
    /// Headings above it, outermost first.
    pub headings: Vec<String>,
    /// Where it lies in the readable text, in bytes.
    pub range: Range<usize>,
    /// Of what is embedded: headings and text.
    pub text_hash: TextHash,
    /// How many tokens it has for the chunker.
    pub token_count: u32,
}

/// What a put did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PutResult {
    /// The source.
    pub source_id: SourceId,
    /// What became of it.
    pub outcome: PutOutcome,
    /// Its version afterwards.
    pub version: i64,
    /// Its chunks afterwards.
    pub chunk_count: i64,
    /// Chunks that were not there before.
    pub chunks_added: i64,
    /// Chunks that are gone.
    pub chunks_removed: i64,
    /// Whether this put made a source that is hidden until it is confirmed.
    pub provisional: bool,
}

/// Why one put of a group was not done. The others are not affected.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// There is no such project.
    #[error("the project does not exist")]
    NoProject,
    /// The request id was used for another request within the last day.
    #[error("the request id was used for another request")]
    RequestIdReused,
    /// A put that is to be there wholly or not at all, of a source that exists.
    #[error("the source exists already")]
    Exists,
    /// Another put of the source is to be there wholly or not at all, and is not decided yet.
    #[error("the source is provisional for another {left:?}")]
    Provisional {
        /// Until it is decided, at the latest.
        left: Duration,
    },
    /// Postgres refused this put alone.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// The answer to one put of a group.
pub type PutAnswer = std::result::Result<PutResult, PutError>;

/// A source as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// Derived from the project and the uri.
    pub id: SourceId,
    /// The project it is in.
    pub project_id: ProjectId,
    /// Identifies it there.
    pub uri: String,
    /// Its title.
    pub title: String,
    /// How its body was read.
    pub media_type: MediaType,
    /// A JSON object.
    pub metadata: serde_json::Value,
    /// Where it stands. `Extracting` is derived from its open requests, `Indexed` from what the
    /// vector store confirmed.
    pub state: SourceState,
    /// Grows with every change.
    pub version: i64,
    /// Of the body as it was sent.
    pub content_hash: ContentHash,
    /// How many chunks it has.
    pub chunk_count: i64,
    /// When it was first stored.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
    /// The readable text, if it was asked for.
    pub text: Option<String>,
    /// The run of puts that last changed it, if the client named one.
    pub job_id: Option<Uuid>,
}

/// Begins a transaction whose outbox rows carry `headers`, a JSON object.
///
/// READ COMMITTED is set, not assumed: the puts rely on seeing, after a lock, what its last
/// holder committed.
pub(crate) async fn begin(db: &Db, headers: Option<&str>) -> Result<Transaction<'static, Postgres>> {
    let mut tx = db.pool().begin_with("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
    sqlx::query!(
        "SELECT set_config('lock_timeout', $1, true) AS lock_timeout, set_config('waybill.headers', $2, true) AS headers",
        LOCK_TIMEOUT_MS,
        headers.unwrap_or_default()
    )
    .fetch_one(&mut *tx)
    .await?;
    Ok(tx)
}
