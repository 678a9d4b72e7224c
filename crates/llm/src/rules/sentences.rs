use unicode_segmentation::UnicodeSegmentation;

/// Marks at the beginning of a line that are no part of its sentence.
const LINE_MARKS: &[char] = &['-', '*', '+', '>', '•'];

/// Cuts a text into sentences with the places they begin at. Headings, tables and code
/// fences are left out.
pub(super) fn sentences(text: &str) -> Vec<(usize, &str)> {
    let joined = join_lines(text);
    let mut sentences = Vec::new();
    for (start, piece) in joined.split_sentence_bound_indices() {
        // The joined text has the same bytes but for line ends, so its places fit the original.
        let Some(piece) = text.get(start..start + piece.len()) else { continue };
        let rest = piece.trim_start_matches(|char: char| char.is_whitespace() || LINE_MARKS.contains(&char));
        if rest.starts_with(['#', '|']) || rest.starts_with("```") {
            continue;
        }
        let start = start + piece.len() - rest.len();
        let sentence = rest.trim_end();
        if !sentence.is_empty() {
            sentences.push((start, sentence));
        }
    }
    sentences
}

/// Joins lines that were only wrapped: a line end would end the sentence. Keeps the length.
fn join_lines(text: &str) -> String {
    let mut joined = String::with_capacity(text.len());
    let mut lines = text.split_inclusive('\n').peekable();
    while let Some(line) = lines.next() {
        let goes_on = lines.peek().is_some_and(|next| continues(next)) && !is_mark(line) && !line.trim().is_empty();
        let body = line.trim_end_matches(['\n', '\r']);
        joined.push_str(body);
        if goes_on {
            joined.extend(std::iter::repeat_n(' ', line.len() - body.len()));
        } else {
            joined.push_str(&line[body.len()..]);
        }
    }
    joined
}

/// Says whether a line may be the second half of a sentence. One that begins with a digit
/// or a mark is more likely an item of a list.
fn continues(line: &str) -> bool {
    line.trim_start().starts_with(|char: char| char.is_alphabetic() || matches!(char, '(' | '"' | '“' | '‘'))
}

/// Says whether a line is a heading, a row of a table or a fence.
fn is_mark(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with(['#', '|']) || line.starts_with("```")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<&str> {
        let found = sentences(text);
        for (start, sentence) in &found {
            assert!(text[*start..].starts_with(sentence));
        }
        found.into_iter().map(|(_, sentence)| sentence).collect()
    }

    #[test]
    fn wrapped_lines_are_one_sentence() {
        assert_eq!(texts("Ä first\r\n  line. Second one."), ["Ä first\r\n  line.", "Second one."]);
        assert_eq!(texts("One\n\ntwo"), ["One", "two"]);
    }

    #[test]
    fn marks_are_no_part_of_a_sentence() {
        assert_eq!(
            texts("# Head\nText here.\n- item one\n* item two\n> quoted"),
            ["Text here.", "item one", "item two", "quoted"]
        );
        assert_eq!(texts("| a | b |\n|---|---|\nafter"), ["after"]);
    }
}
