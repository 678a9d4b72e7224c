//! What storage promises, against a real Postgres.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cache;
mod capture;
mod extraction;
mod freshness;
mod gauges;
mod hydrate;
mod plans;
mod projects;
mod provenance;
mod provisional;
mod repair;
mod scrub;
mod sources;
mod support;
