//! Keeps the engine's log from growing for ever.
//!
//! The engine appends every operation to a log that it never truncates and, in
//! this version, never replays. All it takes from the log when it opens is the
//! number of the next operation, which must not start over: the engine ignores
//! an operation that is older than the point it touches. That number survives
//! as long as the newest closed file and the open one do. The engine's own
//! truncation keeps the same two, so what is left is a log it could have made.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Directory of the log inside a shard's.
const WAL_DIR: &str = "wal";

/// Prefix of the name of a full log file; the number of its first operation follows.
const CLOSED_PREFIX: &str = "closed-";

/// Closed files that make a log too long: 32 files of 8 MiB. Reopening a shard
/// blocks its readers for as long as loading takes, so it should be rare; disk
/// on a laptop is cheap, but not unlimited.
const MAX_CLOSED_FILES: usize = 32;

/// Tells whether the log of the shard in `dir` should be trimmed. A directory
/// that can't be read is left alone: the next write will say what is wrong.
pub(crate) fn is_too_long(dir: &Path) -> bool {
    closed_files(dir).is_ok_and(|files| files.len() > MAX_CLOSED_FILES)
}

/// Removes all closed log files but the newest from the shard in `dir`, which
/// must not be open.
pub(crate) fn trim(dir: &Path) -> io::Result<()> {
    let mut files = closed_files(dir)?;
    files.sort();
    files.pop();
    // Oldest first: the engine refuses a log with a hole in it.
    for (_, file) in files {
        fs::remove_file(file)?;
    }
    Ok(())
}

/// Lists the full log files of the shard in `dir`, each with the number of its
/// first operation, in no order.
pub(crate) fn closed_files(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir.join(WAL_DIR))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let start = name.and_then(|name| name.strip_prefix(CLOSED_PREFIX)?.parse().ok());
        if let Some(start) = start {
            files.push((start, path));
        }
    }
    Ok(files)
}
