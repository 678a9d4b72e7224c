//! The common form of all documents before they are cut.

/// What a person would read of a document.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Readable {
    /// The title that the document gives itself.
    pub(super) title: Option<String>,
    pub(super) text: String,
    /// In the order of the text.
    pub(super) headings: Vec<Heading>,
}

/// A heading in the readable text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Heading {
    /// 1 for the outermost, up to 6.
    pub(super) level: u8,
    /// Without markup, on one line.
    pub(super) label: String,
    /// Where its line begins and ends, in bytes.
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Readable {
    /// Takes a plain text as it is.
    pub(super) fn plain(body: &str) -> Self {
        Self { title: None, text: without_bom(body).to_owned(), headings: Vec::new() }
    }
}

/// Takes the byte order mark away: it is no text.
pub(super) fn without_bom(body: &str) -> &str {
    body.strip_prefix('\u{feff}').unwrap_or(body)
}

/// Puts a label on one line: all white space, however much, becomes one space.
pub(super) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    line
}

/// Returns the beginning of `text`, at most `max` bytes, cut between two characters.
pub(super) fn shortened(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}
