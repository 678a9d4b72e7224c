//! Tests of the models crate against the reference implementations and real HTTP servers.
#![expect(clippy::unwrap_used, reason = "a test ends where an unwrap fails, and says where")]

mod bm25;
mod config;
mod local;
mod remote;
mod server;
mod tls;
