//! Python packages, pinned by version: of the examples in `docs/examples`, and of the checks of `deploy/`.

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

/// Packages with exact versions, and where they go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packages {
    /// The file that names all of them, from the workspace's folder.
    requirements: &'static str,
    /// Their folder under `target`.
    folder: &'static str,
    /// What is said while they are installed, and how large the download is.
    what: &'static str,
}

/// What the example programs in `docs/examples` need.
pub(crate) const EXAMPLES: Packages = Packages {
    requirements: "docs/examples/requirements.txt",
    folder: "python",
    what: "gRPC and Redis for Python (12 MB to download)",
};

/// What reads manifests as an API server would.
pub(crate) const KUBERNETES_VALIDATE: Packages = Packages {
    requirements: "crates/deploy-checks/requirements.txt",
    folder: "tools/kubernetes-validate",
    what: "the schemas of Kubernetes 1.25 to 1.37 (24 MB to download)",
};

impl Packages {
    /// Returns the folder of the packages, to be named in `PYTHONPATH`.
    pub(crate) fn dir(&self) -> PathBuf {
        sh::target_dir().join(self.folder)
    }

    /// Installs the packages into [`Self::dir`]. What is there already costs no network. Needs pip.
    ///
    /// # Errors
    /// No network, or no wheels for this machine and this Python.
    pub(crate) fn ensure(&self) -> anyhow::Result<()> {
        let requirements = sh::root().join(self.requirements);
        let wanted = fs::read(&requirements).with_context(|| format!("read {}", requirements.display()))?;
        let folder = self.dir();
        // Some of it is compiled, for one version of Python.
        let stamp = stamp(&wanted, &sh::output(Command::new("python3").arg("--version"))?);
        if is_complete(&folder, &stamp) {
            return Ok(());
        }
        eprintln!("installing {} into {}", self.what, folder.display());
        // Made aside and moved into place whole, so that a run that is cut off leaves no half of it.
        let aside = folder.with_extension(format!("{}.partial", std::process::id()));
        let made = install(&requirements, &aside, &stamp).and_then(|()| put_in_place(&aside, &folder, &stamp));
        if aside.exists() {
            fs::remove_dir_all(&aside).with_context(|| format!("remove {}", aside.display()))?;
        }
        made
    }
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
    sh::output(&mut pip).with_context(|| format!("install {}", requirements.display()))?;
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
