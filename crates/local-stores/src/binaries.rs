//! Where the servers' programs are.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::StoreError;

/// The oldest PostgreSQL that the schema works on.
const OLDEST_MAJOR: u32 = 15;

const POSTGRES_VARIABLE: &str = "WAYBILL_POSTGRES_BIN_DIR";
const REDIS_VARIABLE: &str = "WAYBILL_REDIS_BIN";

/// Folders with a subfolder per major version, and what stands before and after the
/// number: Debian's, PGDG's RPMs', Homebrew's on ARM and on Intel, Postgres.app's.
const VERSIONED: &[(&str, &str, &str)] = &[
    ("/usr/lib/postgresql", "", "bin"),
    ("/usr", "pgsql-", "bin"),
    ("/opt/homebrew/opt", "postgresql@", "bin"),
    ("/usr/local/opt", "postgresql@", "bin"),
    ("/Applications/Postgres.app/Contents/Versions", "", "bin"),
];

/// Folders that may hold any version: built from source, Homebrew's unversioned.
const UNVERSIONED: &[&str] =
    &["/usr/local/pgsql/bin", "/opt/homebrew/opt/postgresql/bin", "/usr/local/opt/postgresql/bin"];

const REDIS_NAMES: &[&str] = &["redis-server", "valkey-server"];

const REDIS_DIRS: &[&str] = &["/usr/bin", "/usr/local/bin", "/opt/homebrew/bin"];

/// The programs of one PostgreSQL installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresBinaries {
    dir: PathBuf,
    major: u32,
}

impl PostgresBinaries {
    /// Finds the installation to use: `WAYBILL_POSTGRES_BIN_DIR`, else the newest of
    /// all that are on PATH and in the usual places.
    ///
    /// # Errors
    /// [`StoreError::NotInstalled`] if there is none, or none of version 15 or later.
    pub fn find() -> Result<Self, StoreError> {
        if let Some(dir) = env::var_os(POSTGRES_VARIABLE) {
            return Self::at(Path::new(&dir)).ok_or_else(not_installed);
        }
        candidates().into_iter().max_by_key(|found| found.major).ok_or_else(not_installed)
    }

    /// Finds an installation of exactly this major version.
    pub(crate) fn find_major(major: u32) -> Option<Self> {
        if let Some(dir) = env::var_os(POSTGRES_VARIABLE) {
            return Self::at(Path::new(&dir)).filter(|found| found.major == major);
        }
        candidates().into_iter().find(|found| found.major == major)
    }

    /// Looks for a complete installation in `dir`.
    fn at(dir: &Path) -> Option<Self> {
        // PATH may lead to a link; the other programs stand beside what it points to.
        let dir = dir.join("postgres").canonicalize().ok()?.parent()?.to_owned();
        if !["initdb", "psql"].iter().all(|program| dir.join(program).is_file()) {
            return None;
        }
        let output = Command::new(dir.join("postgres")).arg("--version").output().ok()?;
        let major = parse_major(&String::from_utf8_lossy(&output.stdout))?;
        (major >= OLDEST_MAJOR).then_some(Self { dir, major })
    }

    /// Returns the major version.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// Returns the path of one of the programs, such as `psql`.
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Returns a command that runs `psql` on `url`: no start-up file, stop at the first
    /// error, unaligned rows without headers.
    ///
    /// What the caller's environment says about Postgres connections is left out,
    /// so that it can't change where the command goes.
    pub fn psql(&self, url: &str) -> Command {
        let mut command = Command::new(self.program("psql"));
        command.args(["-X", "-q", "-A", "-t", "-w", "-v", "ON_ERROR_STOP=1"]);
        forget_connection_settings(&mut command);
        // The URL holds a password, and arguments are there for everybody to see.
        match split_password(url) {
            // One that is encoded for the URL would have to be decoded for the environment.
            Some((password, _)) if password.contains('%') => command.arg("-d").arg(url),
            Some((password, bare)) => command.env("PGPASSWORD", password).arg("-d").arg(bare),
            None => command.arg("-d").arg(url),
        };
        command
    }
}

