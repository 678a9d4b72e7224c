use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a source stands.
///
/// ```text
/// received ──▶ chunked ──▶ extracting ──▶ indexed
///     │           └──────────────────────────▲
///     └────▶ failed (from any but indexed)
/// ```
///
/// `Extracting` and `Indexed` are never stored. A source is extracting while requests for its
/// chunks are open, whether the vector store has them already or not; it is indexed when none is,
/// and the vector store has confirmed each chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceState {
    /// Stored, not cut yet.
    Received,
    /// Cut; its chunks are rows.
    Chunked,
    /// Its chunks are with the LLM.
    Extracting,
    /// Each chunk is confirmed by the vector store at its current version.
    Indexed,
    /// It could not be cut.
    Failed,
}

/// A state that no version of this program writes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown {what} {value:?}")]
pub struct UnknownState {
    what: &'static str,
    value: String,
}

impl UnknownState {
    pub(crate) fn new(what: &'static str, value: &str) -> Self {
        Self { what, value: value.to_owned() }
    }
}

impl SourceState {
    /// Returns the name used in SQL and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Chunked => "chunked",
            Self::Extracting => "extracting",
            Self::Indexed => "indexed",
            Self::Failed => "failed",
        }
    }

    /// Reads a name that SQL returned.
    ///
    /// # Errors
    /// If there is no such state.
    pub fn parse(value: &str) -> Result<Self, UnknownState> {
        Ok(match value {
            "received" => Self::Received,
            "chunked" => Self::Chunked,
            "extracting" => Self::Extracting,
            "indexed" => Self::Indexed,
            "failed" => Self::Failed,
            _ => {
                return Err(UnknownState { what: "source state", value: value.to_owned() });
            }
        })
    }
}

impl fmt::Display for SourceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a put did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PutOutcome {
    /// There was no such source.
    Created,
    /// Content, title or metadata differ from what was stored.
    Changed,
    /// Nothing differs, nothing was written.
    Unchanged,
}

impl PutOutcome {
    /// Returns the name used in SQL and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
        }
    }

    /// Reads a name that SQL returned.
    ///
    /// # Errors
    /// If there is no such outcome.
    pub fn parse(value: &str) -> Result<Self, UnknownState> {
        Ok(match value {
            "created" => Self::Created,
            "changed" => Self::Changed,
            "unchanged" => Self::Unchanged,
            _ => {
                return Err(UnknownState { what: "put outcome", value: value.to_owned() });
            }
        })
    }
}

/// Where a job stands. Never stored: it follows from where its requests stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// None of its requests has been started.
    Queued,
    /// Some are answered or being answered, some are still open.
    Running,
    /// None is open, and not all were given up.
    Done,
    /// Each of them was given up.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
}

impl JobState {
    /// Returns the name used in answers and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
