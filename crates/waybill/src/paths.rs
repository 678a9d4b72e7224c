//! Where `waybill up` keeps things.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::bail;

/// Returns the data directory: the one named, else the user's.
pub(crate) fn data_dir(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(path) = named {
        return Ok(path.to_owned());
    }
    match default_data_dir(env::var_os("XDG_DATA_HOME"), env::var_os("HOME")) {
        Some(path) => Ok(path),
        None => bail!("neither HOME nor XDG_DATA_HOME is set: name a directory with --data-dir"),
    }
}

/// The specification says that a relative XDG_DATA_HOME is to be ignored.
fn default_data_dir(xdg_data_home: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    xdg_data_home
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| home.filter(|home| !home.is_empty()).map(|home| PathBuf::from(home).join(".local/share")))
        .map(|base| base.join("waybill"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xdg_comes_before_home() {
        let path =
            |xdg: Option<&str>, home: Option<&str>| default_data_dir(xdg.map(OsString::from), home.map(OsString::from));
        assert_eq!(path(Some("/x"), Some("/h")), Some("/x/waybill".into()));
        assert_eq!(path(Some("x"), Some("/h")), Some("/h/.local/share/waybill".into()));
        assert_eq!(path(None, Some("")), None);
        assert_eq!(path(None, None), None);
    }
}
