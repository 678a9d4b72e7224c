//! An OpenTelemetry collector for the test that follows traces: rotel, from the Python package
//! index.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail, ensure};

use crate::{
    models::{self, Recipe},
    pip::{Target, Wheel},
    sh, system,
};

/// Returns the program, to be named in `WAYBILL_TEST_ROTEL`.
pub(crate) fn program() -> PathBuf {
    sh::target_dir().join("rotel/agent/rotel-agent")
}

/// Fetches the program and what it stands on. What is there already costs no network.
///
/// # Errors
/// No network, or no program for this machine.
pub(crate) fn ensure() -> anyhow::Result<()> {
    models::fetch_recipe("agent", &recipe()?, &sh::target_dir().join("rotel")).context("fetch rotel")?;
    let program = program();
    // The archive doesn't say that it may be run.
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("make {} executable", program.display()))?;
    if !runs() {
        system::ensure_libpython()?;
    }
    ensure!(runs(), "{} does not run: it needs libpython3.11.so.1.0", program.display());
    Ok(())
}

fn runs() -> bool {
    let mut command = Command::new(program());
    command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn recipe() -> anyhow::Result<Recipe> {
    let (platform, sha256) = match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => {
            ("manylinux_2_34_x86_64", "2f4117e58410c933e0dc042a268ef738dab2e3a5d63b5831209acdac2a6ddcb7")
        }
        ("linux", "aarch64") => {
            ("manylinux_2_34_aarch64", "4eb01f9e5d228e4086f63e16cf1d0fa6e92b724bde51f120932a742acec5b0ba")
        }
        (os, arch) => bail!("no collector is pinned for {os} on {arch}"),
    };
    Ok(Recipe {
        wheel: Wheel {
            package: "rotel",
            version: "0.0.1a15",
            target: Target::Platform(platform),
            megabytes: 10,
            sha256,
        },
        files: &[("rotel/rotel-agent", "rotel-agent"), ("rotel-0.0.1a15.dist-info/licenses/LICENSE", "LICENSE")],
        shared: None,
    })
}
