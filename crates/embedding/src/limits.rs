//! What one request may ask for, as the proto says.

/// Texts of one embedding request.
pub(crate) const MAX_TEXTS: usize = 1_024;

/// Bytes of one text.
pub(crate) const MAX_TEXT_BYTES: usize = 65_536;

/// Bytes of a search's query.
pub(crate) const MAX_QUERY_BYTES: usize = 8_192;

/// Hits of a search that doesn't say how many it wants.
pub(crate) const DEFAULT_HITS: usize = 10;

/// Hits of one search.
pub(crate) const MAX_HITS: usize = 100;

/// Sources that a search may be confined to.
pub(crate) const MAX_SOURCE_URIS: usize = 100;

/// Bytes of a source's uri.
pub(crate) const MAX_URI_BYTES: usize = 2_048;

/// Freshness tokens of one search.
pub(crate) const MAX_TOKENS: usize = 64;

/// Metadata values that a search may ask for.
pub(crate) const MAX_METADATA_FILTERS: usize = 16;
