//! A model of the relay protocol that can be checked in every interleaving.
//!
//! It mirrors what is built: writers and their triggers (`migrations/0002_outbox.sql`), leases
//! and settles (`waybill-storage`), reading and delivering (`waybill-outbox`), and the guards of
//! the sink (`waybill-vectors`, `waybill-relay`). Each step that the real thing takes in one
//! statement or one request is one [`Action`]; everything between two of them can happen to
//! everybody else. A relay that is frozen is one that takes no step while time goes on.
//!
//! Time is counted in ticks and only as what is left of it: of a lease, of the part of it that
//! its holder uses, of a request on the wire. What is left out: batches (a delivery here is of
//! one key, which allows more), pages of a read, the delay between a read and its use, backoff,
//! trimming, and who should hold how many lanes (here whoever may take a lane may do so).

mod config;
mod model;
mod postgres;
mod properties;
mod relay;
mod state;

pub use config::{Config, Mutation};
pub use model::Action;
pub use properties::name;
pub use state::{
    Cursor, Database, Delivery, Indexed, KeyLog, LaneLog, Op, Phase, Reader, Relay, Request, Segment, Settlement,
    State, Tx, TxPhase, Write,
};
