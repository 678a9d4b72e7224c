//! The vector store: collections, points and queries. The only crate that knows
//! `qdrant-client`, but for the server in `waybill-qdrant-local`.
//!
//! Nothing here retries. A caller reads [`VectorError::class`] and decides, as the relay has
//! leases to watch and a search has somebody who waits.

mod client;
mod collection;
mod config;
mod doctor;
mod error;
mod filter;
mod meter;
mod payload;
mod query;
mod scroll;
mod write;

pub use client::Vectors;
pub use collection::{CollectionInfo, CollectionSpec, DEFAULT_ALIAS};
pub use config::QdrantConfig;
pub use error::VectorError;
pub use query::{MAX_QUERY_LIMIT, Mode, QuerySpec, ScoredPoint, SearchFilter, SparseVector};
pub use scroll::{MAX_SCROLL_LIMIT, PointPage, StoredPoint, VersionPage};
pub use write::{PLAUSIBLE_LEAD, PointWrite};

/// What every function here returns.
pub type Result<T> = std::result::Result<T, VectorError>;

/// The name of the dense vector of a point.
pub(crate) const DENSE: &str = "dense";

/// The name of the sparse vector of a point.
pub(crate) const SPARSE: &str = "bm25";

/// The payload's keys.
pub(crate) mod key {
    pub(crate) const PROJECT: &str = "project_id";
    pub(crate) const KIND: &str = "kind";
    pub(crate) const SOURCE: &str = "source_id";
    pub(crate) const VERSION: &str = "version";
    pub(crate) const METADATA: &str = "metadata";
}
