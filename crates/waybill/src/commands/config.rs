//! `waybill config`.

use std::ffi::OsString;

use clap::Parser;
use waybill_runtime::config::{ConfigError, render_redacted};

use crate::app_config::{self, AppConfig};
use crate::cli::{Cli, Command, ConfigArgs};
use crate::commands::serve;
use crate::exit::Usage;
use crate::out::Out;

/// Runs the command.
pub(crate) fn run(args: &ConfigArgs) -> anyhow::Result<()> {
    if !args.args.is_empty() {
        return check_command(&args.args);
    }
    let file = args.source.config.as_deref();
    let config = AppConfig::load(file)?;
    if args.check {
        check_certificates(&config)?;
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

fn check_certificates(config: &AppConfig) -> Result<(), ConfigError> {
    config.certificates().into_iter().try_for_each(|(_, read)| read.map(drop))
}

/// Says whether a command line is valid, and the configuration that it would be run with.
fn check_command(args: &[OsString]) -> anyhow::Result<()> {
    let name = OsString::from("waybill");
    let command =
        Cli::try_parse_from(std::iter::once(&name).chain(args)).map_err(|error| Usage(error.to_string()))?.command;
    let source = match &command {
        Command::Up(args) => Some(&args.source),
        Command::Serve(args) => Some(&args.source),
        Command::Migrate(source) => Some(source),
        Command::Config(args) => Some(&args.source),
        _ => None,
    };
    if let Some(source) = source {
        let config = AppConfig::load(source.config.as_deref())?;
        check_certificates(&config)?;
        if let Command::Serve(args) = &command {
            serve::check_stores(&config, args.service)?;
        }
    }
    eprintln!("the command line and its configuration are valid");
    Ok(())
}
