//! Writes readable text: white space collapsed, blocks apart, code as it is.

/// What parts two pieces of text. The greater of two wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) enum Break {
    #[default]
    None,
    Space,
    Line,
    Paragraph,
}

/// Spaces in front of an item for each list that it is nested in, and how many lists count.
const INDENT: &str = "  ";
const MAX_INDENT: usize = 8;

#[derive(Default)]
pub(super) struct Writer {
    out: String,
    pending: Break,
    /// A marker that waits for its text: an empty item leaves none.
    marker: String,
    indent: usize,
    one_line: bool,
    in_cell: bool,
    /// The code block that is open. Its fence depends on what is in it.
    code: Option<String>,
}

impl Writer {
    /// Parts what was written from what comes.
    pub(super) fn part(&mut self, by: Break) {
        if self.code.is_some() {
            // A block inside of code: its lines are lines of the code.
            self.text("\n");
            return;
        }
        if self.marker.is_empty() {
            let by = if self.one_line || self.in_cell { by.min(Break::Space) } else { by };
            self.pending = self.pending.max(by);
        }
    }

    /// Puts `marker` in front of the text that comes.
    pub(super) fn marker(&mut self, marker: &str) {
        marker.clone_into(&mut self.marker);
    }

    /// Forgets a marker that no text followed.
    pub(super) fn unmark(&mut self) {
        self.marker.clear();
    }

    /// Sets in how many lists the coming items are nested.
    pub(super) fn indent(&mut self, lists: usize) {
        self.indent = lists.min(MAX_INDENT);
    }

    /// Keeps all that comes on one line, or ends that.
    pub(super) fn on_one_line(&mut self, on: bool) {
        self.one_line = on;
    }

    /// Begins a cell of a table: the row stays one line.
    pub(super) fn enter_cell(&mut self) {
        self.in_cell = true;
    }

    /// Ends a cell, or gives its line up because something larger begins in it.
    pub(super) fn leave_cell(&mut self) {
        self.in_cell = false;
    }

    /// Writes a sign between two cells.
    pub(super) fn separator(&mut self, sign: &str) {
        self.text(" ");
        self.text(sign);
        self.text(" ");
    }

    /// Begins code that is kept as it is.
    pub(super) fn begin_code(&mut self) {
        if self.code.is_none() {
            self.code = Some(String::new());
        }
    }

    /// Ends it and writes it between fences.
    pub(super) fn end_code(&mut self) {
        let Some(code) = self.code.take() else { return };
        let code = code.trim_matches(['\n', '\r']).trim_end();
        if code.trim().is_empty() {
            return;
        }
        let longest = code.split(|character| character != '`').map(str::len).max().unwrap_or_default();
        let fence = "`".repeat(3.max(longest + 1));
        self.marker.clear();
        self.one_line = false;
        self.pending = Break::Paragraph;
        self.indent = 0;
        self.flush();
        for part in [&fence, "\n", code, "\n", &fence] {
            self.out.push_str(part);
        }
        self.pending = Break::Paragraph;
    }

    /// Writes text, white space collapsed.
    pub(super) fn text(&mut self, text: &str) {
        if let Some(code) = &mut self.code {
            code.push_str(text);
            return;
        }
        for character in text.chars().filter(|&character| !is_invisible(character)) {
            if character.is_whitespace() {
                self.pending = self.pending.max(Break::Space);
            } else {
                self.flush();
                self.out.push(character);
            }
        }
    }

    /// Writes what is due before the next character.
    fn flush(&mut self) {
        let at_start = self.out.is_empty();
        if self.pending == Break::None && self.marker.is_empty() && !at_start {
            return;
        }
        if !at_start {
            self.out.push_str(self.pending.as_str());
        }
        if at_start || self.pending >= Break::Line {
            for _ in 0..self.indent {
                self.out.push_str(INDENT);
            }
        }
        self.pending = Break::None;
        if !self.marker.is_empty() {
            self.out.push_str(&self.marker);
            self.out.push(' ');
            self.marker.clear();
        }
    }

    /// Returns where the coming text will begin, behind the break that is due.
    pub(super) fn marker_start(&self) -> usize {
        if self.out.is_empty() { 0 } else { self.out.len() + self.pending.as_str().len() }
    }

    /// Returns what was written since `start`, and where it ends.
    pub(super) fn since(&mut self, start: usize) -> (&str, usize) {
        // A heading without text leaves no marker.
        self.unmark();
        (self.out.get(start..).unwrap_or_default(), self.out.len())
    }

    pub(super) fn finish(mut self) -> String {
        self.end_code();
        self.out
    }
}

impl Break {
    fn as_str(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Space => " ",
            Self::Line => "\n",
            Self::Paragraph => "\n\n",
        }
    }
}

/// Characters that are there for a layout: soft hyphen, zero-width space, byte order mark.
fn is_invisible(character: char) -> bool {
    matches!(character, '\u{ad}' | '\u{200b}' | '\u{feff}')
}
