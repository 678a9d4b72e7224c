//! `endpoints.json`: how the client commands find a running `waybill up`.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use waybill_runtime::config::SecretUrl;

const FILE: &str = "endpoints.json";

/// Where the services of a running `waybill up` answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Endpoints {
    /// The process that serves them.
    pub(crate) pid: u32,
    /// IngestionService.
    pub(crate) ingestion: String,
    /// EmbeddingService and SearchService.
    pub(crate) embedding: String,
    /// ExtractionService.
    pub(crate) extraction: String,
    /// RelayService.
    pub(crate) relay: String,
    /// Metrics and health, over HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) admin: Option<String>,
}

/// The file in `data_dir`.
pub(crate) fn file_in(data_dir: &Path) -> PathBuf {
    data_dir.join(FILE)
}

/// Where the database of a running `waybill up` answers, with its password: for its owner only.
const DATABASE_FILE: &str = "database.url";

/// The file with the database's URL in `data_dir`.
pub(crate) fn database_file_in(data_dir: &Path) -> PathBuf {
    data_dir.join(DATABASE_FILE)
}

/// Reads the database's URL; `None` if there is none.
pub(crate) fn read_database_url(data_dir: &Path) -> anyhow::Result<Option<SecretUrl>> {
    let path = database_file_in(data_dir);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(SecretUrl::new(text.trim()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// Writes the database's URL so that only its owner can read it.
pub(crate) fn write_database_url(data_dir: &Path, url: &SecretUrl) -> anyhow::Result<()> {
    let path = database_file_in(data_dir);
    let unfinished = path.with_extension("tmp");
    let write = || -> io::Result<()> {
        Endpoints::remove(&unfinished);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
        file.write_all(url.expose().as_bytes())?;
        fs::rename(&unfinished, &path)
    };
    write().with_context(|| format!("write {}", path.display()))
}

impl Endpoints {
    /// Reads the file; `None` if there is none.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Option<Self>> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        serde_json::from_str(&text)
            .map(Some)
            .with_context(|| format!("read {}: remove it, or start `waybill up` anew", path.display()))
    }

    /// Writes the file as a whole: a reader sees the old one or the new one.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        let unfinished = path.with_extension(format!("{}.tmp", self.pid));
        fs::write(&unfinished, text)
            .and_then(|()| fs::rename(&unfinished, path))
            .with_context(|| format!("write {}", path.display()))
    }

    /// Removes a file that was written before. One that is gone is fine.
    pub(crate) fn remove(path: &Path) {
        if let Err(error) = fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "endpoints file stays");
        }
    }
}
