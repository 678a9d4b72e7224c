//! The directory that holds everything of one installation, used by one process.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::StoreError;

const LOCK_FILE: &str = "lock";

/// The holder writes its id right after it took the lock, so one who is refused in
/// between reads again: 20 times, 10 ms apart.
const PID_READS: u32 = 20;
const PID_READ_PAUSE: Duration = Duration::from_millis(10);

/// A data directory, held for this process alone until the last clone is dropped.
///
/// The hold is a lock of the operating system on the file `lock`, which also names
/// the process. It ends with the process, however that ends, so there are no stale
/// locks. Child processes don't inherit it: the file is opened close-on-exec.
#[derive(Debug, Clone)]
pub struct DataDir(Arc<Held>);

#[derive(Debug)]
struct Held {
    path: PathBuf,
    lock: File,
}

impl Drop for Held {
    fn drop(&mut self) {
        // Closing is not enough: a child that another thread is just starting shares the
        // open file until it runs its program. Whatever fails here, closing comes next.
        let _ = self.lock.unlock();
    }
}

impl DataDir {
    /// Takes the directory at `path`, and makes it if it isn't there.
    ///
    /// # Errors
    /// [`StoreError::InUse`] with the process that has it; [`StoreError::Io`] if it
    /// can't be made or locked.
    pub fn lock(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref();
        create(path)?;
        let path = path.canonicalize().map_err(StoreError::io("resolve", path))?;

        let lock_path = path.join(LOCK_FILE);
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(StoreError::io("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::InUse { path, pid: holder(&lock_path) });
            }
            Err(TryLockError::Error(error)) => {
                return Err(StoreError::io("lock", &lock_path)(error));
            }
        }
        write_pid(&mut lock).map_err(StoreError::io("write", &lock_path))?;
        Ok(Self(Arc::new(Held { path, lock })))
    }

    /// Returns the directory's absolute path, without symbolic links.
    pub fn path(&self) -> &Path {
        &self.0.path
    }
}

fn create(path: &Path) -> Result<(), StoreError> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(StoreError::io("create", path))?;
    // Root's Postgres runs as another user, who must be able to pass through.
    let mode = if nix::unistd::geteuid().is_root() { 0o711 } else { 0o700 };
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(StoreError::io("set permissions of", path))
}

fn write_pid(lock: &mut File) -> std::io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    writeln!(lock, "{}", std::process::id())?;
    lock.sync_all()
}

fn holder(lock_path: &Path) -> Option<u32> {
    for _ in 0..PID_READS {
        let mut text = String::new();
        File::open(lock_path).ok()?.read_to_string(&mut text).ok()?;
        if let Ok(pid) = text.trim().parse() {
            return Some(pid);
        }
        std::thread::sleep(PID_READ_PAUSE);
    }
    None
}
