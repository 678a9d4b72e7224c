//! One module a command.

pub(crate) mod config;
pub(crate) mod dlq;
pub(crate) mod doctor;
pub(crate) mod extract;
pub(crate) mod facts;
mod gauge;
pub(crate) mod import;
pub(crate) mod jobs;
pub(crate) mod keys;
pub(crate) mod migrate;
pub(crate) mod projects;
pub(crate) mod reindex;
pub(crate) mod relay;
pub(crate) mod search;
pub(crate) mod serve;
pub(crate) mod sources;
pub(crate) mod status;
pub(crate) mod up;
pub(crate) mod verify;
