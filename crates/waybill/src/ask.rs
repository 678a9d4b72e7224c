//! Asking before something is gone.

use std::io::{self, IsTerminal, Write};

use anyhow::Context;

use crate::exit::Usage;

/// Asks a yes-or-no question on the terminal.
///
/// # Errors
/// A [`Usage`] that names `--yes` if nobody is there to answer.
pub(crate) fn confirm(question: &str) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() {
        return Err(Usage(format!("{question} Nobody to ask here: add --yes")).into());
    }
    eprint!("{question} [y/N] ");
    io::stderr().flush().context("write to stderr")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).context("read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
