//! What the system's package manager has to provide: looked for first, installed only
//! if it is missing, and said before it is done.

use std::{
    env, fs,
    io::{IsTerminal as _, stdin},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Once,
};

use anyhow::{Context as _, Result, bail, ensure};

/// The versions of PostgreSQL that Waybill is tested with, newest first.
const POSTGRES_MAJORS: [u32; 4] = [18, 17, 16, 15];

/// The manual of this version is the demo's corpus, so it is looked for first.
const MANUAL_MAJORS: [u32; 4] = [15, 16, 17, 18];

/// Another package manager may be at work, as it is on a machine just booted.
const APT_LOCK_WAIT: &str = "DPkg::Lock::Timeout=120";

/// Makes sure that PostgreSQL 15 or later is installed.
///
/// # Errors
/// No package manager that we know, no right to install, or no such package.
pub(crate) fn ensure_postgres() -> Result<()> {
    if env::var_os("WAYBILL_POSTGRES_BIN_DIR").is_some() || has_postgres() {
        return Ok(());
    }
    match PackageManager::find()? {
        PackageManager::Apt => {
            say("PostgreSQL", "apt-get", "50 MB to download, 200 MB on disk, about a minute");
            apt_update_once()?;
            let package = apt_newest_postgres()?;
            apt_install(&["postgresql-common"])?;
            let _no_cluster = NoMainCluster::declare()?;
            apt_install(&[&package])?;
        }
        PackageManager::Brew => {
            say("PostgreSQL", "brew", "25 MB to download, 80 MB on disk, about a minute");
            run(Command::new("brew").args(["install", "postgresql@17"]))?;
        }
    }
    ensure!(has_postgres(), "PostgreSQL was installed, but it is not where it is looked for");
    Ok(())
}

/// Makes sure that Redis or Valkey is installed.
///
/// # Errors
/// No package manager that we know, or no right to install.
pub(crate) fn ensure_redis() -> Result<()> {
    let present = || ["redis-server", "valkey-server"].iter().any(|name| on_path(name).is_some());
    if env::var_os("WAYBILL_REDIS_BIN").is_some() || present() {
        return Ok(());
    }
    match PackageManager::find()? {
        PackageManager::Apt => {
            say("Redis", "apt-get", "2 MB to download, 8 MB on disk, a few seconds");
            apt_update_once()?;
            // Debian starts what it installs; ours are private, so this one is not needed.
            let _no_start = NoServiceStart::declare()?;
            apt_install(&["redis-server"])?;
        }
        PackageManager::Brew => {
            say("Redis", "brew", "2 MB to download, 8 MB on disk, a few seconds");
            run(Command::new("brew").args(["install", "redis"]))?;
        }
    }
    ensure!(present(), "Redis was installed, but redis-server is not on PATH");
    Ok(())
}

/// Installs the library of Python 3.11.
///
/// # Errors
/// No package manager that we know, or no right to install.
pub(crate) fn ensure_libpython() -> Result<()> {
    match PackageManager::find()? {
        PackageManager::Apt => {
            say("Python's library", "apt-get", "2 MB to download, 8 MB on disk, a few seconds");
            apt_update_once()?;
            apt_install(&["libpython3.11"])
        }
        PackageManager::Brew => bail!("install Python 3.11 with its shared library"),
    }
}

/// Makes sure that `python3 -m pip` works.
///
/// # Errors
/// No package manager that we know, or no right to install.
pub(crate) fn ensure_pip() -> Result<()> {
    let works = || {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
        pip.status().is_ok_and(|status| status.success())
    };
    if works() {
        return Ok(());
    }
    match PackageManager::find()? {
        PackageManager::Apt => {
            say("pip", "apt-get", "8 MB to download, 40 MB on disk, about half a minute");
            apt_update_once()?;
            apt_install(&["python3-pip"])?;
        }
        PackageManager::Brew => {
            say("Python", "brew", "20 MB to download, 70 MB on disk, about a minute");
            run(Command::new("brew").args(["install", "python"]))?;
        }
    }
    ensure!(works(), "Python was installed, but `python3 -m pip` does not work");
    Ok(())
}

