//! The commands for those who run the relay: dead letters, pausing and draining sinks.

use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand, ValueEnum};

use super::client::EndpointArgs;

/// What a second, a minute, an hour and a day are called in a span.
const UNITS: [(char, u64); 4] = [('s', 1), ('m', 60), ('h', 3_600), ('d', 86_400)];

/// A store that the relay delivers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sink {
    /// The index
    Qdrant,
    /// The queue of LLM requests in Redis
    Llm,
}

impl Sink {
    /// Returns the name used on the wire.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Qdrant => "qdrant",
            Self::Llm => "llm",
        }
    }
}

/// What a dead letter is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LetterKind {
    /// A passage
    Chunk,
    /// A fact
    Extraction,
    /// Whom or what facts are about
    Entity,
    /// A request to a language model
    #[value(name = "llm_request")]
    LlmRequest,
}

impl LetterKind {
    /// Returns the name used on the wire.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Chunk => "chunk",
            Self::Extraction => "extraction",
            Self::Entity => "entity",
            Self::LlmRequest => "llm_request",
        }
    }
}

/// What an error meant for a retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Class {
    /// It might have worked later
    Transient,
    /// The peer asked to slow down
    Throttled,
    /// It could never have worked as it was
    Permanent,
    /// Nobody knows whether it happened
    Unknown,
}

impl Class {
    /// Returns the name used on the wire.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Throttled => "throttled",
            Self::Permanent => "permanent",
            Self::Unknown => "unknown",
        }
    }
}

