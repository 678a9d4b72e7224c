//! Tests of the outbox protocol.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that can't go on should stop there")]

mod engine;
mod failure;
mod history;
mod world;
