//! Between the protos and the logic: checks, conversions, statuses.

mod check;
mod embedding;
mod json;
mod search;
mod status;

pub(crate) use embedding::EmbeddingGrpc;
pub(crate) use search::SearchGrpc;
