//! The commands that talk to running services.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::DataDirArg;
use super::access::CredentialArgs;

/// How a client command finds its service.
#[derive(Debug, Clone, Args)]
pub(crate) struct EndpointArgs {
    /// URL of the service [default: the running `waybill up`, else this machine's default port]
    #[arg(long, value_name = "URL", env = "WAYBILL_ENDPOINT", help_heading = "Connection")]
    pub(crate) endpoint: Option<String>,
    #[command(flatten)]
    pub(crate) data_dir: DataDirArg,
    #[command(flatten)]
    pub(crate) credentials: CredentialArgs,
}

/// Which project a command works on.
#[derive(Debug, Clone, Args)]
pub(crate) struct ProjectArg {
    /// Project
    #[arg(long, short, value_name = "NAME", env = "WAYBILL_PROJECT", default_value = "default")]
    pub(crate) project: String,
}

/// Arguments of `waybill import`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  waybill import ./docs --project handbook
  waybill import /usr/share/doc/postgresql-doc-15/html --project postgres --wait
  waybill import notes.jsonl
  some-export | waybill import -

A JSON line is {\"uri\", \"text\"} with \"title\", \"media_type\" (text, markdown, html)
and \"metadata\" (an object) if you like.

What is sent twice is stored once: after a crash or Ctrl-C, run the same command again.")]
pub(crate) struct ImportArgs {
    /// Folder, file, or - for JSON lines on stdin
    pub(crate) path: PathBuf,
    #[command(flatten)]
    pub(crate) project: ProjectArg,
    #[command(flatten)]
    pub(crate) endpoint: EndpointArgs,
    /// Read files as this, whatever their names end in
    #[arg(long, value_enum, default_value_t = Format::Auto, help_heading = "Documents")]
    pub(crate) format: Format,
    /// Put in front of each relative path to make its uri
    #[arg(long, value_name = "PREFIX", help_heading = "Documents")]
    pub(crate) uri_prefix: Option<String>,
    /// Metadata of every document, for `search --filter`; repeatable
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value, help_heading = "Documents")]
    pub(crate) metadata: Vec<(String, String)>,
    /// Larger documents are skipped
    #[arg(long, value_name = "MIB", default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=1024), help_heading = "Documents")]
    pub(crate) max_size: u64,
    /// Delete sources under --uri-prefix that this import did not find
    #[arg(long, requires = "uri_prefix", help_heading = "Documents")]
    pub(crate) prune: bool,
    /// Wait until everything is searchable, and say how long that took
    #[arg(long)]
    pub(crate) wait: bool,
    /// Have relays make room while this loads: larger batches, no index built meanwhile
    #[arg(long, help_heading = "Large loads")]
    pub(crate) bulk: bool,
    /// Stop delivery while this loads: pause, wait for what is under way, load, resume
    #[arg(long, conflicts_with = "bulk", help_heading = "Large loads")]
    pub(crate) coordinated: bool,
    /// URL of the relay, for --wait, --bulk and --coordinated [default: as for --endpoint]
    #[arg(long, value_name = "URL", env = "WAYBILL_RELAY_ENDPOINT", help_heading = "Connection")]
    pub(crate) relay_endpoint: Option<String>,
    /// Print the result as JSON, with every failed and skipped document
    #[arg(long)]
    pub(crate) json: bool,
}

/// How files are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// By the end of the name; stdin as JSON lines
    Auto,
    /// Plain text
    Text,
    /// Markdown
    Markdown,
    /// HTML
    Html,
    /// One document a line
    Jsonl,
}

/// Arguments of `waybill search`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  waybill search \"how do I partition a table?\" --project postgres
  waybill search vacuum --mode lexical --limit 3
  waybill search \"connection limits\" --filter lang=en --json")]
