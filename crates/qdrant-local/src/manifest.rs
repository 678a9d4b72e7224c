//! The manifest: which collections exist, how they are built, and their
//! aliases. It is the truth about them; a directory it doesn't name is rubbish
//! of a crash and is removed at the next start.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use qdrant_edge::{
    Distance, EdgeConfig, EdgeSparseVectorParams, EdgeVectorParams, Modifier, PayloadFieldSchema, WalOptions,
};
use serde::{Deserialize, Serialize};

use crate::error::StartError;

/// File name inside the data directory.
const MANIFEST_FILE: &str = "manifest.json";

/// Format this code writes; an older build refuses a newer file.
const FORMAT: u32 = 1;

/// Size of one engine log file, in bytes. The engine preallocates it, so the
/// default of 32 MiB would make every tiny collection cost that much disk. A
/// larger record gets a file of its own size.
const WAL_SEGMENT_BYTES: usize = 8 * 1024 * 1024;

/// Everything that is known about the data directory besides the points.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    format: u32,
    /// Number of the next collection directory. Never reused, so a directory
    /// that could not be removed can't come back under a new collection.
    next_dir: u64,
    /// Collections by name.
    pub(crate) collections: BTreeMap<String, CollectionSpec>,
    /// Collection name by alias.
    pub(crate) aliases: BTreeMap<String, String>,
}

/// How a collection is built.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CollectionSpec {
    /// Directory of its engine shard, below the data directory.
    pub(crate) dir: String,
    /// Dense vectors by name; the unnamed vector is `""`.
    pub(crate) dense: BTreeMap<String, DenseSpec>,
    /// Sparse vectors by name.
    pub(crate) sparse: BTreeMap<String, SparseSpec>,
    /// Payload indexes by key.
    pub(crate) indexes: BTreeMap<String, PayloadFieldSchema>,
    /// What a client has set, in KiB. Kept and told, and of no effect: no index is ever built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) indexing_threshold: Option<u64>,
}

/// A dense vector of a collection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DenseSpec {
    /// Dimensions.
    pub(crate) size: usize,
    /// Metric that ranks.
    pub(crate) distance: Distance,
    /// Whether vectors are memory-mapped instead of held in memory.
    pub(crate) on_disk: bool,
}

/// A sparse vector of a collection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SparseSpec {
    /// Whether the engine multiplies query weights by inverse document frequency.
    pub(crate) idf: bool,
}

impl CollectionSpec {
    /// Returns the engine's configuration for this collection.
    pub(crate) fn engine_config(&self) -> EdgeConfig {
        let mut config = EdgeConfig {
            wal_options: Some(WalOptions { segment_capacity: WAL_SEGMENT_BYTES, ..WalOptions::default() }),
            ..EdgeConfig::default()
        };
        for (name, spec) in &self.dense {
            let params = EdgeVectorParams {
                size: spec.size,
                distance: spec.distance,
                on_disk: Some(spec.on_disk),
                multivector_config: None,
                datatype: None,
                quantization_config: None,
                hnsw_config: None,
            };
            config.vectors.insert(name.clone(), params);
        }
        for (name, spec) in &self.sparse {
            let params = EdgeSparseVectorParams {
                modifier: spec.idf.then_some(Modifier::Idf),
                ..EdgeSparseVectorParams::default()
            };
            config.sparse_vectors.insert(name.clone(), params);
        }
        config
    }
}

impl Manifest {
    /// Reads the manifest of `data_dir`, or starts an empty one.
    pub(crate) fn load(data_dir: &Path) -> Result<Self, StartError> {
        let path = data_dir.join(MANIFEST_FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::empty()),
            Err(error) => return Err(StartError::io(format!("read {}", path.display()))(error)),
        };
        let manifest: Self = serde_json::from_slice(&bytes)
            .map_err(|error| StartError::Manifest { path: path.clone(), reason: error.to_string() })?;
        if manifest.format != FORMAT {
            return Err(StartError::Manifest {
                path,
                reason: format!("format {}, this build reads {FORMAT}", manifest.format),
            });
        }
        Ok(manifest)
    }

    fn empty() -> Self {
        Self { format: FORMAT, next_dir: 1, collections: BTreeMap::new(), aliases: BTreeMap::new() }
    }

    /// Reserves the name of a collection directory.
    pub(crate) fn reserve_dir(&mut self) -> String {
        let dir = format!("{:06}", self.next_dir);
        self.next_dir += 1;
        dir
    }

    /// Replaces the manifest on disk; durable when it returns.
    ///
    /// A reader sees the old one or the new one, whatever happens in between.
    pub(crate) fn save(&self, data_dir: &Path) -> io::Result<()> {
        let path = data_dir.join(MANIFEST_FILE);
        let temporary = path.with_extension("json.tmp");
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        sync_dir(data_dir)
    }
}

/// Makes creations, renames and removals inside `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