/// Finds the folder of the PostgreSQL manual's HTML pages; fetches it if it is not there.
///
/// The package is unpacked into `target/`, not installed: that needs no rights, works on
/// slim images that leave documentation out, and drags no server update along.
/// `None`, with the reason on standard error, if it can't be had.
///
/// # Errors
/// If the package was fetched and can't be unpacked.
pub(crate) fn ensure_postgresql_doc() -> Result<Option<PathBuf>> {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/postgresql-doc");
    if let Some(found) = [Path::new("/"), &unpacked].into_iter().find_map(manual_under) {
        return Ok(Some(found));
    }
    if on_path("apt-get").is_none() || on_path("dpkg-deb").is_none() {
        eprintln!("no PostgreSQL manual here, and no apt-get to fetch it with");
        return Ok(None);
    }
    eprintln!("fetching the PostgreSQL manual with apt-get (2 MB, a few seconds)");
    let package = match download_manual(&unpacked) {
        Ok(package) => package,
        Err(error) => {
            eprintln!("the PostgreSQL manual can't be fetched: {error:#}");
            return Ok(None);
        }
    };
    run(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&unpacked))?;
    fs::remove_file(&package).with_context(|| format!("remove {}", package.display()))?;
    let found = manual_under(&unpacked);
    ensure!(found.is_some(), "the package of the PostgreSQL manual holds no pages");
    Ok(found)
}

/// Looks for the manual in a file system that begins at `root`.
fn manual_under(root: &Path) -> Option<PathBuf> {
    MANUAL_MAJORS
        .iter()
        .map(|major| root.join(format!("usr/share/doc/postgresql-doc-{major}/html")))
        // A page that every version has: a slim image may keep the folder and drop the pages.
        .find(|html| html.join("sql-select.html").is_file())
        .and_then(|html| html.canonicalize().ok())
}

/// Downloads the package of the manual into `folder` and returns its path.
fn download_manual(folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    if let Ok(package) = download_first_manual(folder) {
        return Ok(package);
    }
    // The lists of packages may be missing, or older than what the mirror still has.
    apt_update_once()?;
    download_first_manual(folder)
}

fn download_first_manual(folder: &Path) -> Result<PathBuf> {
    let mut why = None;
    for major in MANUAL_MAJORS {
        match apt_download(&format!("postgresql-doc-{major}"), folder) {
            Ok(package) => return Ok(package),
            Err(error) => why = why.or(Some(error)),
        }
    }
    Err(why.context("no version of the manual to look for")?)
}

fn apt_download(package: &str, folder: &Path) -> Result<PathBuf> {
    let mut apt = Command::new("apt-get");
    // Without the sandbox: its user can't write to our folder, and would only say so.
    apt.args(["-o", "APT::Sandbox::User=root", "download", package]).current_dir(folder);
    run(&mut apt)?;
    deb_in(folder)
}

/// Makes sure that buildah is installed, which makes images without a daemon.
///
/// # Errors
/// No apt, or no right to install.
pub(crate) fn ensure_buildah() -> Result<()> {
    if on_path("buildah").is_some() {
        return Ok(());
    }
    ensure!(on_path("apt-get").is_some(), "buildah is not here: install it, then run this again");
    say("buildah", "apt-get", "9 MB to download, 40 MB on disk, a few seconds");
    apt_update_once()?;
    apt_install(&["buildah", "crun"])
}

/// Makes sure that `promtool` is in `folder` or on PATH.
///
/// It comes with Debian's Prometheus, whose package is unpacked and not installed: an installed
/// one starts a server.
///
/// # Errors
/// No package manager that we know, or no such package.
pub(crate) fn ensure_promtool(folder: &Path) -> Result<()> {
    let promtool = folder.join("promtool");
    if promtool.is_file() || on_path("promtool").is_some() {
        return Ok(());
    }
    match PackageManager::find()? {
        PackageManager::Apt => {
            eprintln!("fetching promtool with apt-get (Debian's prometheus: 19 MB, a few seconds)");
            let aside = folder.with_extension(format!("{}.partial", std::process::id()));
            fs::create_dir_all(&aside).with_context(|| format!("create {}", aside.display()))?;
            let package = apt_download("prometheus", &aside).or_else(|_| {
                // The lists of packages may be missing, or older than what the mirror still has.
                apt_update_once()?;
                apt_download("prometheus", &aside)
            })?;
            run(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&aside))?;
            fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
            fs::rename(aside.join("usr/bin/promtool"), &promtool).context("move promtool into place")?;
            fs::remove_dir_all(&aside).with_context(|| format!("remove {}", aside.display()))
        }
        PackageManager::Brew => {
            say("promtool", "brew", "Prometheus: 100 MB to download, about a minute");
            run(Command::new("brew").args(["install", "prometheus"]))
        }
    }
}

fn deb_in(folder: &Path) -> Result<PathBuf> {
    fs::read_dir(folder)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get left no package")
}

/// The package managers that we know.
enum PackageManager {
    Apt,
    Brew,
}

impl PackageManager {
    fn find() -> Result<Self> {
        if on_path("apt-get").is_some() {
            return Ok(Self::Apt);
        }
        if on_path("brew").is_some() {
            return Ok(Self::Brew);
        }
        bail!(
            "neither apt-get nor brew is here: install PostgreSQL 15 or later, Redis (or Valkey) \
             and Python 3 with pip by hand, then run this again"
        )
    }
}

