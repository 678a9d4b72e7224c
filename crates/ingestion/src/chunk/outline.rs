//! Parts a text at its headings.

use std::ops::Range;

use super::readable::{Heading, Readable, one_line, shortened};

/// The longest label that goes into a path, in bytes. A path is repeated in front of every
/// passage, so a long heading must not grow with the number of passages.
const MAX_LABEL_BYTES: usize = 256;

/// The text under one heading, down to the next.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Section {
    /// The title, then the headings above, outermost first.
    pub(super) headings: Vec<String>,
    pub(super) range: Range<usize>,
}

/// The headings of a document as a tree.
pub(super) struct Outline<'a> {
    title: String,
    readable: &'a Readable,
}

impl<'a> Outline<'a> {
    pub(super) fn new(title: &str, readable: &'a Readable) -> Self {
        Self { title: label(title), readable }
    }

    /// Lists the sections in the order of the text. The line of a heading is no part of its
    /// section, as it stands in the path; one with nothing under it is a section itself, so
    /// that no word of the document is lost.
    pub(super) fn sections(&self) -> Vec<Section> {
        let headings = &self.readable.headings;
        let text = &self.readable.text;
        let mut sections = Vec::with_capacity(headings.len() + 1);
        let first = headings.first().map_or(text.len(), |heading| heading.start);
        let mut open: Vec<(u8, String)> = Vec::new();
        self.push(&mut sections, &open, 0..first);
        for (index, heading) in headings.iter().enumerate() {
            let next = headings.get(index + 1);
            while open.last().is_some_and(|(level, _)| *level >= heading.level) {
                open.pop();
            }
            let body = heading.end..next.map_or(text.len(), |next| next.start);
            let is_leaf = next.is_none_or(|next| next.level <= heading.level);
            if is_leaf && text[body.clone()].trim().is_empty() {
                // Under its parents: its own words are the text now.
                self.push(&mut sections, &open, heading.start..heading.end);
            }
            open.push((heading.level, label(&heading.label)));
            self.push(&mut sections, &open, body);
        }
        sections
    }

    fn push(&self, sections: &mut Vec<Section>, open: &[(u8, String)], range: Range<usize>) {
        if self.readable.text[range.clone()].trim().is_empty() {
            return;
        }
        let mut path = Vec::with_capacity(open.len() + 1);
        path.push(self.title.clone());
        for (_, label) in open {
            // Most documents begin with their title as a heading.
            let repeats_title = path.len() == 1 && label.eq_ignore_ascii_case(&self.title);
            if !repeats_title {
                path.push(label.clone());
            }
        }
        path.retain(|label| !label.is_empty());
        sections.push(Section { headings: path, range });
    }
}

fn label(text: &str) -> String {
    let mut line = one_line(shortened(text, MAX_LABEL_BYTES * 4));
    line.truncate(line.floor_char_boundary(MAX_LABEL_BYTES));
    line
}

/// Says whether a heading of `bytes` is one. A longer one is a mistake of markup, such as a
/// tag that was never closed, and its text is text.
pub(super) fn is_heading(heading: &Heading) -> bool {
    const MAX_HEADING_BYTES: usize = 1_024;
    heading.end - heading.start <= MAX_HEADING_BYTES && !heading.label.trim().is_empty()
}
