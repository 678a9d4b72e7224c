//! What `--watch` draws on.

use std::io::IsTerminal;

use console::Term;

use crate::out::Out;

/// Redraws a few lines in place on a terminal; elsewhere it appends.
pub(crate) struct Screen {
    term: Option<Term>,
    drawn: usize,
}

impl Screen {
    /// Begins with nothing drawn.
    pub(crate) fn new() -> Self {
        let term = std::io::stdout().is_terminal().then(Term::stdout);
        Self { term, drawn: 0 }
    }

    /// Draws a text over the one before.
    pub(crate) fn show(&mut self, text: &str) -> anyhow::Result<()> {
        if let Some(term) = &self.term {
            let (height, _) = term.size();
            // Lines that scrolled off can't be redrawn.
            let redrawable = self.drawn.min(usize::from(height).saturating_sub(1));
            term.clear_last_lines(redrawable)?;
            self.drawn = text.lines().count();
        }
        let mut out = Out::new();
        out.text(text)?;
        out.flush()
    }
}
