//! Tests of the providers against a real HTTP server.
#![expect(clippy::unwrap_used, reason = "a test ends where an unwrap fails, and says where")]

mod config;
mod openai;
mod server;
mod tls;
