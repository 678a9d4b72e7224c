//! Runs a private Postgres, and a private Redis if one is installed, until it is asked
//! to stop: `private-stores DIRECTORY [--leave-running]`. Prints their URLs and `ready`.
//!
//! For developing against, and for the tests that kill it. With `--leave-running` the
//! servers outlive a kill, as they would if the guards were killed, too.

use std::error::Error;
use std::io::Write;

use tokio::signal::unix::{SignalKind, signal};
use waybill_local_stores::{
    DataDir, PostgresOptions, PrivatePostgres, PrivateRedis, RedisBinary, RedisOptions, WhenParentDies,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    // Before anything is started, so that a signal can't end us half-way.
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;

    let mut arguments = std::env::args_os().skip(1);
    let directory = arguments.next().ok_or("usage: private-stores DIRECTORY [--leave-running]")?;
    let when_parent_dies = match arguments.next() {
        Some(flag) if flag == "--leave-running" => WhenParentDies::LeaveRunning,
        Some(other) => return Err(format!("unknown argument {}", other.display()).into()),
        None => WhenParentDies::Stop,
    };

    let mut out = std::io::stdout();
    let dir = DataDir::lock(directory)?;
    let options = PostgresOptions { when_parent_dies: when_parent_dies.clone(), ..Default::default() };
    let postgres = PrivatePostgres::start(&dir, options).await?;
    writeln!(out, "postgres {}", postgres.url())?;
    let redis = if RedisBinary::find().is_ok() {
        let options = RedisOptions { when_parent_dies, ..Default::default() };
        let redis = PrivateRedis::start(&dir, options).await?;
        writeln!(out, "redis {}", redis.url())?;
        Some(redis)
    } else {
        None
    };
    writeln!(out, "ready")?;

    tokio::select! {
        _ = interrupted.recv() => {}
        _ = terminated.recv() => {}
    }
    if let Some(redis) = redis {
        redis.stop().await?;
    }
    postgres.stop().await?;
    Ok(())
}
