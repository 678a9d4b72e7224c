use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// How many lanes the keys of a sink are spread over. Fixed: rows carry their lane.
pub const LANES: u8 = 64;

/// A share of a sink's keys, 0 to 63, delivered by one relay at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane(u8);

impl Lane {
    /// Takes a lane number; `None` if there is no such lane.
    #[must_use]
    pub const fn new(lane: u8) -> Option<Self> {
        if lane < LANES { Some(Self(lane)) } else { None }
    }

    /// Returns the lane of a key: its low six bits, as the SQL function `outbox_lane` does.
    #[must_use]
    pub const fn of(key: Uuid) -> Self {
        Self(key.as_bytes()[15] & (LANES - 1))
    }

    /// Returns the number, 0 to 63.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Lists every lane.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..LANES).map(Self)
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A string that names nothing of its type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is no {what}: expected {expected}")]
pub struct InvalidName {
    what: &'static str,
    value: String,
    expected: &'static str,
}

macro_rules! names {
    ($(#[$doc:meta])* $type:ident, $what:literal, $expected:literal, { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $type {
            $($(#[$vdoc])* $variant),+
        }

        impl $type {
            /// Returns the name used in SQL, payloads, metrics and logs.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl FromStr for $type {
            type Err = InvalidName;

            fn from_str(value: &str) -> Result<Self, InvalidName> {
                match value {
                    $($text => Ok(Self::$variant),)+
                    _ => Err(InvalidName { what: $what, value: value.to_owned(), expected: $expected }),
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

names! {
    /// What a point, a hit or an outbox row is about.
    Kind, "kind", "chunk, extraction, entity or llm_request", {
        /// A passage of a source.
        Chunk = "chunk",
        /// A fact that was read in a chunk.
        Extraction = "extraction",
        /// Whom or what facts are about.
        Entity = "entity",
        /// A chunk to be read by a language model.
        LlmRequest = "llm_request",
    }
}

names! {
    /// A store that mirrors Postgres.
    SinkName, "sink", "qdrant or llm", {
        /// The vector store.
        Qdrant = "qdrant",
        /// The queue of LLM requests in Redis.
        Llm = "llm",
    }
}

names! {
    /// How a body is to be read.
    MediaType, "media type", "text, markdown or html", {
        /// text/plain
        Text = "text",
        /// text/markdown
        Markdown = "markdown",
        /// text/html
        Html = "html",
    }
}

/// The name of a project: 1 to 64 of a-z, 0-9 and "-", with a letter or digit at both ends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ProjectName(String);

impl ProjectName {
    /// Returns the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ProjectName {
    type Err = InvalidName;

    fn from_str(value: &str) -> Result<Self, InvalidName> {
        let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = value.as_bytes();
        let valid = bytes.len() <= 64
            && bytes.iter().all(|&b| alphanumeric(b) || b == b'-')
            && bytes.first().copied().is_some_and(alphanumeric)
            && bytes.last().copied().is_some_and(alphanumeric);
        if !valid {
            return Err(InvalidName {
                what: "project name",
                // A hostile name is not carried into logs and answers whole.
                value: value.chars().take(80).collect(),
                expected: "1 to 64 of a-z, 0-9 and \"-\", with a letter or digit at both ends",
            });
        }
        Ok(Self(value.to_owned()))
    }
}

impl fmt::Display for ProjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
