//! The commands that have facts found and show them.

use clap::{Args, ValueEnum};

use super::client::{EndpointArgs, ProjectArg};

/// Arguments of `waybill extract`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  waybill extract --project handbook
  waybill extract --prefix contracts/ --type obligation --type deadline
  waybill extract --instructions \"Who owes whom what, and until when?\"
  waybill extract --priority low --no-wait
  waybill extract --follow          and read all that is imported from now on

The default provider, `rules`, is not a language model: it picks sentences by counting
words, as facts of the type \"statement\", and takes no notice of --instructions. It is for
trying things out. To ask a language model, set `provider = \"openai\"` in [extraction] of
the configuration.

A fact comes with its words in the document; one without them is dropped. What is found
again is stored once. Ctrl-C ends the waiting, not the job.")]
pub(crate) struct ExtractArgs {
    #[command(flatten)]
    pub(crate) project: ProjectArg,
    #[command(flatten)]
    pub(crate) endpoint: EndpointArgs,
    /// Only documents whose uris begin so [default: all]
    #[arg(long, value_name = "URI_PREFIX")]
    pub(crate) prefix: Option<String>,
    /// What to look for, in words; the language model is given them as they are
    #[arg(long, value_name = "TEXT")]
    pub(crate) instructions: Option<String>,
    /// Only facts of this type, 1 to 64 of a-z, 0-9 and "_"; repeatable
    #[arg(long = "type", value_name = "FACT_TYPE")]
    pub(crate) fact_types: Vec<String>,
    /// Only entities of this type; repeatable
    #[arg(long = "entity-type", value_name = "TYPE")]
    pub(crate) entity_types: Vec<String>,
    /// Have the provider ask this model, as its server calls it [default: the configured one]
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<String>,
    /// Which jobs the workers take first
    #[arg(long, value_enum, default_value_t = Priority::Normal)]
    pub(crate) priority: Priority,
    /// Read passages that are imported later too, until the job is cancelled
    #[arg(long)]
    pub(crate) follow: bool,
    /// Start the job and leave it to itself
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// Print the job as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// How urgent a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Priority {
    /// Before the others
    High,
    /// In between
    Normal,
    /// When nothing else is to be done
    Low,
}

/// Arguments of `waybill jobs`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  waybill jobs --project handbook
  waybill jobs --watch
  waybill jobs 0197a3c2-8d4e-7c61-9f3a-5b1e2d4c6a80 --watch     until it has ended
  waybill jobs 0197a3c2-8d4e-7c61-9f3a-5b1e2d4c6a80 --requests --state dead
  waybill jobs --cancel 0197a3c2-8d4e-7c61-9f3a-5b1e2d4c6a80

Cancelling keeps the facts that were found.")]
pub(crate) struct JobsArgs {
    /// Show this job only
    pub(crate) id: Option<String>,
    #[command(flatten)]
    pub(crate) project: ProjectArg,
    #[command(flatten)]
    pub(crate) endpoint: EndpointArgs,
    /// Show what became of each passage of the job that is named
    #[arg(long, requires = "id", conflicts_with = "watch")]
    pub(crate) requests: bool,
    /// Only requests that stand here
    #[arg(long, value_enum, requires = "requests")]
    pub(crate) state: Option<RequestState>,
    /// At most this many, the newest first
    #[arg(long, short = 'n', default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) limit: u16,
    /// Refresh until Ctrl-C; a job that is named: until it has ended
    #[arg(long, short)]
    pub(crate) watch: bool,
    /// Cancel what is still open of this job
    #[arg(long, value_name = "ID", conflicts_with_all = ["id", "watch"])]
    pub(crate) cancel: Option<String>,
    /// Print one JSON object a line (with --watch: whenever a job has changed)
    #[arg(long)]
    pub(crate) json: bool,
}

/// Where a request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RequestState {
    /// Waits for the relay
    Pending,
    /// Waits in Redis
    Queued,
    /// A worker has it
    Running,
    /// Answered and stored
    Done,
    /// Given up
    Dead,
    /// Cancelled
    Cancelled,
}

/// Arguments of `waybill facts`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  waybill facts --project handbook
  waybill facts --entity \"Ada Lovelace\" -n 100
  waybill facts --entities
  waybill facts --json -n 1000000 > facts.jsonl
  waybill facts --job 0197a3c2-8d4e-7c61-9f3a-5b1e2d4c6a80 --below 0.4
  waybill facts --job 0197a3c2-8d4e-7c61-9f3a-5b1e2d4c6a80 --below 0.4 --reject --yes

--reject removes the facts that the same options list, from the index too. They come back only
if their passage is read again (`waybill extract`) and the model finds them again.

`waybill extract` finds them. Its default provider, `rules`, is not a language model: its
facts are sentences that count for much in their passage.")]
pub(crate) struct FactsArgs {
    #[command(flatten)]
    pub(crate) project: ProjectArg,
    #[command(flatten)]
    pub(crate) endpoint: EndpointArgs,
    /// Only facts that mention this entity, whatever its case and spacing
    #[arg(long, value_name = "NAME")]
    pub(crate) entity: Option<String>,
    /// Only facts of this job
    #[arg(long, value_name = "ID")]
    pub(crate) job: Option<String>,
    /// Only facts of this passage (`id` of a search's hit)
    #[arg(long, value_name = "ID")]
    pub(crate) chunk: Option<String>,
    /// Only facts of documents whose uris begin so
    #[arg(long, value_name = "URI_PREFIX")]
    pub(crate) prefix: Option<String>,
    /// Only facts of this type
    #[arg(long = "type", value_name = "FACT_TYPE")]
    pub(crate) kind: Option<String>,
    /// Only facts with less confidence, 0 to 1
    #[arg(long, value_name = "CONFIDENCE")]
    pub(crate) below: Option<f32>,
    /// Remove these facts instead of listing them; needs --yes
    #[arg(long, requires = "yes", conflicts_with = "entities")]
    pub(crate) reject: bool,
    /// With --reject: that all facts of the project are meant, where nothing says which
    #[arg(long, requires = "reject", conflicts_with_all = ["entity", "job", "chunk", "prefix", "kind", "below"])]
    pub(crate) all: bool,
    /// Remove without a further question
    #[arg(long, requires = "reject")]
    pub(crate) yes: bool,
    /// At most this many
    #[arg(long, short = 'n', default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: u32,
    /// List entities instead, with their spellings
    #[arg(long, conflicts_with_all = ["entity", "job", "chunk", "prefix", "kind", "below"])]
    pub(crate) entities: bool,
    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}
