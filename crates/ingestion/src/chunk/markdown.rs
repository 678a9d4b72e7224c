//! Markdown is readable as it is; only its headings have to be found.

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use super::{
    MAX_TITLE_BYTES,
    outline::is_heading,
    readable::{Heading, Readable, one_line, shortened, without_bom},
};

/// Reads a document. Its title is its first heading of the first level.
pub(super) fn read(body: &str) -> Readable {
    let text = without_bom(body);
    let headings = headings(text);
    let title = headings
        .iter()
        .find(|heading| heading.level == 1)
        .map(|heading| shortened(&heading.label, MAX_TITLE_BYTES).to_owned());
    Readable { title, text: text.to_owned(), headings }
}

/// What CommonMark leaves out and people use. Front matter is read as such, or its last
/// line would be a heading.
fn options() -> Options {
    Options::ENABLE_TABLES
        | Options::ENABLE_FOOTNOTES
        | Options::ENABLE_YAML_STYLE_METADATA_BLOCKS
        | Options::ENABLE_PLUSES_DELIMITED_METADATA_BLOCKS
}

fn headings(text: &str) -> Vec<Heading> {
    let mut headings = Vec::new();
    // Blocks that are open: a heading in a list or a quotation parts nothing.
    let mut depth = 0_usize;
    let mut current: Option<Heading> = None;
    for (event, range) in Parser::new_ext(text, options()).into_offset_iter() {
        match event {
            Event::Start(Tag::Heading { level, .. }) if depth == 0 => {
                current =
                    Some(Heading { level: level as u8, label: String::new(), start: range.start, end: range.end });
            }
            Event::End(TagEnd::Heading(_)) if depth == 0 => {
                if let Some(mut heading) = current.take() {
                    heading.label = one_line(&heading.label);
                    if is_heading(&heading) {
                        headings.push(heading);
                    }
                }
            }
            Event::Text(text) | Event::Code(text) => {
                if let Some(heading) = &mut current {
                    heading.label.push_str(&text);
                }
            }
            Event::SoftBreak | Event::HardBreak => {
                if let Some(heading) = &mut current {
                    heading.label.push(' ');
                }
            }
            Event::Start(_) if current.is_none() => depth += 1,
            Event::End(_) if current.is_none() => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    headings
}
