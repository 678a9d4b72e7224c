use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{ProjectName, TextHash};

/// The namespace of every id that Waybill derives. Changing it changes them all.
const NAMESPACE: Uuid = Uuid::from_u128(0x6f2d_61b1_8c7e_4d0b_9a35_77a1_b111_0001);

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Takes an id that was made before, from a row or a message.
            #[must_use]
            pub const fn from_uuid(id: Uuid) -> Self {
                Self(id)
            }

            /// Returns the bare UUID.
            #[must_use]
            pub const fn as_uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// Identifies a project: derived from its name.
    ProjectId
}
id! {
    /// Identifies a source: derived from its project and uri.
    SourceId
}
id! {
    /// Identifies a chunk: derived from its source, its text and how often that text came before it there.
    ChunkId
}
id! {
    /// Identifies a job: derived from its project and request id, or made up.
    JobId
}
id! {
    /// Identifies a fact: derived from its chunk, its type and its statement.
    ExtractionId
}
id! {
    /// Identifies an entity: derived from its project, type and canonical name.
    EntityId
}
id! {
    /// Identifies one run of a relay process.
    RelayId
}

impl ProjectId {
    /// Derives the id of the project called `name`.
    #[must_use]
    pub fn derive(name: &ProjectName) -> Self {
        Self(Uuid::new_v5(&NAMESPACE, format!("project\0{name}").as_bytes()))
    }
}

impl SourceId {
    /// Derives the id of the source at `uri` in `project`.
    #[must_use]
    pub fn derive(project: ProjectId, uri: &str) -> Self {
        Self(Uuid::new_v5(&project.0, format!("source\0{uri}").as_bytes()))
    }
}

impl JobId {
    /// Derives the id of the job that was asked for under `request_id`.
    #[must_use]
    pub fn derive(project: ProjectId, request_id: &str) -> Self {
        Self(Uuid::new_v5(&project.0, format!("job\0{request_id}").as_bytes()))
    }

    /// Makes up an id for a job that nobody will ask for again.
    #[must_use]
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }
}

impl ExtractionId {
    /// Derives the id of a fact. Case and spacing of the statement don't matter.
    #[must_use]
    pub fn derive(chunk: Uuid, kind: &str, statement: &str) -> Self {
        let words: Vec<String> = statement.split_whitespace().map(str::to_lowercase).collect();
        Self(Uuid::new_v5(&chunk, format!("extraction\0{kind}\0{}", words.join(" ")).as_bytes()))
    }
}

impl EntityId {
    /// Derives the id of an entity.
    #[must_use]
    pub fn derive(project: ProjectId, kind: &str, canonical: &str) -> Self {
        Self(Uuid::new_v5(&project.0, format!("entity\0{kind}\0{canonical}").as_bytes()))
    }
}

impl ChunkId {
    /// Derives the id of a chunk.
    ///
    /// `occurrence` counts, from 0, the chunks with the same hash before it in the
    /// source. The position is left out on purpose: a paragraph put in front of a
    /// document leaves the ids, and so the vectors, of all that follows as they are.
    #[must_use]
    pub fn derive(source: SourceId, text_hash: &TextHash, occurrence: u32) -> Self {
        let mut name = Vec::with_capacity(48);
        name.extend_from_slice(b"chunk\0");
        name.extend_from_slice(text_hash.as_bytes());
        name.extend_from_slice(&occurrence.to_be_bytes());
        Self(Uuid::new_v5(&source.0, &name))
    }
}

impl RelayId {
    /// Makes the id of a run that begins now. Sorts by time.
    #[must_use]
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }
}
