//! What the tests of the other crates stand on. For development only: nothing that
//! ships depends on it.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use waybill_testkit::{TestDb, psql};
//!
//! // A database of its own for this test, migrated; gone when `db` is dropped.
//! let db = TestDb::create().await?;
//! psql(&db.url, "INSERT INTO project (id, name) VALUES (gen_random_uuid(), 'p')").await?;
//! # Ok(())
//! # }
//! ```
//!
//! Databases come from one Postgres for the whole test run, which `cargo xtask test`
//! starts (see [`stores`]). A test that runs without it starts a private server for its
//! own process. [`TestPostgres::own`] is for tests that kill their server.

mod child;
pub mod corpus;
mod database;
mod eventually;
mod postgres;
mod proxy;
mod psql;
mod redis;
pub mod stores;
mod tls;

pub use child::{Program, signal};
pub use database::TestDb;
pub use eventually::eventually;
pub use nix::sys::signal::Signal;
pub use postgres::TestPostgres;
pub use proxy::{FaultProxy, Mode};
pub use psql::{psql, psql_file};
pub use redis::TestRedis;
pub use tls::{Authority, TlsProxy};
pub use waybill_domain::ManualClock;

/// The environment variable that names the Postgres of the test run: a URL of a
/// database whose user may create databases.
pub const POSTGRES_URL_VARIABLE: &str = "WAYBILL_TEST_POSTGRES_URL";

/// The environment variable that names the Redis of the test run.
pub const REDIS_URL_VARIABLE: &str = "WAYBILL_TEST_REDIS_URL";
