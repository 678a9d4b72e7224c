//! Stdout, for results only. Progress, questions and logs go to stderr.

use std::fmt::Display;
use std::io::{self, BufWriter, StdoutLock, Write};

use serde::Serialize;

/// Nobody reads our stdout any more (`waybill search ... | head -1`). Not a failure.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads the output")]
pub(crate) struct ReaderGone;

/// A locked, buffered stdout. What is written is out after [`Out::flush`].
#[derive(Debug)]
pub(crate) struct Out {
    writer: BufWriter<StdoutLock<'static>>,
}

impl Out {
    /// Takes stdout for as long as the value lives.
    pub(crate) fn new() -> Self {
        Self { writer: BufWriter::new(io::stdout().lock()) }
    }

    /// Writes one line.
    pub(crate) fn line(&mut self, line: impl Display) -> anyhow::Result<()> {
        check(writeln!(self.writer, "{line}"))
    }

    /// Writes text as it is, without a newline of our own.
    pub(crate) fn text(&mut self, text: &str) -> anyhow::Result<()> {
        check(self.writer.write_all(text.as_bytes()))
    }

    /// Writes a value as one line of JSON.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> anyhow::Result<()> {
        let line = serde_json::to_string(value)?;
        self.line(line)
    }

    /// Sends off what is buffered.
    pub(crate) fn flush(&mut self) -> anyhow::Result<()> {
        check(self.writer.flush())
    }
}

fn check(result: io::Result<()>) -> anyhow::Result<()> {
    match result {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ReaderGone.into()),
        Err(error) => Err(anyhow::Error::new(error).context("write to stdout")),
    }
}
