//! Between the API's messages and the engine's types. Nothing here does I/O.
//!
//! What the engine can't do, or this server doesn't pass on, is refused by
//! name: silently ignoring a field would answer another question than asked.

pub(crate) mod collection;
pub(crate) mod filter;
pub(crate) mod payload;
pub(crate) mod point;
pub(crate) mod vector;

use qdrant_edge::JsonPath;

use crate::error::Error;

/// Parses a payload key such as `meta.tags[0]`.
pub(crate) fn json_path(key: &str) -> Result<JsonPath, Error> {
    key.parse().map_err(|()| Error::invalid(format!("Unable to parse key: {key}")))
}

/// Refuses a feature by name if the request asks for it.
pub(crate) fn refuse_if(asked: bool, feature: &str) -> Result<(), Error> {
    if asked {
        return Err(Error::unimplemented(feature));
    }
    Ok(())
}
