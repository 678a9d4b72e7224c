//! The Python packages of the example worker in `docs/examples`, for the test that runs it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};

use crate::sh;

/// The file that says that the folder is complete, and of what.
const STAMP: &str = ".installed";

/// What is installed, with exact versions.
const REQUIREMENTS: &str = "docs/examples/requirements.txt";

/// Returns the folder of the packages, to be named in `PYTHONPATH`.
pub(crate) fn dir() -> PathBuf {
    sh::target_dir().join("python")
}

/// Installs the packages into [`dir`]. What is there already costs no network. Needs pip.
///
/// # Errors
/// No network, or no wheels for this machine and this Python.
pub(crate) fn ensure() -> anyhow::Result<()> {
    let requirements = sh::root().join(REQUIREMENTS);
    let wanted = fs::read(&requirements).with_context(|| format!("read {}", requirements.display()))?;
    let folder = dir();
    // Some of it is compiled, for one version of Python.
    let stamp = stamp(&wanted, &sh::output(Command::new("python3").arg("--version"))?);
    if is_complete(&folder, &stamp) {
        return Ok(());
    }
    eprintln!("installing gRPC and Redis for Python into {} (12 MB to download)", folder.display());
    // Made aside and moved into place whole, so that a run that is cut off leaves no half of it.
    let aside = folder.with_extension(format!("{}.partial", std::process::id()));
    let made = install(&requirements, &aside, &stamp).and_then(|()| put_in_place(&aside, &folder, &stamp));
    if aside.exists() {
        fs::remove_dir_all(&aside).with_context(|| format!("remove {}", aside.display()))?;
    }
    made
}

fn stamp(requirements: &[u8], python: &str) -> String {
    hex::encode(Sha256::new().chain_update(requirements).chain_update(b"\0").chain_update(python).finalize())
}

fn is_complete(folder: &Path, stamp: &str) -> bool {
    fs::read_to_string(folder.join(STAMP)).is_ok_and(|found| found == stamp)
}

fn install(requirements: &Path, aside: &Path, stamp: &str) -> anyhow::Result<()> {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-warn-script-location"])
        // The file names everything: nothing is resolved, and nothing is built.
        .args(["--no-deps", "--only-binary=:all:", "--requirement"])
        .arg(requirements)
        .arg("--target")
        .arg(aside);
    sh::output(&mut pip).context("install the example worker's packages")?;
    fs::write(aside.join(STAMP), stamp).context("write stamp")
}

fn put_in_place(ready: &Path, folder: &Path, stamp: &str) -> anyhow::Result<()> {
    if folder.exists() && !is_complete(folder, stamp) {
        fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    match fs::rename(ready, folder) {
        // Somebody else was at it too, and was faster.
        Err(_) if is_complete(folder, stamp) => Ok(()),
        moved => moved.with_context(|| format!("move {} into place", folder.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_python_or_another_version_is_installed_anew() {
        let one = stamp(b"redis==1", "Python 3.11.2");
        assert_eq!(one, stamp(b"redis==1", "Python 3.11.2"));
        assert_ne!(one, stamp(b"redis==2", "Python 3.11.2"));
        assert_ne!(one, stamp(b"redis==1", "Python 3.13.0"));
    }
}