/// Tells whether PostgreSQL 15 or later stands where the stores look for it.
fn has_postgres() -> bool {
    let roots = ["/usr/lib/postgresql/", "/usr/pgsql-", "/opt/homebrew/opt/postgresql@", "/usr/local/opt/postgresql@"];
    let usual = POSTGRES_MAJORS
        .iter()
        .flat_map(|major| roots.iter().map(move |root| PathBuf::from(format!("{root}{major}/bin"))))
        .any(|bin| bin.join("initdb").is_file() && bin.join("psql").is_file());
    usual || on_path("postgres").is_some_and(|postgres| is_new_enough(&postgres))
}

fn is_new_enough(postgres: &Path) -> bool {
    let Ok(output) = Command::new(postgres).arg("--version").output() else {
        return false;
    };
    let version = String::from_utf8_lossy(&output.stdout).into_owned();
    POSTGRES_MAJORS.iter().any(|major| version.contains(&format!("(PostgreSQL) {major}")))
}

pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file())
}

fn say(what: &str, with: &str, cost: &str) {
    eprintln!("{what} is missing: installing it with {with} ({cost})");
}

fn apt_update_once() -> Result<()> {
    static ONCE: Once = Once::new();
    let mut outcome = Ok(());
    ONCE.call_once(|| outcome = run(as_root("apt-get").args(["-o", APT_LOCK_WAIT, "update"])));
    outcome
}

fn apt_install(packages: &[&str]) -> Result<()> {
    let mut apt = as_root("env");
    apt.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", APT_LOCK_WAIT])
        .args(["install", "--yes", "--no-install-recommends"])
        .args(packages);
    run(&mut apt)
        .with_context(|| format!("install {} by hand (apt-get install {0}), then run this again", packages.join(" ")))
}

/// Finds the newest PostgreSQL that this release of the system has.
fn apt_newest_postgres() -> Result<String> {
    POSTGRES_MAJORS
        .iter()
        .map(|major| format!("postgresql-{major}"))
        .find(|package| run(Command::new("apt-cache").args(["show", package])).is_ok())
        .context(
            "this release of the system has no PostgreSQL 15 or later: install it from \
             PostgreSQL's own package repository, then run this again",
        )
}

/// While it lives, installing a PostgreSQL package makes no cluster and so starts no
/// server. A file of its own beside the configuration, which stays as it is.
struct NoMainCluster;

impl NoMainCluster {
    const PATH: &str = "/etc/postgresql-common/createcluster.d/waybill-setup.conf";

    fn declare() -> Result<Self> {
        let script =
            format!("mkdir -p \"$(dirname {path})\" && echo 'create_main_cluster = false' > {path}", path = Self::PATH);
        run(as_root("sh").args(["-c", &script]))?;
        Ok(Self)
    }
}

impl Drop for NoMainCluster {
    fn drop(&mut self) {
        if let Err(error) = run(as_root("rm").args(["-f", Self::PATH])) {
            eprintln!("{} stays: {error:#}", Self::PATH);
        }
    }
}

/// While it lives, installing a package starts no service: Debian's own switch for it.
/// One that the system has already is left alone.
struct NoServiceStart {
    ours: bool,
}

impl NoServiceStart {
    const PATH: &str = "/usr/sbin/policy-rc.d";

    fn declare() -> Result<Self> {
        let ours = !Path::new(Self::PATH).exists();
        if ours {
            let script = format!("printf '#!/bin/sh\\nexit 101\\n' > {0} && chmod 755 {0}", Self::PATH);
            run(as_root("sh").args(["-c", &script]))?;
        }
        Ok(Self { ours })
    }
}

impl Drop for NoServiceStart {
    fn drop(&mut self) {
        if !self.ours {
            return;
        }
        if let Err(error) = run(as_root("rm").args(["-f", Self::PATH])) {
            eprintln!("{} stays, and keeps services from starting: {error:#}", Self::PATH);
        }
    }
}

/// Prepares a command that runs as root: as it is if we are root, else by sudo.
fn as_root(program: &str) -> Command {
    let identity = Command::new("id").arg("-u").output();
    if identity.is_ok_and(|output| output.stdout.trim_ascii() == b"0") {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    if !stdin().is_terminal() {
        // Nobody there to type a password: fail rather than wait for one.
        sudo.arg("--non-interactive");
    }
    sudo.arg("--").arg(program);
    sudo
}

/// Runs a command; what it printed comes up only if it fails. It may ask for a password.
fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::inherit()).output().with_context(|| format!("start {program}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{program} ended with {}: {}", output.status, stderr.trim());
    }
    Ok(())
}
