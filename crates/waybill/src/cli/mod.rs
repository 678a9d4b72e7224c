//! The command line, as types. What a command does is in `commands`.

mod access;
mod client;
mod extraction;
mod operators;
mod repair;

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use self::access::{
    AuditArgs, CredentialArgs, DatabaseArgs, DoctorArgs, KeyRole, KeysCommand, KeysCreateArgs,
};
pub(crate) use self::client::{
    EndpointArgs, Format, HitKind, ImportArgs, Mode, ProjectsCommand, SearchArgs, SourcesCommand, StatusArgs,
};
pub(crate) use self::extraction::{ExtractArgs, FactsArgs, JobsArgs, Priority, RequestState};
pub(crate) use self::operators::{
    Class, DlqCommand, LetterFilterArgs, LetterKind, Moment, RelayCommand, Sink, WhichLetters,
};
pub(crate) use self::repair::{RecoverArgs, ReindexArgs, VerifyArgs};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  the command failed, or a job, or some documents of an import; `verify` found drift; a drain
     left something
  2  wrong usage, or a configuration that can't be used
  3  the service can't be reached
  130  interrupted by Ctrl-C

Results go to stdout, progress and logs to stderr. NO_COLOR turns colours off;
WAYBILL_LOG sets what is logged.";

const START: &str = "\
Start here:
  waybill up                          run everything on this machine
  waybill import ./docs               put a folder of documents in
  waybill search \"how do I ...\"       find something
  waybill extract                     have facts found, and see them with `waybill facts`
  waybill status --watch              see what is still on its way to the index";

/// A self-hosted knowledge backend: documents go in over gRPC, a search finds them.
#[derive(Debug, Parser)]
#[command(
    name = "waybill",
    version,
    propagate_version = true,
    disable_help_subcommand = true,
    before_help = START,
    after_help = EXIT_CODES
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run every service on this machine, with stores of its own
    Up(UpArgs),
    /// Put documents in: a folder, a file, or JSON lines
    Import(ImportArgs),
    /// Find passages by meaning, by words, or both
    Search(SearchArgs),
    /// Have facts and entities found in what was put in
    Extract(ExtractArgs),
    /// List, follow and cancel the jobs of `extract`
    Jobs(JobsArgs),
    /// Show facts with the words they rest on, or entities
    Facts(FactsArgs),
    /// Show what is still on its way to the index, and who delivers it
    Status(StatusArgs),
    /// Compare Qdrant and the queue with Postgres, and repair what differs
    Verify(VerifyArgs),
    /// Repair one project after a store was lost or restored
    Recover(RecoverArgs),
    /// Have points written anew, with their vectors
    Reindex(ReindexArgs),
    /// Pause, resume and drain what the relay delivers to
    #[command(subcommand)]
    Relay(RelayCommand),
    /// List, redrive and discard what the relay and the workers gave up
    #[command(subcommand)]
    Dlq(DlqCommand),
    /// List, create and delete projects
    #[command(subcommand)]
    Projects(ProjectsCommand),
    /// List, show and delete the sources of a project
    #[command(subcommand)]
    Sources(SourcesCommand),
    /// Look at stores, services and settings for what is known to bite
    Doctor(DoctorArgs),
    /// Make, list and revoke API keys
    #[command(subcommand)]
    Keys(KeysCommand),
    /// List what operators did
    Audit(AuditArgs),
    /// Run one service against configured stores
    Serve(ServeArgs),
    /// Bring the schema of the configured Postgres up to date
    Migrate(ConfigSource),
    /// Print the configuration in effect, with secrets hidden
    Config(ConfigArgs),
}

/// Where configuration comes from.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConfigSource {
    /// TOML file; environment variables (WAYBILL_<SECTION>__<KEY>) override it
    #[arg(long, value_name = "FILE", env = "WAYBILL_CONFIG", help_heading = "Configuration")]
    pub(crate) config: Option<PathBuf>,
}

/// Where an installation made by `waybill up` keeps its data.
#[derive(Debug, Clone, Args)]
pub(crate) struct DataDirArg {
    /// Directory with the data of `waybill up` [default: ~/.local/share/waybill]
    #[arg(long, value_name = "DIR", env = "WAYBILL_DATA_DIR", help_heading = "Configuration")]
    pub(crate) data_dir: Option<PathBuf>,
}

