//! HTML reduced to what a person would read of it, as a light Markdown: headings, lists,
//! definition lists, tables by row, code blocks as they are. Characters are not escaped:
//! the text is searched and read, never rendered.
//!
//! html5gum tokenizes as browsers do. No tree is built on purpose: building one, and walking
//! it, takes a stack or a time that a hostile page decides. Here both are bounded: a page
//! is one pass, and at most [`MAX_DEPTH`] open elements are remembered.

mod element;
mod writer;

use html5gum::{DefaultEmitter, StartTag, Token, Tokenizer};

use self::{
    element::{Element, is_aside, is_dropped},
    writer::{Break, Writer},
};
use super::{
    MAX_TITLE_BYTES,
    outline::is_heading,
    readable::{Heading, Readable, one_line, shortened},
};

/// Open elements that are remembered; what is nested deeper is read, but no longer closed
/// one by one. Pages that people write stay below 50; browsers give up at 512.
const MAX_DEPTH: usize = 256;

/// Titles longer than this are a mistake of markup; what follows of them is dropped.
const MAX_RAW_TITLE_BYTES: usize = 16 * 1024;

/// Reads a page. Its title is `<title>`, else its first `<h1>`.
pub(super) fn read(body: &str) -> Readable {
    let mut emitter = DefaultEmitter::default();
    // Scripts, styles and titles are not markup inside.
    emitter.naively_switch_states(true);
    let mut page = Page::default();
    for token in Tokenizer::new_with_emitter(body, emitter) {
        match token {
            Ok(Token::StartTag(tag)) => page.open(&tag),
            Ok(Token::EndTag(tag)) => page.close(&String::from_utf8_lossy(&tag.name)),
            Ok(Token::String(text)) => page.text(&String::from_utf8_lossy(&text.value)),
            Ok(Token::Comment(_) | Token::Doctype(_) | Token::Error(_)) => {}
            Err(never) => match never {},
        }
    }
    page.finish()
}

/// An element that is open.
struct Open {
    name: String,
    element: Element,
    dropped: bool,
}

#[derive(Default)]
struct Page {
    stack: Vec<Open>,
    /// How many of the open elements are dropped.
    dropping: usize,
    writer: Writer,
    title: String,
    in_title: bool,
    /// The title is complete; another is ignored.
    titled: bool,
    /// The heading that is open: its level and where it begins.
    heading: Option<(u8, usize)>,
    headings: Vec<Heading>,
    /// Items so far of each open list; `None` for bullets.
    lists: Vec<Option<u64>>,
    /// Cells so far of the open row.
    cells: usize,
}

impl Page {
    fn open(&mut self, tag: &StartTag<()>) {
        let name = String::from_utf8_lossy(&tag.name);
        let mut element = Element::of(&name);
        if self.in_title && element != Element::Title {
            self.in_title = false;
        }
        if matches!(element, Element::Inline | Element::Void)
            && self.dropping == 0
            && !is_dropped(tag, self.in_content())
        {
            if &*name == "img" {
                self.image(tag);
            }
            return;
        }
        self.close_implied(element);
        if element == Element::Block && is_aside(tag) {
            element = Element::Aside;
        } else if matches!(element, Element::Heading(_)) && self.in_aside() {
            // "Note" or "Tip": what follows the note is not under it.
            element = Element::Block;
        }
        let dropped = is_dropped(tag, self.in_content());
        let has_room = self.stack.len() < MAX_DEPTH;
        if self.dropping == 0 && !dropped {
            // What can't be remembered can't be ended: it is no more than a break.
            self.begin(if has_room || element.stands_alone() { element } else { Element::Block });
        }
        let ends_itself = element == Element::Void
            || element.stands_alone()
            || tag.self_closing && (element == Element::Inline || &*name == "svg");
        // The first of what is dropped is always remembered, or its content would be read.
        if !ends_itself && (has_room || dropped && self.dropping == 0) {
            self.dropping += usize::from(dropped);
            self.stack.push(Open { name: name.into_owned(), element, dropped });
        }
    }

    fn close(&mut self, name: &str) {
        let element = Element::of(name);
        if element == Element::Title {
            self.in_title = false;
            self.titled = !self.title.is_empty();
        }
        match self.stack.iter().rposition(|open| open.name == name) {
            Some(at) => self.pop_to(at),
            // An end without a beginning still parts what stands before and after it.
            None if self.dropping == 0 && element.is_block() => self.writer.part(Break::Paragraph),
            None => {}
        }
    }

    fn text(&mut self, text: &str) {
        if self.in_title {
            if !self.titled && self.title.len() < MAX_RAW_TITLE_BYTES {
                self.title.push_str(text);
            }
        } else if self.dropping == 0 {
            self.writer.text(text);
        }
    }

