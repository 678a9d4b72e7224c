//! The real binary, from the outside.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a helper of a test may panic like the test itself")]

mod client;
mod config;
mod crash;
mod help;
mod import;
mod program;
#[cfg(feature = "embedded")]
mod up;
