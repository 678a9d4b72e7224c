//! The real binary, from the outside.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a helper of a test may panic like the test itself")]

#[cfg(feature = "embedded")]
mod access;
#[cfg(feature = "embedded")]
mod access_table;
mod adaptive;
mod chart;
mod client;
mod config;
mod crash;
mod crash_points;
#[cfg(feature = "embedded")]
mod doctor;
#[cfg(feature = "embedded")]
mod extract;
mod extraction;
mod freshness;
mod help;
mod import;
mod llm_server;
mod loads;
mod model_change;
mod operators;
mod operators_bad_input;
mod path;
#[cfg(feature = "embedded")]
mod place;
mod program;
mod python_client;
mod python_worker;
mod repair;
mod restore;
mod scrub;
mod signals;
#[cfg(feature = "embedded")]
mod up;
mod verified;
mod world;
