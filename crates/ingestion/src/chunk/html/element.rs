//! What the elements of HTML mean to a reader.

use html5gum::StartTag;

/// An element by what it does to the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    Title,
    Heading(u8),
    Paragraph,
    List {
        numbered: bool,
    },
    Item,
    Definitions,
    Term,
    Description,
    Table,
    Row,
    Cell,
    Code,
    /// What a page is about, as opposed to what the site puts around it.
    Content,
    /// A note beside the text, with a heading that heads nothing but the note.
    Aside,
    /// Any other element on lines of its own.
    Block,
    Rule,
    LineBreak,
    /// Has no end tag, and means nothing here.
    Void,
    /// Text in the line.
    Inline,
}

/// Elements that an element ends, and those that it doesn't look past.
type Implied = (&'static [Element], &'static [Element]);

impl Element {
    pub(super) fn of(name: &str) -> Self {
        match name {
            "title" => Self::Title,
            "h1" => Self::Heading(1),
            "h2" => Self::Heading(2),
            "h3" => Self::Heading(3),
            "h4" => Self::Heading(4),
            "h5" => Self::Heading(5),
            "h6" => Self::Heading(6),
            "p" => Self::Paragraph,
            "ul" | "menu" | "dir" => Self::List { numbered: false },
            "ol" => Self::List { numbered: true },
            "li" => Self::Item,
            "dl" => Self::Definitions,
            "dt" => Self::Term,
            "dd" => Self::Description,
            "table" => Self::Table,
            "tr" => Self::Row,
            "td" | "th" => Self::Cell,
            "pre" | "listing" | "xmp" | "plaintext" => Self::Code,
            "article" | "main" | "section" => Self::Content,
            "aside" => Self::Aside,
            "hr" => Self::Rule,
            "br" => Self::LineBreak,
            "area" | "base" | "basefont" | "bgsound" | "col" | "embed" | "frame" | "img" | "input" | "link"
            | "meta" | "param" | "source" | "track" | "wbr" => Self::Void,
            "address" | "blockquote" | "body" | "button" | "canvas" | "caption" | "center" | "details" | "dialog"
            | "div" | "fieldset" | "figcaption" | "figure" | "footer" | "form" | "head" | "header" | "hgroup"
            | "html" | "iframe" | "legend" | "nav" | "noscript" | "object" | "optgroup" | "option" | "script"
            | "search" | "select" | "style" | "summary" | "svg" | "template" | "textarea" => Self::Block,
            // The parts of a table, too: its rows part themselves.
            _ => Self::Inline,
        }
    }

    /// Says whether the element parts what stands before it from what stands after it.
    pub(super) fn is_block(self) -> bool {
        !matches!(self, Self::Title | Self::Inline | Self::Void | Self::LineBreak | Self::Cell)
    }

    /// Says whether it does its work when it begins, and has no end.
    pub(super) fn stands_alone(self) -> bool {
        matches!(self, Self::Rule | Self::LineBreak)
    }

    /// Which open elements its beginning ends.
    pub(super) fn closes(self) -> Option<Implied> {
        const LIST: &[Element] = &[Element::List { numbered: true }, Element::List { numbered: false }, Element::Table];
        const LEVELS: &[Element] = &[
            Element::Heading(1),
            Element::Heading(2),
            Element::Heading(3),
            Element::Heading(4),
            Element::Heading(5),
            Element::Heading(6),
            Element::Paragraph,
        ];
        match self {
            Self::Item => Some((&[Self::Item], LIST)),
            Self::Term | Self::Description => {
                Some((&[Self::Term, Self::Description], &[Self::Definitions, Self::Table]))
            }
            Self::Row => Some((&[Self::Row], &[Self::Table])),
            Self::Cell => Some((&[Self::Cell], &[Self::Row, Self::Table])),
            Self::Heading(_) => Some((LEVELS, &[Self::Cell, Self::Item, Self::Content, Self::Block])),
            Self::Paragraph | Self::Table | Self::Code | Self::List { .. } | Self::Definitions => {
                Some((&[Self::Paragraph], &[Self::Cell, Self::Item, Self::Description, Self::Content, Self::Block]))
            }
            _ => None,
        }
    }
}

/// Says whether an element is a note beside the text, by the names that documentation
/// generators give theirs.
pub(super) fn is_aside(tag: &StartTag<()>) -> bool {
    tag.attributes.get(&b"class"[..]).is_some_and(|classes| {
        classes.split(u8::is_ascii_whitespace).any(|class| {
            matches!(class, b"note" | b"tip" | b"warning" | b"caution" | b"important" | b"admonition" | b"sidebar")
        })
    })
}

/// Says whether an element and all in it is nothing to read: it is code, a control, hidden,
/// or the site's own navigation. A `<header>` or `<footer>` is the site's unless it stands
/// `in_content`.
pub(super) fn is_dropped(tag: &StartTag<()>, in_content: bool) -> bool {
    match tag.name.as_slice() {
        b"script" | b"style" | b"noscript" | b"template" | b"svg" | b"iframe" | b"object" | b"canvas" | b"audio"
        | b"video" | b"nav" | b"button" | b"select" | b"textarea" | b"dialog" | b"datalist" => return true,
        b"header" | b"footer" if !in_content => return true,
        b"body" | b"html" | b"main" | b"article" => return false,
        _ => {}
    }
    if tag.attributes.is_empty() {
        return false;
    }
    let attribute = |name: &[u8]| tag.attributes.get(name).map(|value| String::from_utf8_lossy(value));
    if attribute(b"hidden").is_some() || attribute(b"aria-hidden").is_some_and(|value| value == "true") {
        return true;
    }
    if attribute(b"role").is_some_and(|role| matches!(&*role, "navigation" | "banner" | "contentinfo" | "search")) {
        return true;
    }
    // What documentation generators call theirs: DocBook, Sphinx, mdBook, Docusaurus.
    attribute(b"class").is_some_and(|classes| {
        classes.split_ascii_whitespace().any(|class| {
            matches!(
                class,
                "navheader"
                    | "navfooter"
                    | "navbar"
                    | "breadcrumb"
                    | "breadcrumbs"
                    | "sphinxsidebar"
                    | "headerlink"
                    | "menu-bar"
                    | "nav-chapters"
            )
        })
    })
}
