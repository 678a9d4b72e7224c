//! Tests of the Qdrant API of this crate.
//!
//! What stands in `conformance` speaks only `qdrant-client`, so it tells
//! whether this server answers as a real one does: set
//! `WAYBILL_TEST_QDRANT_URL` to the gRPC address of a real server (1.16 or
//! later) and it runs against that instead. The rest is about this server.

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod durability;
#[cfg(test)]
mod own;
#[cfg(test)]
mod support;
