//! The service over a real gRPC connection and a real Postgres.
//!
//! On several threads, as it runs elsewhere: dropping a test's database blocks one, and waits
//! for connections that another thread is still opening.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod acknowledge;
mod bad_input;
mod projects;
mod sources;
mod stream;
mod support;