/// The installations on PATH and in the usual places, PATH first.
fn candidates() -> Vec<PostgresBinaries> {
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).collect::<Vec<_>>();
    let versioned = VERSIONED.iter().flat_map(|(root, prefix, bin)| {
        let mut found = subfolders(Path::new(root))
            .into_iter()
            .filter_map(|(name, path)| {
                let major: u32 = name.strip_prefix(prefix)?.parse().ok()?;
                Some((major, path.join(bin)))
            })
            .collect::<Vec<_>>();
        found.sort_by_key(|(major, _)| std::cmp::Reverse(*major));
        found.into_iter().map(|(_, dir)| dir)
    });
    let unversioned = UNVERSIONED.iter().map(PathBuf::from);

    let mut found: Vec<PostgresBinaries> = Vec::new();
    for dir in on_path.into_iter().chain(versioned).chain(unversioned) {
        match PostgresBinaries::at(&dir) {
            Some(binaries) if !found.contains(&binaries) => found.push(binaries),
            _ => {}
        }
    }
    found
}

fn subfolders(root: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = fs::read_dir(root) else {
        return Vec::new();
    };
    entries.flatten().filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path()))).collect()
}

/// Reads `postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)` and `... 19beta1`.
fn parse_major(version: &str) -> Option<u32> {
    let number = version.split("(PostgreSQL)").nth(1)?.trim_start();
    let digits = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    number[..digits].parse().ok()
}

/// Takes the password out of `scheme://user:password@rest`.
fn split_password(url: &str) -> Option<(&str, String)> {
    let (scheme, rest) = url.split_once("://")?;
    let (user_info, rest) = rest.split_once('@')?;
    let (user, password) = user_info.split_once(':')?;
    Some((password, format!("{scheme}://{user}@{rest}")))
}

/// Removes libpq's environment variables from a command.
pub(crate) fn forget_connection_settings(command: &mut Command) {
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
}

fn not_installed() -> StoreError {
    let places = VERSIONED.iter().map(|(root, prefix, bin)| format!("{root}/{prefix}*/{bin}"));
    let places = places.chain(UNVERSIONED.iter().map(|dir| (*dir).to_owned()));
    StoreError::NotInstalled {
        program: "PostgreSQL 15 or later",
        looked_in: places.collect::<Vec<_>>().join(", "),
        install: "install it (Debian: apt-get install postgresql, macOS: brew install postgresql@17)",
        variable: POSTGRES_VARIABLE,
    }
}

/// The Redis (or Valkey) server program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisBinary {
    path: PathBuf,
}

impl RedisBinary {
    /// Finds the server to use: `WAYBILL_REDIS_BIN` (the program, or the directory it
    /// is in), else `redis-server` or `valkey-server` on PATH and in the usual places.
    ///
    /// # Errors
    /// [`StoreError::NotInstalled`] if there is none.
    pub fn find() -> Result<Self, StoreError> {
        let found = match env::var_os(REDIS_VARIABLE).map(PathBuf::from) {
            Some(program) if program.is_file() => Some(program),
            Some(dir) => in_dirs([dir]),
            None => {
                let path = env::var_os("PATH").unwrap_or_default();
                in_dirs(env::split_paths(&path).chain(REDIS_DIRS.iter().map(PathBuf::from)))
            }
        };
        found.map(|path| Self { path }).ok_or_else(|| StoreError::NotInstalled {
            program: "Redis (or Valkey)",
            looked_in: REDIS_DIRS.join(", "),
            install: "install it (Debian: apt-get install redis-server, macOS: brew install redis)",
            variable: REDIS_VARIABLE,
        })
    }

    /// Returns the program's path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn in_dirs(dirs: impl IntoIterator<Item = PathBuf>) -> Option<PathBuf> {
    dirs.into_iter()
        .flat_map(|dir| REDIS_NAMES.iter().map(move |name| dir.join(name)))
        .find(|program| program.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn major_versions_are_read_from_what_postgres_prints() {
        let cases = [
            ("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n", Some(15)),
            ("postgres (PostgreSQL) 18.6", Some(18)),
            ("postgres (PostgreSQL) 19beta1", Some(19)),
            ("postgres (PostgreSQL)", None),
            ("cockroach 25", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_major(text), expected, "{text}");
        }
    }

    #[test]
    fn a_password_is_taken_out_of_the_url() {
        let url = "postgres://waybill:s3cret@127.0.0.1:5432/db";
        let (password, bare) = split_password(url).unwrap();
        assert_eq!(password, "s3cret");
        assert_eq!(bare, "postgres://waybill@127.0.0.1:5432/db");
        assert_eq!(split_password("postgres://waybill@127.0.0.1/db"), None);
        assert_eq!(split_password("postgres:///db"), None);
    }
}
