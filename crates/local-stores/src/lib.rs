//! Private Postgres and Redis servers for one machine: `waybill up` and the tests.
//!
//! Each server is the system's own binary, run as a child process over a directory
//! of ours, on a free port of the loopback interface, behind a generated password.
//! A server ends with the process that started it, also when that process is
//! killed; whatever a kill leaves behind is found and cleared at the next start.
//!
//! ```no_run
//! # async fn example() -> Result<(), waybill_local_stores::StoreError> {
//! use waybill_local_stores::{DataDir, PostgresOptions, PrivatePostgres};
//!
//! let dir = DataDir::lock("/home/me/.local/share/waybill")?;
//! let postgres = PrivatePostgres::start(&dir, PostgresOptions::default()).await?;
//! println!("{}", postgres.url());
//! postgres.stop().await?;
//! # Ok(())
//! # }
//! ```

mod binaries;
mod data_dir;
mod error;
mod guard;
mod orphan;
mod placement;
mod postgres;
mod redis;
mod secret;
mod server;
mod service_user;

pub use binaries::{PostgresBinaries, RedisBinary};
pub use data_dir::DataDir;
pub use error::StoreError;
pub use guard::WhenParentDies;
pub use postgres::{PostgresOptions, PrivatePostgres};
pub use redis::{PrivateRedis, RedisOptions};

/// How much a store does to survive a crash of the machine.
///
/// Either survives a crash of its own process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// What was acknowledged is on disk: `fsync` in Postgres, an append-only file
    /// synced every second in Redis.
    Durable,
    /// Nothing waits for the disk. For tests.
    Volatile,
}
