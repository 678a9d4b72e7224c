//! The client against a Qdrant: the one named by `WAYBILL_TEST_QDRANT_URL`, or one in this
//! process.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod collections;
mod errors;
mod queries;
mod store;
mod tls;
mod writes;
