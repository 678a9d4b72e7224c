//! The user that Postgres runs as when we are root.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{User, geteuid};

use crate::StoreError;

/// Tried in this order: the package's own user, then the one every system has.
const USERS: &[&str] = &["postgres", "nobody"];

/// The `x` bit of one permission triple.
const PASS: u32 = 0o1;

/// An unprivileged user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceUser {
    name: String,
    uid: u32,
    gid: u32,
}

impl ServiceUser {
    /// Finds the user to run Postgres as; `None` if we are not root and need none.
    pub(crate) fn needed() -> Result<Option<Self>, StoreError> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        USERS
            .iter()
            .find_map(|name| User::from_name(name).ok().flatten())
            .map(|user| Some(Self { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw() }))
            .ok_or(StoreError::NoServiceUser)
    }

    /// Makes `command` run as this user, without any of root's groups.
    pub(crate) fn become_in(&self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid);
    }

    /// Gives one file or directory to this user.
    pub(crate) fn own(&self, path: &Path) -> Result<(), StoreError> {
        chown(path, Some(self.uid), Some(self.gid)).map_err(StoreError::io("change owner of", path))
    }

    /// Returns the first directory above `path` that this user can't pass through.
    pub(crate) fn barrier(&self, path: &Path) -> Result<Option<PathBuf>, StoreError> {
        let above = path.ancestors().skip(1).collect::<Vec<_>>();
        for dir in above.into_iter().rev() {
            let meta = fs::metadata(dir).map_err(StoreError::io("look at", dir))?;
            let shift = if meta.uid() == self.uid {
                6
            } else if meta.gid() == self.gid {
                3
            } else {
                0
            };
            if meta.mode() >> shift & PASS == 0 {
                return Ok(Some(dir.to_owned()));
            }
        }
        Ok(None)
    }

    /// Checks that this user can get at `program`.
    pub(crate) fn require_reach(&self, program: &Path) -> Result<(), StoreError> {
        match self.barrier(program)? {
            None => Ok(()),
            Some(path) => Err(StoreError::Unreachable { user: self.name.clone(), path }),
        }
    }
}
