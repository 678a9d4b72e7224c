//! What `waybill up` says when it is ready.

use std::path::Path;
use std::time::Duration;

use console::style;

use crate::endpoints::Endpoints;
use crate::out::Out;
use crate::text;

/// What is worth knowing about a system that has just come up.
pub(super) struct Banner<'a> {
    pub(super) endpoints: &'a Endpoints,
    pub(super) data_dir: &'a Path,
    /// Whether `import` and the others find it without being told the data directory.
    pub(super) is_default_dir: bool,
    pub(super) model: &'a str,
    pub(super) took: Duration,
}

impl Banner<'_> {
    /// Prints it, and after it the line `ready` that scripts wait for.
    pub(super) fn print(&self, out: &mut Out) -> anyhow::Result<()> {
        let took = text::span(self.took);
        out.line("")?;
        out.line(format_args!("{} in {took}", style("Waybill is up").bold().green()))?;
        out.line("")?;
        row(out, "ingestion", &self.endpoints.ingestion)?;
        row(out, "search", &self.endpoints.embedding)?;
        row(out, "extraction", &self.endpoints.extraction)?;
        row(out, "relay", &self.endpoints.relay)?;
        if let Some(admin) = &self.endpoints.admin {
            row(out, "metrics", &format!("{admin}/metrics"))?;
        }
        row(out, "data", &self.data_dir.display().to_string())?;
        row(out, "model", self.model)?;
        out.line("")?;
        out.line("  Next, in another terminal:")?;
        out.line("")?;
        let flag = if self.is_default_dir { String::new() } else { format!(" --data-dir {}", self.data_dir.display()) };
        for command in ["import ./docs", "search \"what do I look for?\"", "extract", "facts", "status --watch"] {
            out.line(format_args!("    {}", style(format!("waybill {command}{flag}")).cyan()))?;
        }
        out.line("")?;
        out.line(format_args!("  {}", style("Ctrl-C stops it and keeps the data.").dim()))?;
        out.line("ready")?;
        out.flush()
    }
}

fn row(out: &mut Out, name: &str, value: &str) -> anyhow::Result<()> {
    out.line(format_args!("  {}  {value}", style(format!("{name:<10}")).dim()))
}
