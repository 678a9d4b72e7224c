//! `waybill config`.

use waybill_runtime::config::render_redacted;

use crate::app_config::{self, AppConfig};
use crate::cli::ConfigArgs;
use crate::out::Out;

/// Runs the command.
pub(crate) fn run(args: &ConfigArgs) -> anyhow::Result<()> {
    let file = args.source.config.as_deref();
    let config = AppConfig::load(file)?;
    if args.check {
        eprintln!("the configuration is valid");
        return Ok(());
    }
    let mut out = Out::new();
    out.line("# Layers, the later wins: defaults, file, environment.")?;
    match file {
        Some(file) => out.line(format_args!("# file: {}", file.display()))?,
        None => out.line("# file: none (--config names one)")?,
    }
    let variables = app_config::variables_in_use();
    let variables = if variables.is_empty() { "none".to_owned() } else { variables.join(", ") };
    out.line(format_args!("# environment: {variables}"))?;
    out.line("")?;
    out.text(&render_redacted(&config)?)?;
    out.flush()
}
