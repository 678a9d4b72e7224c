//! The commands about who may call, and what operators did.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::operators::span;
use super::{ConfigSource, DataDirArg};

/// How a client shows who it is, and checks who answers.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct CredentialArgs {
    /// File with the API key [default: the variable WAYBILL_API_KEY]
    #[arg(long, value_name = "FILE", env = "WAYBILL_API_KEY_FILE", help_heading = "Connection")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// Who may have signed the server's certificate (PEM) [default: those the system trusts]
    #[arg(long, value_name = "FILE", env = "WAYBILL_CA_FILE", help_heading = "Connection")]
    pub(crate) ca_file: Option<PathBuf>,
    /// Certificate to show to servers that ask for one (PEM)
    #[arg(long, value_name = "FILE", env = "WAYBILL_CERT_FILE", requires = "key_file", help_heading = "Connection")]
    pub(crate) cert_file: Option<PathBuf>,
    /// Private key of that certificate (PEM)
    #[arg(long, value_name = "FILE", env = "WAYBILL_KEY_FILE", requires = "cert_file", help_heading = "Connection")]
    pub(crate) key_file: Option<PathBuf>,
    /// Name that the server's certificate has to be for, as through a tunnel [default: the URL's host]
    #[arg(long, value_name = "NAME", env = "WAYBILL_SERVER_NAME", help_heading = "Connection")]
    pub(crate) server_name: Option<String>,
}

/// How to reach the database itself.
#[derive(Debug, Clone, Args)]
pub(crate) struct DatabaseArgs {
    #[command(flatten)]
    pub(crate) source: ConfigSource,
    #[command(flatten)]
    pub(crate) data_dir: DataDirArg,
}

/// Arguments of `waybill doctor`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  waybill doctor
  waybill doctor --config /etc/waybill.toml --json

Looks at what is configured, else at the `waybill up` that runs here. Changes nothing. Exits
with 1 if something does not work; what will hurt one day is only said.")]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) database: DatabaseArgs,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// What a key lets its holder do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KeyRole {
    /// Read and search
    Reader,
    /// Write and delete, have facts extracted, and what a reader may
    Writer,
    /// Pause, repair, dispose of dead letters, and everything else, for all projects
    Operator,
}

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Make a key and print it, this once
    #[command(after_help = "\
Examples:
  waybill keys create ci --role writer --project docs
  waybill keys create on-call --role operator --expires 90d
  waybill keys create app --role reader --requests-per-second 50 > app.key

The key goes to stdout, everything else to stderr. Postgres keeps its hash only: who loses a
key makes another. Needs the database (DATABASE_URL, --config), or a `waybill up` that runs here.")]
    Create(KeysCreateArgs),
    /// List keys, the newest first
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        database: DatabaseArgs,
        /// Those that were revoked or have expired, too
        #[arg(long, short)]
        all: bool,
        /// Print one JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Revoke a key: within seconds nobody is let in with it
    Revoke {
        /// The part of the key behind "wbk_", as `waybill keys list` shows it
        prefix: String,
        #[command(flatten)]
        database: DatabaseArgs,
    },
}

/// Arguments of `waybill keys create`.
#[derive(Debug, Args)]
pub(crate) struct KeysCreateArgs {
    /// What it is for, or who has it
    pub(crate) name: String,
    /// What it lets its holder do
    #[arg(long, value_enum)]
    pub(crate) role: KeyRole,
    /// Project it is good for, which need not exist yet; repeatable [default: all]
    #[arg(long, short, value_name = "NAME")]
    pub(crate) project: Vec<String>,
    /// For how long it is good, such as 90d [default: until it is revoked]
    #[arg(long, value_name = "SPAN", value_parser = span)]
    pub(crate) expires: Option<Duration>,
    /// Calls that may begin in a second, for each process [default: auth.limits]
    #[arg(long, value_name = "N", help_heading = "Limits")]
    pub(crate) requests_per_second: Option<NonZeroU32>,
    /// Calls at a time, for each process [default: auth.limits]
    #[arg(long, value_name = "N", help_heading = "Limits")]
    pub(crate) concurrent_calls: Option<NonZeroU32>,
    /// Bytes of one message [default: auth.limits]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Limits")]
    pub(crate) max_message_bytes: Option<u64>,
    #[command(flatten)]
    pub(crate) database: DatabaseArgs,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `waybill audit`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  waybill audit
  waybill audit --since 7d --by on-call
  waybill audit --action Redrive --json

Each call that runs the system leaves a row before it is done: pauses, drains, repairs, dead
letters, deletions of projects, keys. One without an end goes on still, or its process died.")]
pub(crate) struct AuditArgs {
    #[command(flatten)]
    pub(crate) database: DatabaseArgs,
    /// Only this key, by name or prefix
    #[arg(long, value_name = "WHO")]
    pub(crate) by: Option<String>,
    /// Only actions whose name holds this
    #[arg(long, value_name = "TEXT")]
    pub(crate) action: Option<String>,
    /// Only the last so many minutes, hours or days, such as 7d
    #[arg(long, value_name = "SPAN", value_parser = span)]
    pub(crate) since: Option<Duration>,
    /// At most this many
    #[arg(long, short = 'n', default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) limit: u32,
    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}
