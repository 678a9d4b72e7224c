//! The state of the protos that changes are compared with.

use std::process::Command;

use crate::{sh, tools};

/// Everything that clients may rely on: descriptors of all protos, without comments.
const BASELINE: &str = "proto/baseline.binpb";

/// Makes the present state the one that later changes are compared with.
///
/// To be done when a version is released, or when a break is wanted and the message of its commit
/// says why.
///
/// # Errors
/// If buf can't be had, or the protos don't compile.
pub(crate) fn renew_baseline() -> anyhow::Result<()> {
    tools::ensure()?;
    let mut buf = Command::new(tools::dir().join("buf/buf"));
    buf.current_dir(sh::root()).args(["build", "proto", "--exclude-source-info", "--output", BASELINE]);
    sh::run(&mut buf)?;
    sh::print(&format!("{BASELINE}: later changes are compared with the protos as they are now\n"))
}