pub(crate) struct SearchArgs {
    /// What to look for
    #[arg(required = true, num_args = 1..)]
    pub(crate) query: Vec<String>,
    #[command(flatten)]
    pub(crate) project: ProjectArg,
    #[command(flatten)]
    pub(crate) endpoint: EndpointArgs,
    /// By meaning and by words (hybrid), or one of the two
    #[arg(long, short, value_enum, default_value_t = Mode::Hybrid)]
    pub(crate) mode: Mode,
    /// How many hits, 1 to 100
    #[arg(long, short = 'n', default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(crate) limit: u8,
    /// Leave out hits that score lower; scores of different modes can't be compared
    #[arg(long, value_name = "SCORE")]
    pub(crate) min_score: Option<f32>,
    /// Only sources with this metadata; repeatable, all must hold
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) filter: Vec<(String, String)>,
    /// Only this source; repeatable
    #[arg(long, value_name = "URI")]
    pub(crate) source: Vec<String>,
    /// Wait until the index has this write, named by its freshness token; repeatable
    #[arg(long, value_name = "TOKEN")]
    pub(crate) at_least_as_fresh: Vec<String>,
    /// What to find; repeatable
    #[arg(long, short, value_enum, default_value = "passage")]
    pub(crate) kind: Vec<HitKind>,
    /// Fail if nothing is found: for scripts that have just put it in
    #[arg(long)]
    pub(crate) require_hit: bool,
    /// Print passages whole
    #[arg(long)]
    pub(crate) full: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// What a search finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum HitKind {
    /// Passages of documents
    Passage,
    /// Facts, each with the words that it rests on
    Fact,
    /// Whom and what facts are about
    Entity,
}

/// How a search ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Both, fused by rank
    Hybrid,
    /// By meaning
    Dense,
    /// By words (BM25)
    Lexical,
}

/// Arguments of `waybill status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) endpoint: EndpointArgs,
    /// Refresh until Ctrl-C
    #[arg(long, short)]
    pub(crate) watch: bool,
    /// Seconds between two looks, with --watch
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) interval: u64,
    /// List the lanes too
    #[arg(long)]
    pub(crate) lanes: bool,
    /// Print one JSON object (with --watch: one a line)
    #[arg(long)]
    pub(crate) json: bool,
}

/// What to do with projects.
#[derive(Debug, Subcommand)]
pub(crate) enum ProjectsCommand {
    /// List projects
    Ls {
        #[command(flatten)]
        endpoint: EndpointArgs,
        /// Print one JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Create a project
    Create {
        /// 1 to 64 of a-z, 0-9 and "-"
        name: String,
        #[command(flatten)]
        endpoint: EndpointArgs,
    },
    /// Delete a project with everything in it
    Delete {
        /// Project
        name: String,
        /// Don't ask
        #[arg(long, short)]
        yes: bool,
        #[command(flatten)]
        endpoint: EndpointArgs,
    },
}

/// What to do with sources.
#[derive(Debug, Subcommand)]
pub(crate) enum SourcesCommand {
    /// List sources
    Ls {
        #[command(flatten)]
        project: ProjectArg,
        #[command(flatten)]
        endpoint: EndpointArgs,
        /// Only uris that begin so
        #[arg(long, default_value = "")]
        prefix: String,
        /// At most this many
        #[arg(long, short = 'n', default_value_t = 50)]
        limit: u32,
        /// Print one JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Show one source
    Get {
        /// The source's uri
        uri: String,
        #[command(flatten)]
        project: ProjectArg,
        #[command(flatten)]
        endpoint: EndpointArgs,
        /// Print its readable text and nothing else
        #[arg(long)]
        text: bool,
        /// Print one JSON object
        #[arg(long, conflicts_with = "text")]
        json: bool,
    },
    /// Delete one source with its passages
    Delete {
        /// The source's uri
        uri: String,
        #[command(flatten)]
        project: ProjectArg,
        #[command(flatten)]
        endpoint: EndpointArgs,
    },
}

fn key_value(argument: &str) -> Result<(String, String), String> {
    match argument.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE, for example lang=en".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_needs_a_key() {
        assert_eq!(key_value("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(key_value("=b").is_err());
        assert!(key_value("a").is_err());
    }
}