/// Arguments of `waybill up`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  waybill up
  waybill up --data-dir /srv/waybill --listen-host 0.0.0.0     for others, with API keys
  DATABASE_URL=postgres://me@db/waybill waybill up     real Postgres, the rest embedded
  waybill up --ready-file /run/waybill.ready &         for scripts

Ctrl-C (or SIGTERM) finishes what is in flight, then stops the stores; a second
one drops what is in flight, which the next start delivers again.")]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) data_dir: DataDirArg,
    #[command(flatten)]
    pub(crate) source: ConfigSource,
    /// Address the services listen on; on any but loopback, callers need an API key
    #[arg(long, value_name = "IP", default_value = "127.0.0.1", help_heading = "Network")]
    pub(crate) listen_host: IpAddr,
    /// Port of the ingestion service [default: 7701, or a free one if that is taken]
    #[arg(long, value_name = "PORT", help_heading = "Network")]
    pub(crate) ingestion_port: Option<NonZeroU16>,
    /// Port of the extraction service [default: 7702, or a free one]
    #[arg(long, value_name = "PORT", help_heading = "Network")]
    pub(crate) extraction_port: Option<NonZeroU16>,
    /// Port of the embedding and search services [default: 7703, or a free one]
    #[arg(long, value_name = "PORT", help_heading = "Network")]
    pub(crate) embedding_port: Option<NonZeroU16>,
    /// Port of the relay [default: 7704, or a free one]
    #[arg(long, value_name = "PORT", help_heading = "Network")]
    pub(crate) relay_port: Option<NonZeroU16>,
    /// Take free ports instead of the default ones
    #[arg(long, help_heading = "Network")]
    pub(crate) free_ports: bool,
    /// Let everybody in who reaches a listener, whatever its address: auth.mode = "open"
    #[arg(long, help_heading = "Network")]
    pub(crate) insecure_no_keys: bool,
    /// Folder of the embedding model
    #[arg(long, value_name = "DIR", env = "WAYBILL_MODEL_DIR", help_heading = "Configuration")]
    pub(crate) model_dir: Option<PathBuf>,
    /// Write the endpoints (JSON) to this file once everything answers; removed at the end
    #[arg(long, value_name = "PATH", help_heading = "Scripts")]
    pub(crate) ready_file: Option<PathBuf>,
}

/// Arguments of `waybill serve`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  waybill serve ingestion --config /etc/waybill.toml
  DATABASE_URL=postgres://me@db/waybill waybill serve ingestion --listen 0.0.0.0:7701

Run `waybill migrate` first: a service refuses to work on another schema.")]
pub(crate) struct ServeArgs {
    /// Which one
    pub(crate) service: ServiceName,
    /// Address and port to listen on [default: the section's `listen`]
    #[arg(long, value_name = "IP:PORT", help_heading = "Network")]
    pub(crate) listen: Option<SocketAddr>,
    /// Let everybody in who reaches the listener, whatever its address: auth.mode = "open"
    #[arg(long, help_heading = "Network")]
    pub(crate) insecure_no_keys: bool,
    #[command(flatten)]
    pub(crate) source: ConfigSource,
}

/// A service that `waybill serve` runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ServiceName {
    /// Projects and sources: the write path
    Ingestion,
    /// Embeddings and search
    Embedding,
    /// Facts and entities
    Extraction,
    /// Delivery from the outbox to the index and to the queue
    Relay,
}

/// Arguments of `waybill config`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  waybill config --config waybill.toml           what would be used, as TOML
  waybill config --config waybill.toml --check   only say whether it is valid
  waybill config --check -- serve relay --listen 0.0.0.0:7704
                                                 whether that command line is, with its configuration

Layers, the later wins: defaults, the file, DATABASE_URL / REDIS_URL / QDRANT_URL,
WAYBILL_<SECTION>__<KEY> (WAYBILL_DATABASE__URL sets `url` in [database]).")]
pub(crate) struct ConfigArgs {
    #[command(flatten)]
    pub(crate) source: ConfigSource,
    /// Print nothing but errors
    #[arg(long)]
    pub(crate) check: bool,
    /// With --check: arguments of another command, which is not run
    #[arg(last = true, requires = "check", value_name = "ARGS")]
    pub(crate) args: Vec<OsString>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }
}
