//! Just enough of Rust's grammar to look at code without its comments and strings.

/// A Rust file, seen line by line.
pub(crate) struct Code {
    /// The text with comments, strings and character literals blanked out. Same length,
    /// same lines.
    pub(crate) bare: String,
    /// For each line, whether it belongs to an item under `#[cfg(test)]` or `#[test]`.
    pub(crate) is_test: Vec<bool>,
}

impl Code {
    /// Reads a file's text.
    pub(crate) fn parse(text: &str) -> Self {
        let bare = blank(text);
        let is_test = mark_tests(&bare);
        Self { bare, is_test }
    }

    /// Returns each line that has something in it: its number from 1, its code, whether it
    /// is test code.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (usize, &str, bool)> {
        let lines = self.bare.lines().enumerate();
        lines
            .filter(|(_, line)| !line.trim().is_empty())
            .map(|(index, line)| (index + 1, line, self.is_test.get(index) == Some(&true)))
    }
}

/// Replaces what is in comments, strings and character literals by spaces.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut bare = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = skip(bytes, at);
        if end > at {
            let skipped = bytes.get(at..end).unwrap_or_default();
            bare.extend(skipped.iter().map(|byte| if *byte == b'\n' { b'\n' } else { b' ' }));
            at = end;
        } else {
            let byte = bytes.get(at).copied().unwrap_or(b' ');
            bare.push(if byte.is_ascii() { byte } else { b'_' });
            at += 1;
        }
    }
    String::from_utf8_lossy(&bare).into_owned()
}

/// Returns where the comment or literal that begins at `at` ends; `at` if none does.
fn skip(bytes: &[u8], at: usize) -> usize {
    let rest = bytes.get(at..).unwrap_or_default();
    let is_after_word = at
        .checked_sub(1)
        .and_then(|before| bytes.get(before))
        .is_some_and(|before| before.is_ascii_alphanumeric() || *before == b'_');
    let length = match rest {
        [b'/', b'/', ..] => rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()),
        [b'/', b'*', ..] => block_comment(rest),
        [b'"', ..] => 1 + quoted(rest.get(1..).unwrap_or_default(), b'"'),
        [b'b' | b'c', b'"', ..] if !is_after_word => 2 + quoted(rest.get(2..).unwrap_or_default(), b'"'),
        [b'r', b'"' | b'#', ..] if !is_after_word => raw_string(rest, 1),
        [b'b' | b'c', b'r', b'"' | b'#', ..] if !is_after_word => raw_string(rest, 2),
        [b'\'', b'\\', ..] => 1 + quoted(rest.get(1..).unwrap_or_default(), b'\''),
        // A character, as opposed to a lifetime: one that takes several bytes counts as one.
        [b'\'', first, ..] => {
            let width = match first {
                0xf0.. => 4,
                0xe0.. => 3,
                0xc0.. => 2,
                _ => 1,
            };
            if rest.get(1 + width) == Some(&b'\'') { width + 2 } else { 0 }
        }
        _ => 0,
    };
    at + length.min(rest.len())
}

fn block_comment(rest: &[u8]) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        match rest.get(at..at + 2) {
            Some(b"/*") => {
                depth += 1;
                at += 2;
            }
            Some(b"*/") => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    rest.len()
}

/// Returns how far the closing quote is, that quote included.
fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 0;
    while let Some(byte) = rest.get(at) {
        match byte {
            b'\\' => at += 2,
            byte if *byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

fn raw_string(rest: &[u8], prefix: usize) -> usize {
    let after = rest.get(prefix..).unwrap_or_default();
    let hashes = after.iter().take_while(|byte| **byte == b'#').count();
    if after.get(hashes) != Some(&b'"') {
        // A raw identifier, such as r#type.
        return 0;
    }
    let body = prefix + hashes + 1;
    let mut closing = vec![b'"'];
    closing.resize(hashes + 1, b'#');
    let inside = rest.get(body..).unwrap_or_default();
    let end = inside.windows(closing.len()).position(|window| window == closing);
    end.map_or(rest.len(), |end| body + end + closing.len())
}

/// Marks the lines from a test attribute to the end of the item that it stands on.
fn mark_tests(bare: &str) -> Vec<bool> {
    let mut marks = Vec::new();
    // Braces still open in the test item; `None` outside of one.
    let mut open: Option<i64> = None;
    let mut has_begun = false;
    for line in bare.lines() {
        let text = line.trim();
        if open.is_none() && is_test_attribute(text) {
            open = Some(0);
            has_begun = false;
        }
        marks.push(open.is_some());
        let Some(depth) = open else { continue };
        let mut depth = depth;
        let mut ends = false;
        for byte in text.bytes() {
            match byte {
                b'{' => {
                    depth += 1;
                    has_begun = true;
                }
                b'}' => depth -= 1,
                // `#[cfg(test)] mod x;` or a `use`.
                b';' if depth == 0 && !has_begun => ends = true,
                _ => {}
            }
        }
        ends |= has_begun && depth <= 0;
        open = if ends { None } else { Some(depth) };
    }
    marks
}

fn is_test_attribute(line: &str) -> bool {
    line.starts_with("#[cfg(test)]")
        || line.starts_with("#[cfg(all(test")
        || line.starts_with("#[test]")
        || line.starts_with("#[tokio::test")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked() {
        let bare = |text: &str| blank(text).split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(bare("a /* b /* c */ d */ e // f"), "a e");
        assert_eq!(bare(r#"x("a \" todo!()", y)"#), "x( , y)");
        assert_eq!(bare("x(r#\"a \"quoted\" b\"#)"), "x( )");
        assert_eq!(bare("f('\"', 'x', '\\'', 'é', b'\"')"), "f( , , , , b )");
        assert_eq!(bare("fn f<'a>(x: &'a str, r#type: u8) {}"), "fn f<'a>(x: &'a str, r#type: u8) {}");
    }

    #[test]
    fn blanking_keeps_lines() {
        let text = "a\n/* b\nc */ \"d\ne\"\nf";
        assert_eq!(blank(text).lines().count(), text.lines().count());
    }

    #[test]
    fn test_items_are_marked() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n  fn b() {}\n}\nfn c() {}\n#[cfg(test)]\nmod d;\nfn e() {}";
        let marked = Code::parse(text).is_test;
        assert_eq!(marked, [false, true, true, true, true, false, true, true, false]);
    }
}
