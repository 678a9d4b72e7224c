use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// How soon a request should be served. Each priority has a stream of its own.
///
/// Ordered as they are served: `High` comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Somebody waits for the answer.
    High,
    /// The usual one.
    Normal,
    /// Whenever there is room.
    Low,
}

impl Priority {
    /// Every priority, in the order they are served.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];

    /// Returns the name used in keys, SQL, metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A string that names no priority.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no priority: write high, normal or low")]
pub struct UnknownPriority(String);

impl FromStr for Priority {
    type Err = UnknownPriority;

    fn from_str(value: &str) -> Result<Self, UnknownPriority> {
        Self::ALL
            .into_iter()
            .find(|priority| priority.as_str() == value)
            // A hostile name is not carried into logs and answers whole.
            .ok_or_else(|| UnknownPriority(value.chars().take(80).collect()))
    }
}

/// What a worker is told: that there is a request, not what is in it.
///
/// A stream entry has these fields, which workers in other languages rely on:
///
/// | field        | value                                                           |
/// |--------------|-----------------------------------------------------------------|
/// | `request_id` | a UUID, 36 characters                                           |
/// | `project_id` | a UUID, 36 characters                                           |
/// | `job_id`     | a UUID, 36 characters; absent if the request belongs to no job  |
/// | `headers`    | tracing headers as the outbox row has them; absent without any  |
///
/// A field that is empty counts as absent, and fields beyond these are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Message {
    /// The request.
    pub request_id: Uuid,
    /// The tenant.
    pub project_id: Uuid,
    /// The job that the request belongs to, if any.
    pub job_id: Option<Uuid>,
    /// Tracing headers, if any. An empty string arrives as `None`.
    pub headers: Option<String>,
}

/// What became of a message that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sent {
    /// It is in the stream, under this id.
    Added(String),
    /// It was sent before, under this id. The entry may be gone since: finished, or lost.
    /// [`LlmQueue::knows`](crate::LlmQueue::knows) tells whether it is there.
    Known(String),
    /// The stream holds as much as it may. Send it again when workers have caught up.
    Full,
}

/// A message that a worker has in hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// What the entry says.
    pub message: Message,
    /// The stream it came from.
    pub priority: Priority,
    /// The entry's id in that stream.
    pub stream_id: String,
    /// How many times it was given to a worker, this one included: 1 for a first delivery.
    pub deliveries: u64,
}

/// Who has a message in hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hold {
    /// The worker that was asked about, and its time has been renewed.
    Ours(Claimed),
    /// Another worker, of this name.
    Taken(String),
    /// Nobody: it was not claimed yet, or was given back.
    Free,
    /// There is no such message of that request: it was finished, or Redis has lost it.
    Gone,
}

/// How a stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamStats {
    /// Which one.
    pub priority: Priority,
    /// Messages in it, those under way included.
    pub length: u64,
    /// Messages that workers have in hand.
    pub pending: u64,
    /// How long ago the oldest message was sent, in milliseconds by the server's clock;
    /// `None` if there is none.
    pub oldest_ms: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_have_one_name_everywhere() {
        for priority in Priority::ALL {
            assert_eq!(priority.as_str().parse(), Ok(priority));
            assert_eq!(priority.to_string(), priority.as_str());
        }
        assert!("urgent".parse::<Priority>().is_err());
        assert!(Priority::ALL.is_sorted());
    }
}