    /// Ends what HTML lets an author leave open: an item before the next, and the like.
    fn close_implied(&mut self, element: Element) {
        let Some((closes, within)) = element.closes() else {
            return;
        };
        let found =
            self.stack.iter().rposition(|open| closes.contains(&open.element) || within.contains(&open.element));
        if let Some(at) = found
            && closes.contains(&self.stack[at].element)
        {
            self.pop_to(at);
        }
    }

    fn pop_to(&mut self, at: usize) {
        while self.stack.len() > at {
            let Some(open) = self.stack.pop() else { return };
            if open.dropped {
                self.dropping -= 1;
            } else if self.dropping == 0 {
                self.end(open.element);
            }
        }
    }

    /// Says whether a `<header>` here belongs to what is read, not to the site around it.
    fn in_content(&self) -> bool {
        self.stack.iter().any(|open| open.element == Element::Content)
    }

    fn in_aside(&self) -> bool {
        self.stack.iter().any(|open| open.element == Element::Aside)
    }

    fn begin(&mut self, element: Element) {
        match element {
            Element::Title => self.in_title = true,
            Element::Heading(level) => {
                self.end_heading();
                self.writer.leave_cell();
                self.writer.part(Break::Paragraph);
                self.writer.marker(&"#".repeat(level.into()));
                self.heading = Some((level, self.writer.marker_start()));
                self.writer.on_one_line(true);
            }
            Element::List { numbered } => {
                self.end_heading();
                self.writer.leave_cell();
                self.writer.part(if self.lists.is_empty() { Break::Paragraph } else { Break::Line });
                self.lists.push(numbered.then_some(0));
            }
            Element::Item => {
                self.writer.part(Break::Line);
                let marker = match self.lists.last_mut() {
                    Some(Some(count)) => {
                        *count += 1;
                        format!("{count}.")
                    }
                    _ => "-".to_owned(),
                };
                self.writer.indent(self.lists.len().saturating_sub(1));
                self.writer.marker(&marker);
            }
            Element::Definitions
            | Element::Term
            | Element::Paragraph
            | Element::Block
            | Element::Content
            | Element::Aside
            | Element::Rule => {
                self.writer.part(Break::Paragraph);
            }
            Element::Description => {
                self.writer.part(Break::Line);
                self.writer.marker(":");
            }
            Element::Table => {
                self.end_heading();
                self.writer.leave_cell();
                self.writer.part(Break::Paragraph);
            }
            Element::Row => {
                self.writer.leave_cell();
                self.writer.part(Break::Line);
                self.cells = 0;
            }
            Element::Cell => {
                if self.cells > 0 {
                    self.writer.separator("|");
                }
                self.cells += 1;
                self.writer.enter_cell();
            }
            Element::Code => {
                self.end_heading();
                self.writer.leave_cell();
                self.writer.begin_code();
            }
            Element::LineBreak => self.writer.part(Break::Line),
            Element::Inline | Element::Void => {}
        }
    }

    fn end(&mut self, element: Element) {
        match element {
            Element::Title => self.in_title = false,
            Element::Heading(_) => self.end_heading(),
            Element::List { .. } => {
                self.lists.pop();
                self.writer.indent(self.lists.len().saturating_sub(1));
                self.writer.part(if self.lists.is_empty() { Break::Paragraph } else { Break::Line });
            }
            Element::Item | Element::Description | Element::Term => {
                self.writer.unmark();
                self.writer.part(Break::Line);
            }
            Element::Code => self.writer.end_code(),
            Element::Cell => self.writer.leave_cell(),
            Element::Row => self.writer.part(Break::Line),
            element if element.is_block() => self.writer.part(Break::Paragraph),
            _ => {}
        }
    }

    fn end_heading(&mut self) {
        self.writer.on_one_line(false);
        let Some((level, start)) = self.heading.take() else {
            return;
        };
        let (text, end) = self.writer.since(start);
        if end <= start {
            return;
        }
        let label = one_line(text.trim_start_matches(['#', ' ']));
        let heading = Heading { level, label, start, end };
        if is_heading(&heading) {
            self.headings.push(heading);
        }
        self.writer.part(Break::Paragraph);
    }

    fn image(&mut self, tag: &StartTag<()>) {
        if let Some(alt) = tag.attributes.get(&b"alt"[..]) {
            self.writer.text(&String::from_utf8_lossy(alt));
        }
    }

    fn finish(mut self) -> Readable {
        self.pop_to(0);
        self.end_heading();
        let title = one_line(&self.title);
        let first = || self.headings.iter().find(|heading| heading.level == 1).map(|heading| heading.label.clone());
        let title = Some(title).filter(|title| !title.is_empty()).or_else(first);
        Readable {
            title: title.map(|title| shortened(&title, MAX_TITLE_BYTES).to_owned()),
            text: self.writer.finish(),
            headings: self.headings,
        }
    }
}
