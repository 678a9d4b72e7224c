//! How text from documents is put on a terminal: cleaned, cut, wrapped.

use console::measure_text_width;

/// Width where there is no terminal to ask.
const DEFAULT_WIDTH: usize = 100;

/// Longer lines are hard to read, however wide the terminal is.
const MAX_WIDTH: usize = 110;

/// Returns how many columns a line of output may take.
pub(crate) fn width() -> usize {
    let columns = console::Term::stdout().size_checked().map(|(_, columns)| usize::from(columns));
    columns.unwrap_or(DEFAULT_WIDTH).clamp(40, MAX_WIDTH)
}

/// Makes one line of a text: white space folded, control characters dropped, so that no
/// document can move the cursor or colour the terminal.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.extend(word.chars().filter(|char| !char.is_control()));
    }
    line
}

/// Drops control characters but for newlines and tabs.
pub(crate) fn printable(text: &str) -> String {
    text.chars().filter(|char| !char.is_control() || matches!(char, '\n' | '\t')).collect()
}

/// Breaks a line between words into lines of at most `columns` columns. A word that is
/// longer stands alone, uncut.
pub(crate) fn wrap(line: &str, columns: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut current = String::new();
    let mut used = 0;
    for word in line.split(' ').filter(|word| !word.is_empty()) {
        let width = measure_text_width(word);
        if used > 0 && used + 1 + width > columns {
            lines.push(std::mem::take(&mut current));
            used = 0;
        }
        if used > 0 {
            current.push(' ');
            used += 1;
        }
        current.push_str(word);
        used += width;
    }
    if !current.is_empty() {
        lines.push(current);
    }
    lines
}

/// Cuts a piece of at most `chars` characters out of `line`, around the first word of
/// `query` that occurs in it, and marks with "…" where something was left out.
pub(crate) fn excerpt(line: &str, query: &str, chars: usize) -> String {
    let total = line.chars().count();
    if total <= chars {
        return line.to_owned();
    }
    let lower = line.to_lowercase();
    let hit = words(query).filter_map(|word| lower.find(&word)).min().unwrap_or(0);
    // Lower-casing may change lengths, so this is a position in characters, roughly.
    let hit = lower[..hit].chars().count();
    // A third of the piece leads up to the word, unless the end of the text is near.
    let start = hit.saturating_sub(chars / 3).min(total - chars);
    let mut piece: String = line.chars().skip(start).take(chars).collect();
    if start > 0 {
        piece = match piece.split_once(' ') {
            Some((_, rest)) => format!("…{rest}"),
            None => format!("…{piece}"),
        };
    }
    if start + chars < total {
        if let Some((rest, _)) = piece.rsplit_once(' ') {
            piece = rest.to_owned();
        }
        piece.push('…');
    }
    piece
}

/// Returns the words of a query that are worth looking for, in lower case.
pub(crate) fn words(query: &str) -> impl Iterator<Item = String> {
    // Shorter ones ("is", "a") occur everywhere.
    const MIN_CHARS: usize = 3;
    query
        .split(|char: char| !char.is_alphanumeric())
        .filter(|word| word.chars().count() >= MIN_CHARS)
        .map(str::to_lowercase)
        .collect::<Vec<_>>()
        .into_iter()
}

/// Writes a number with commas between thousands.
pub(crate) fn count(number: u64) -> String {
    indicatif::HumanCount(number).to_string()
}

/// Writes a span the way a person would say it: 340 ms, 1.8 s, 2 min 5 s, 3 h 10 min.
pub(crate) fn span(span: std::time::Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0 => format!("{} ms", span.as_millis()),
        1..=59 => format!("{:.1} s", span.as_secs_f64()),
        60..=3599 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_document_cannot_write_escapes() {
        assert_eq!(one_line("a\u{1b}[31m b\n\n\tc\u{7}"), "a[31m b c");
        assert_eq!(printable("a\u{1b}[31m\nb"), "a[31m\nb");
    }

    #[test]
    fn lines_break_between_words() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("incomprehensible no", 5), ["incomprehensible", "no"]);
        assert!(wrap("", 5).is_empty());
    }

    #[test]
    fn an_excerpt_shows_the_word_asked_for() {
        let line = format!("{}needle {}", "hay ".repeat(100), "straw ".repeat(100));
        let piece = excerpt(line.trim(), "the NEEDLE", 60);
        assert!(piece.contains("needle"), "{piece}");
        assert!(piece.starts_with('…') && piece.ends_with('…'), "{piece}");
        assert!(piece.chars().count() <= 61, "{piece}");
        assert_eq!(excerpt("short", "x", 60), "short");
    }

    #[test]
    fn an_excerpt_does_not_split_characters() {
        let line = "ÄÖÜß ".repeat(50);
        assert!(excerpt(line.trim(), "ÖÜß", 20).chars().count() <= 21);
    }

    #[test]
    fn spans_read_well() {
        assert_eq!(span(Duration::from_millis(340)), "340 ms");
        assert_eq!(span(Duration::from_millis(1840)), "1.8 s");
        assert_eq!(span(Duration::from_secs(125)), "2 min 5 s");
        assert_eq!(span(Duration::from_secs(11_400)), "3 h 10 min");
    }
}
