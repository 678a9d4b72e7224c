//! Where a cluster's files stand.
//!
//! In `postgres/` of the data directory, if the user that Postgres runs as can get
//! there. Root's home is closed to everybody else, and Postgres refuses to run as
//! root: there, `postgres` is a symbolic link into `/var/lib/waybill`, so whoever
//! looks for the data finds it, and root's home stays as closed as it was.

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use tracing::{info, warn};

use crate::secret::random_hex;
use crate::service_user::ServiceUser;
use crate::{DataDir, StoreError};

const NAME: &str = "postgres";

/// Where root's clusters stand when the data directory is out of reach.
const OUTSIDE: &str = "/var/lib/waybill";

/// Longest path of a Unix socket: `sun_path` has 108 bytes on Linux, 104 on macOS,
/// with a final zero.
const SOCKET_PATH_BYTES: usize = 103;

/// The files of one cluster.
///
/// Root writes nothing where the service user could lay a symbolic link: the log and
/// the password stand in the data directory, and `base` is the service user's alone.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    data_dir: PathBuf,
    base: PathBuf,
}

impl Layout {
    /// Finds or makes the directory for the cluster of `data_dir`.
    pub(crate) fn prepare(data_dir: &DataDir, user: Option<&ServiceUser>) -> Result<Self, StoreError> {
        let link = data_dir.path().join(NAME);
        let base = match (link.symlink_metadata().is_ok(), user) {
            // Follows the link of an earlier start.
            (true, _) => link.canonicalize().map_err(StoreError::io("resolve", &link))?,
            (false, None) => make(&link)?,
            (false, Some(user)) => match user.barrier(&link)? {
                None => make(&link)?,
                Some(barrier) => make_outside(&link, &barrier)?,
            },
        };
        if let Some(user) = user {
            user.own(&base)?;
        }
        Ok(Self { data_dir: data_dir.path().to_owned(), base })
    }

    pub(crate) fn cluster(&self) -> PathBuf {
        self.base.join("cluster")
    }

    /// Where initdb works, so that `cluster` is there as a whole or not at all.
    pub(crate) fn unfinished_cluster(&self) -> PathBuf {
        self.base.join("cluster.unfinished")
    }

    /// The password as initdb reads it, for as long as it runs.
    pub(crate) fn password_for_initdb(&self) -> PathBuf {
        self.base.join("password.initdb")
    }

    pub(crate) fn password(&self) -> PathBuf {
        self.data_dir.join("postgres.password")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.data_dir.join("postgres.log")
    }

    /// Returns the directory for the Unix socket; `None` if its path is too long for one.
    pub(crate) fn socket_dir(&self) -> Option<&Path> {
        let longest = self.base.join(".s.PGSQL.65535.lock");
        let usable = longest.as_os_str().len() <= SOCKET_PATH_BYTES
            // A comma would part two directories in the server's setting.
            && !self.base.to_string_lossy().contains(',');
        usable.then_some(self.base.as_path())
    }
}

fn make(path: &Path) -> Result<PathBuf, StoreError> {
    DirBuilder::new().mode(0o700).create(path).map_err(StoreError::io("create", path))?;
    Ok(path.to_owned())
}

fn make_outside(link: &Path, barrier: &Path) -> Result<PathBuf, StoreError> {
    let parent = Path::new(OUTSIDE);
    DirBuilder::new().recursive(true).create(parent).map_err(StoreError::io("create", parent))?;
    // Passable, not readable.
    fs::set_permissions(parent, Permissions::from_mode(0o711)).map_err(StoreError::io("set permissions of", parent))?;
    // A name never used before: what an earlier directory of the same name left here
    // belongs to data that somebody removed.
    let base = make(&parent.join(format!("{NAME}-{}", random_hex(8)?)))?;
    if let Err(error) = symlink(&base, link) {
        if let Err(error) = fs::remove_dir(&base) {
            warn!(path = %base.display(), %error, "unused directory stays");
        }
        return Err(StoreError::io("create", link)(error));
    }
    info!(
        path = %base.display(), link = %link.display(), closed = %barrier.display(),
        "postgres does not run as root and its user can't reach the data directory: its files stand elsewhere"
    );
    Ok(base)
}
