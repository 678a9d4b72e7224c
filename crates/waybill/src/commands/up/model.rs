//! Which embedding model `waybill up` takes when nobody names one.

use std::env;
use std::path::{Path, PathBuf};

use waybill_models::{LocalConfig, ProviderKind};

use crate::app_config::AppConfig;
use crate::exit::Usage;

/// Folders that are looked for, the best first. What `cargo xtask fetch-models` fetches.
const KNOWN: [&str; 3] = ["minilm-int8", "minilm", "wordllama"];

/// Cargo puts this file into its target directory.
const TARGET_MARK: &str = "CACHEDIR.TAG";

/// Settles which model's folder is used, if the configuration leaves that open.
pub(super) fn choose(config: &mut AppConfig, named: Option<&Path>, data_dir: &Path) -> Result<(), Usage> {
    let model = &mut config.embedding.model;
    let is_configured = model.local.path != LocalConfig::default().path;
    if model.kind == ProviderKind::Local && (named.is_some() || !is_configured) {
        model.local.path = find(named, data_dir)?;
    }
    Ok(())
}

/// Says which model is used.
pub(super) fn describe(config: &AppConfig) -> String {
    let model = &config.embedding.model;
    match model.kind {
        ProviderKind::Local => model.local.path.display().to_string(),
        ProviderKind::OpenAi => format!("{} at {}", model.openai.model, model.openai.base_url),
        ProviderKind::Tei => model.tei.base_url.clone(),
    }
}

/// Finds the model's folder: the one named, else the first known one in the data directory
/// or, in a checkout, in `target/models`.
fn find(named: Option<&Path>, data_dir: &Path) -> Result<PathBuf, Usage> {
    if let Some(path) = named {
        if path.is_dir() {
            return Ok(path.to_owned());
        }
        let path = path.display();
        return Err(Usage(format!("there is no model folder {path}: mend --model-dir (or WAYBILL_MODEL_DIR)")));
    }
    let places = places(data_dir);
    let found =
        places.iter().find_map(|place| KNOWN.iter().map(|name| place.join(name)).find(|folder| folder.is_dir()));
    found.ok_or_else(|| {
        let looked: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
        Usage(format!(
            "no embedding model found (looked for {} in {}): `cargo xtask fetch-models` in a \
             checkout fetches them, --model-dir names a folder with another, and \
             [embedding] can name a server",
            KNOWN.join(", "),
            looked.join(", ")
        ))
    })
}

fn places(data_dir: &Path) -> Vec<PathBuf> {
    let mut places = vec![data_dir.join("models")];
    let mut add = |place: PathBuf| {
        if !places.contains(&place) {
            places.push(place);
        }
    };
    // `target/debug/waybill` has the models beside its folder.
    if let Ok(program) = env::current_exe() {
        let targets = program.ancestors().filter(|dir| dir.join(TARGET_MARK).is_file());
        targets.map(|target| target.join("models")).for_each(&mut add);
    }
    if let Ok(here) = env::current_dir() {
        add(here.join("target/models"));
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_directory_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("models/wordllama");
        std::fs::create_dir_all(&folder).unwrap();
        assert_eq!(find(None, dir.path()).unwrap(), folder);
    }

    #[test]
    fn a_named_folder_must_be_there() {
        let error = find(Some(Path::new("/no/such/model")), Path::new("/")).unwrap_err();
        assert!(error.to_string().contains("/no/such/model"), "{error}");
    }
}
