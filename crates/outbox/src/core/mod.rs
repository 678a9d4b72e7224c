//! The protocol without IO: what to read, what to deliver, how far a lane is closed. Time
//! is passed in, as a span since some start.

mod lanes;
mod log;
mod quarantine;
mod reader;
mod rows;

pub use lanes::fair_share;
pub use log::{Batch, Limits, Log, ORIGINS_MAX, Ticket};
pub use reader::{Plan, PlanKind};

use uuid::Uuid;
use waybill_domain::{Kind, Lane};

/// What is delivered as one: a row of a mirrored table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The table, as it were.
    pub kind: Kind,
    /// The row's id.
    pub id: Uuid,
}

impl Key {
    /// Returns the lane that the key is delivered in.
    #[must_use]
    pub const fn lane(&self) -> Lane {
        Lane::of(self.id)
    }
}
