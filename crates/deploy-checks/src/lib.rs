//! What the checks of `deploy/` and `proto/` share: running the real tools, rendering the chart,
//! reading what comes out. For tests alone; it knows of no other crate of ours.

pub mod chart;
pub mod compose;
pub mod dockerfile;
pub mod metrics;
pub mod policy;
pub mod tools;
pub mod yaml;

use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// Returns the folder of the workspace.
#[must_use]
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// Reads a text file of the repository.
///
/// # Errors
/// If it is not there or no UTF-8; the message names it.
pub fn read(path: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(workspace().join(path)).with_context(|| format!("read {path}"))
}
