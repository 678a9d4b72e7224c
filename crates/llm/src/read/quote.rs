use std::{cell::OnceCell, ops::Range};

/// A chunk that quotes are looked up in.
pub(super) struct Haystack<'a> {
    text: &'a str,
    /// Made when the first quote is not found as it stands.
    collapsed: OnceCell<Collapsed>,
}

/// A text with each run of white space made one space, and none at its ends.
struct Collapsed {
    text: String,
    /// Where each byte of `text` stands in the original.
    origins: Vec<usize>,
}

impl<'a> Haystack<'a> {
    pub(super) const fn new(text: &'a str) -> Self {
        Self { text, collapsed: OnceCell::new() }
    }

    pub(super) const fn text(&self) -> &'a str {
        self.text
    }

    /// Finds the first place of a quote; white space may differ from the quote's.
    pub(super) fn find(&self, quote: &str) -> Option<Range<usize>> {
        let quote = quote.trim();
        if quote.is_empty() {
            return None;
        }
        if let Some(start) = self.text.find(quote) {
            return Some(start..start + quote.len());
        }
        let quote = Collapsed::new(quote).text;
        let collapsed = self.collapsed.get_or_init(|| Collapsed::new(self.text));
        let start = collapsed.text.find(&quote)?;
        // A collapsed quote neither begins nor ends with a space, so both ends are real bytes.
        let first = collapsed.origins.get(start)?;
        let last = collapsed.origins.get(start + quote.len() - 1)?;
        Some(*first..last + 1)
    }
}

impl Collapsed {
    fn new(original: &str) -> Self {
        let mut text = String::with_capacity(original.len());
        let mut origins = Vec::with_capacity(original.len());
        let mut space_at = None;
        for (at, char) in original.char_indices() {
            if char.is_whitespace() {
                space_at = space_at.or(Some(at));
                continue;
            }
            if let Some(space_at) = space_at.take()
                && !text.is_empty()
            {
                text.push(' ');
                origins.push(space_at);
            }
            text.push(char);
            origins.extend(at..at + char.len_utf8());
        }
        Self { text, origins }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found<'a>(text: &'a str, quote: &str) -> Option<&'a str> {
        Haystack::new(text).find(quote).map(|place| &text[place])
    }

    #[test]
    fn a_quote_is_found_as_it_stands() {
        assert_eq!(found("Zürich — größer als Bern.", "größer als"), Some("größer als"));
        assert_eq!(Haystack::new("日本の首都は東京です").find("首都は東京"), Some(9..24));
    }

    #[test]
    fn white_space_may_differ() {
        let text = "  Zürich ist\n    größer\u{a0}als\r\n\tBern.  ";
        assert_eq!(found(text, "ist größer als Bern."), Some("ist\n    größer\u{a0}als\r\n\tBern."));
        assert_eq!(found(text, "\n Zürich\tist größer "), Some("Zürich ist\n    größer"));
        assert_eq!(found("ends with é\n", "with  é"), Some("with é"));
    }

    #[test]
    fn other_words_are_not_found() {
        assert_eq!(found("Zürich ist größer", "Zürich ist kleiner"), None);
        assert_eq!(found("Zürich ist", "Zürichist"), None);
        assert_eq!(found("", "x"), None);
        assert_eq!(found("  ", " "), None);
    }
}
