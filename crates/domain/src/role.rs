use std::fmt;

use serde::{Deserialize, Serialize};

use crate::UnknownState;

/// What an API key lets its holder do. Each may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Reads and searches.
    Reader,
    /// Writes and deletes, has texts embedded and facts extracted.
    Writer,
    /// Runs the system, for all projects.
    Operator,
}

impl Role {
    /// Every role, the least first.
    pub const ALL: [Self; 3] = [Self::Reader, Self::Writer, Self::Operator];

    /// Returns the name used in SQL, on the command line and in logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Writer => "writer",
            Self::Operator => "operator",
        }
    }

    /// Reads a name that SQL returned.
    ///
    /// # Errors
    /// If there is no such role.
    pub fn parse(value: &str) -> Result<Self, UnknownState> {
        Self::ALL.into_iter().find(|role| role.as_str() == value).ok_or_else(|| UnknownState::new("role", value))
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
