//! What every part of Waybill agrees on: ids, names, states, error classes, retry
//! schedules, the clock and the bounds of histograms. No IO.

pub mod bounds;
mod checkup;
mod clock;
mod crash;
mod echo;
mod error;
mod id;
mod name;
mod retry;
mod role;
mod state;
mod text;
mod token;

pub use checkup::{Checkup, Verdict};
pub use clock::{Clock, ManualClock, SystemClock};
pub use crash::{Crash, CrashPoint};
pub use echo::without_echo;
pub use error::ErrorClass;
pub use id::{ChunkId, EntityId, ExtractionId, JobId, ProjectId, RelayId, SourceId};
pub use name::{InvalidName, Kind, LANES, Lane, MediaType, ProjectName, SinkName};
pub use retry::Backoff;
pub use role::Role;
pub use state::{JobState, PutOutcome, SourceState, UnknownState};
pub use text::{ContentHash, TextHash, embedding_text};
pub use token::{FreshnessToken, InvalidToken};
