//! The commands that compare the stores and have them made right.

use clap::Args;

use super::client::EndpointArgs;

/// Arguments of `waybill verify`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  waybill verify
  waybill verify --project handbook --repair
  waybill verify --json || mail -s \"drift\" ops

Compares Qdrant and the queue with Postgres while everything goes on. What is still on its way
is not drift. Vectors are not compared: `waybill reindex` writes them anew.

Exit codes:
  0  equal, or --repair has everything that differs delivered again (`waybill status` shows it)
  1  something differs
  2  wrong usage, or the comparison did not get to its end
  3  the relay can't be reached")]
pub(crate) struct VerifyArgs {
    /// Only this project [default: everything]
    #[arg(long, short, value_name = "NAME")]
    pub(crate) project: Option<String>,
    /// Have what differs delivered again
    #[arg(long)]
    pub(crate) repair: bool,
    #[command(flatten)]
    pub(crate) endpoint: EndpointArgs,
    /// Print the report as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `waybill recover`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  waybill recover handbook

The same as `waybill verify --project NAME --repair`, for when a store was lost, wiped or
restored from an older copy. Can be done twice. Exit codes are those of `waybill verify`.")]
pub(crate) struct RecoverArgs {
    /// Project
    pub(crate) project: String,
    #[command(flatten)]
    pub(crate) endpoint: EndpointArgs,
    /// Print the report as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `waybill reindex`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  waybill reindex --project handbook
  waybill reindex --project handbook --source guide/start.md
  waybill reindex --all
  waybill reindex --all --model minilm-int8

Has points written anew, right or wrong, with their vectors. What was embedded before comes
from the cache. `waybill status` shows how far delivery is.

With --model, everything is embedded by that model into a collection of its own, while searches
and writes go on. When it is equal to Postgres, searches use it, and the old one is deleted. The
embedding service must serve both (embedding.more_models). Run it again if it was interrupted: it
goes on where it was, or ends with --cancel-build.")]
pub(crate) struct ReindexArgs {
    /// This project
    #[arg(long, short, value_name = "NAME", required_unless_present_any = ["all", "cancel_build"], conflicts_with = "all")]
    pub(crate) project: Option<String>,
    /// Only this source of it; entities, which belong to many, are left out
    #[arg(long, value_name = "URI", requires = "project", conflicts_with = "all")]
    pub(crate) source: Option<String>,
    /// Every project
    #[arg(long)]
    pub(crate) all: bool,
    /// Change to this model
    #[arg(long, value_name = "NAME", requires = "all")]
    pub(crate) model: Option<String>,
    /// End a change of the model, and delete the collection it has built
    #[arg(long, conflicts_with_all = ["all", "project", "model"])]
    pub(crate) cancel_build: bool,
    #[command(flatten)]
    pub(crate) endpoint: EndpointArgs,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}
