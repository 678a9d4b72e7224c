//! The service over gRPC, on a Postgres and a Redis.
#![expect(clippy::unwrap_used, reason = "a test that can't set up fails")]

mod bad_input;
mod foreign;
mod support;
