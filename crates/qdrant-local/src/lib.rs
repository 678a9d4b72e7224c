//! The Qdrant gRPC API, the part that Waybill uses, served by the real Qdrant
//! engine in this process: for one machine, and for tests.
//!
//! Callers use `qdrant-client` and can't tell the difference, apart from this:
//!
//! - **What isn't here says so.** Other RPCs, and fields that would change an
//!   answer, are refused with UNIMPLEMENTED and their name.
//! - **Answered means on disk.** A write is answered after a flush, whether or
//!   not it asked to wait; writers that come together share one. A process that
//!   is killed loses nothing it has answered. A write that it had not answered
//!   may be there, in part, or not: repeat it. The start after a kill builds the
//!   payload indexes anew, which takes time in proportion to the points.
//! - **Search is exhaustive**, so exact. The engine's optimizers are never run:
//!   a collection is one segment without a graph, whose searches take time in
//!   proportion to its points, and the room of a deleted point is not used
//!   again. Both are right for a laptop, neither is for a data centre.
//! - **One process per data directory**; a second one is refused.

mod catalog;
mod collections;
mod convert;
mod error;
mod manifest;
mod points;
mod query;
mod server;
mod store;
mod unimplemented;
mod wal;

pub use error::StartError;
pub use server::{Handle, Server};
