//! Turns text into vectors: dense ones by a model, sparse ones by BM25.
//!
//! A model sits behind [`EmbeddingProvider`]. There are three kinds, chosen by
//! [`ProviderConfig`] and made by [`build`]: `local` runs a model from a folder in this
//! process, `openai` and `tei` ask a server over HTTP. Nothing here knows about
//! Postgres, Qdrant or gRPC; caching and batching across callers happen above.

mod bm25;
mod config;
mod error;
mod http;
mod local;
mod openai;
mod provider;
mod tei;

pub use bm25::{Bm25, SparseVector};
pub use config::{LocalConfig, ModelFormat, OpenAiConfig, ProviderConfig, ProviderKind, TeiConfig, build};
pub use error::ModelError;
pub use provider::{EmbeddingProvider, ModelInfo, Purpose};
