//! `endpoints.json`: how the client commands find a running `waybill up`.

use std::collections::BTreeMap;
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
    /// Metrics and health, over HTTP or HTTPS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) admin: Option<String>,
}

/// The file in `data_dir`.
pub(crate) fn file_in(data_dir: &Path) -> PathBuf {
    data_dir.join(FILE)
}

/// Where the stores of a running `waybill up` answer, with their passwords: for its owner only.
const STORES_FILE: &str = "stores.json";

/// Where the stores of a running `waybill up` answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct StoreUrls {
    pub(crate) database: SecretUrl,
    pub(crate) redis: SecretUrl,
    pub(crate) qdrant: SecretUrl,
}

/// The file with the URLs of the stores in `data_dir`.
pub(crate) fn stores_file_in(data_dir: &Path) -> PathBuf {
    data_dir.join(STORES_FILE)
}

/// Reads the URLs of the stores; `None` if there is no such file.
pub(crate) fn read_stores(data_dir: &Path) -> anyhow::Result<Option<StoreUrls>> {
    let path = stores_file_in(data_dir);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let urls: BTreeMap<String, String> = serde_json::from_str(&text)
        .with_context(|| format!("read {}: remove it, or start `waybill up` anew", path.display()))?;
    let url = |name: &str| urls.get(name).map(SecretUrl::new).unwrap_or_default();
    Ok(Some(StoreUrls { database: url("database"), redis: url("redis"), qdrant: url("qdrant") }))
}

impl StoreUrls {
    /// Writes the file so that only its owner can read it.
    pub(crate) fn write(&self, data_dir: &Path) -> anyhow::Result<()> {
        let path = stores_file_in(data_dir);
        let urls = [("database", &self.database), ("redis", &self.redis), ("qdrant", &self.qdrant)];
        let urls: BTreeMap<_, _> = urls.into_iter().map(|(name, url)| (name, url.expose())).collect();
        let text = serde_json::to_string_pretty(&urls)?;
        let unfinished = path.with_extension("tmp");
        let write = || -> io::Result<()> {
            Endpoints::remove(&unfinished);
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
            file.write_all(text.as_bytes())?;
            fs::rename(&unfinished, &path)
        };
        write().with_context(|| format!("write {}", path.display()))
    }
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
