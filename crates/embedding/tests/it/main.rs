//! Embedding and search over gRPC, with a real Postgres, a real vector engine and a model
//! behind an HTTP server that speaks OpenAI's protocol.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod embed;
mod freshness;
mod model;
mod pressure;
mod requests;
mod search;
mod world;
