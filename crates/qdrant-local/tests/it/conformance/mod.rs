//! What every server of the Qdrant API must do.

mod collections;
mod filters;
mod points;
mod queries;
