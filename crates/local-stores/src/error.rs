//! What can go wrong with a private store, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

/// Why a private store could not be started, used or stopped.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The server's program is not installed.
    #[error(
        "{program} was not found (looked on PATH and in {looked_in}): {install}, or let \
         `cargo xtask setup` install it; {variable} names a directory to take it from"
    )]
    NotInstalled {
        /// The program, with the oldest version that will do.
        program: &'static str,
        /// The directories that were searched, besides PATH.
        looked_in: String,
        /// How to install it.
        install: &'static str,
        /// The environment variable that names the directory to use.
        variable: &'static str,
    },

    /// The cluster was made by a major version of Postgres that is not installed.
    #[error(
        "the data in {} was made by PostgreSQL {needs}, which is not installed: install \
         PostgreSQL {needs}, or choose another directory with --data-dir", .cluster.display()
    )]
    OtherMajor {
        /// The cluster's directory.
        cluster: PathBuf,
        /// The major version that made it.
        needs: u32,
    },

    /// Another process has the data directory.
    #[error(
        "{} is in use by {}: stop it, or choose another directory with --data-dir",
        .path.display(), owner(.pid)
    )]
    InUse {
        /// The data directory.
        path: PathBuf,
        /// The process that holds it; `None` if it has not written its id yet.
        pid: Option<u32>,
    },

    /// Postgres refuses to run as root, and there is no user to run it as.
    #[error(
        "PostgreSQL refuses to run as root and neither a user `postgres` nor `nobody` exists: \
         run waybill as an ordinary user"
    )]
    NoServiceUser,

    /// We are root, and the user that Postgres runs as can't execute its programs.
    #[error(
        "user {user} can't reach {}: PostgreSQL does not run as root, so its programs must \
         stand where other users may read them", .path.display()
    )]
    Unreachable {
        /// The user that Postgres is to run as.
        user: String,
        /// What it can't reach.
        path: PathBuf,
    },

    /// A file or a process could not be handled.
    #[error("{context} {}: {source}", .path.display())]
    Io {
        /// What was being done, as a verb phrase.
        context: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// A helper program (initdb, psql) failed.
    #[error("{program} ended with {status}: {output}")]
    Command {
        /// The program.
        program: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The last of what it printed.
        output: String,
    },

    /// The server ended while it was starting.
    #[error("{name} ended with {status} while it was starting; {} says: {tail}", .log.display())]
    Exited {
        /// The server.
        name: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// Its log.
        log: PathBuf,
        /// The last lines of its log.
        tail: String,
    },

    /// The server did not get ready in time.
    #[error("{name} was not ready after {} s; {} says: {tail}", .after.as_secs(), .log.display())]
    NotReady {
        /// The server.
        name: &'static str,
        /// How long it was waited for.
        after: Duration,
        /// Its log.
        log: PathBuf,
        /// The last lines of its log.
        tail: String,
    },

    /// A server of an earlier run is still there and can't be ended.
    #[error(
        "{name} of an earlier run (process {pid}) does not end, even when killed: \
         end it by hand"
    )]
    Orphan {
        /// The server.
        name: &'static str,
        /// Its process.
        pid: i32,
    },
}

impl StoreError {
    /// Wraps an IO error with what was being done to which path.
    pub(crate) fn io(context: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { context, path: path.to_owned(), source }
    }
}

fn owner(pid: &Option<u32>) -> String {
    match pid {
        Some(pid) => format!("process {pid}"),
        None => "another process".to_owned(),
    }
}