/// What to do with relays.
#[derive(Debug, Subcommand)]
pub(crate) enum RelayCommand {
    /// Stop delivery to a sink, for every relay and until it is resumed
    #[command(after_help = "\
Examples:
  waybill relay pause qdrant --reason \"moving to a new cluster\"
  waybill relay pause llm --reason budget --by night-shift

What is under way ends; relays notice within about a second. Nothing is lost: what is
written meanwhile waits in the outbox. `waybill status` shows the pause. One that is paused
already keeps who, when and why of the first.")]
    Pause {
        /// Which one
        sink: Sink,
        /// Why, for whoever finds it paused; at most 1,024 bytes
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// Who pauses it [default: you, on this machine]
        #[arg(long, value_name = "NAME")]
        by: Option<String>,
        #[command(flatten)]
        endpoint: EndpointArgs,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Let deliveries to a sink begin again
    #[command(after_help = "\
Examples:
  waybill relay resume qdrant")]
    Resume {
        /// Which one
        sink: Sink,
        #[command(flatten)]
        endpoint: EndpointArgs,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Wait until a sink has confirmed everything
    #[command(after_help = "\
Examples:
  waybill relay drain qdrant
  waybill relay drain llm --timeout 30m && systemctl stop redis

Ends with 0 when nothing is left, and with 1 when the time is up before that. Dead letters
are not waited for: `waybill dlq ls` lists them.")]
    Drain {
        /// Which one
        sink: Sink,
        /// How long to wait: 90s, 5m, 1h30m; at most 24h
        #[arg(long, value_name = "SPAN", default_value = "5m", value_parser = span)]
        timeout: Duration,
        /// Of a paused sink: wait only until nothing is under way
        #[arg(long)]
        still: bool,
        #[command(flatten)]
        endpoint: EndpointArgs,
        /// Print what is left as one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub(crate) enum DlqCommand {
    /// List what was given up
    #[command(after_help = "\
Examples:
  waybill dlq ls
  waybill dlq ls --sink llm --since 2h
  waybill dlq ls --text \"too long\" --json | jq -r .id")]
    Ls {
        #[command(flatten)]
        filter: LetterFilterArgs,
        #[command(flatten)]
        endpoint: EndpointArgs,
        /// At most this many
        #[arg(long, short = 'n', default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// Print one JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Show one dead letter whole
    #[command(after_help = "\
Examples:
  waybill dlq show 0c9f3a5b-8d4e-4c61-9f3a-5b1e2d4c6a80")]
    Show {
        /// The letter's id, as `waybill dlq ls` prints it
        id: String,
        #[command(flatten)]
        endpoint: EndpointArgs,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Have the keys of dead letters delivered again
    #[command(after_help = "\
Examples:
  waybill dlq redrive 0c9f3a5b-8d4e-4c61-9f3a-5b1e2d4c6a80
  waybill dlq redrive --sink qdrant --since 2026-03-01T08:00:00Z
  waybill dlq redrive --all && waybill relay drain qdrant

Mend what made them fail first: what fails again is a dead letter again. Each letter is
turned into work once, however many redrive at a time; run it again if it is interrupted.")]
    Redrive {
        #[command(flatten)]
        which: WhichLetters,
        #[command(flatten)]
        endpoint: EndpointArgs,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Forget dead letters: the sink stays without these keys until they change
    #[command(after_help = "\
Examples:
  waybill dlq discard 0c9f3a5b-8d4e-4c61-9f3a-5b1e2d4c6a80
  waybill dlq discard --project old --class permanent --until 30d --yes")]
    Discard {
        #[command(flatten)]
        which: WhichLetters,
        /// Don't ask
        #[arg(long, short)]
        yes: bool,
        #[command(flatten)]
        endpoint: EndpointArgs,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// Which dead letters are redriven or discarded: some must be named.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct WhichLetters {
    /// These
    #[arg(value_name = "ID")]
    pub(crate) ids: Vec<String>,
    #[command(flatten)]
    pub(crate) filter: LetterFilterArgs,
    /// Every dead letter there is
    #[arg(long, conflicts_with = "ids", help_heading = "Which")]
    pub(crate) all: bool,
}

/// Which dead letters are meant; all of it must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub(crate) struct LetterFilterArgs {
    /// Only of this sink
    #[arg(long, value_enum, help_heading = "Which")]
    pub(crate) sink: Option<Sink>,
    /// Only about this
    #[arg(long, value_enum, help_heading = "Which")]
    pub(crate) kind: Option<LetterKind>,
    /// Only of this project
    #[arg(long, short, value_name = "NAME", help_heading = "Which")]
    pub(crate) project: Option<String>,
    /// Only with an error of this class
    #[arg(long, value_enum, help_heading = "Which")]
    pub(crate) class: Option<Class>,
    /// Only what failed last since then: a time (RFC 3339), or a span such as 2h or 7d
    #[arg(long, value_name = "WHEN", value_parser = moment, help_heading = "Which")]
    pub(crate) since: Option<Moment>,
    /// Only what failed last before then
    #[arg(long, value_name = "WHEN", value_parser = moment, help_heading = "Which")]
    pub(crate) until: Option<Moment>,
    /// Only errors that contain this, whatever the case
    #[arg(long, value_name = "TEXT", help_heading = "Which")]
    pub(crate) text: Option<String>,
}

/// A time, or how long ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    At(DateTime<Utc>),
    Ago(Duration),
}

impl Moment {
    /// Returns the time; `None` if that is before all times.
    pub(crate) fn at(self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        match self {
            Self::At(at) => Some(at),
            Self::Ago(ago) => now.checked_sub_signed(chrono::TimeDelta::from_std(ago).ok()?),
        }
    }
}

fn moment(argument: &str) -> Result<Moment, String> {
    if let Ok(at) = DateTime::parse_from_rfc3339(argument) {
        return Ok(Moment::At(at.to_utc()));
    }
    let ago = span(argument)
        .map_err(|_| "expected a time such as 2026-03-01T08:00:00Z, or a span such as 90s, 2h, 1h30m or 7d")?;
    Ok(Moment::Ago(ago))
}

pub(super) fn span(argument: &str) -> Result<Duration, String> {
    parts(argument).ok_or_else(|| "expected a span such as 90s, 5m, 1h30m or 7d".to_owned())
}

fn parts(mut rest: &str) -> Option<Duration> {
    let mut seconds = 0_u64;
    loop {
        let (at, unit) = rest.char_indices().find(|(_, char)| !char.is_ascii_digit())?;
        let (_, length) = UNITS.iter().find(|(name, _)| *name == unit)?;
        seconds = seconds.checked_add(rest[..at].parse::<u64>().ok()?.checked_mul(*length)?)?;
        rest = &rest[at + unit.len_utf8()..];
        if rest.is_empty() {
            return Some(Duration::from_secs(seconds));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_add_up() {
        assert_eq!(span("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(span("1h30m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(span("7d"), Ok(Duration::from_secs(604_800)));
        for bad in ["", "5", "h", "-1h", "5 m", "1w", "99999999999999999999s", "18446744073709551615d", "1h5"] {
            assert!(span(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_moment_is_a_time_or_a_span() {
        let now = DateTime::parse_from_rfc3339("2026-03-01T08:00:00Z").unwrap().to_utc();
        assert_eq!(moment("2026-03-01T09:00:00+01:00").unwrap(), Moment::At(now));
        let before = moment("2h").unwrap().at(now).unwrap();
        assert_eq!(before.to_rfc3339(), "2026-03-01T06:00:00+00:00");
        assert_eq!(moment("18446744073709551615s").unwrap().at(now), None);
        assert!(moment("yesterday").is_err());
    }
}
