//! Small things done to texts that came from a model.

use unicode_normalization::UnicodeNormalization;

/// Makes one line of a text: white space collapsed, control characters gone.
pub(crate) fn clean(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        let before = line.len();
        if before > 0 {
            line.push(' ');
        }
        let start = line.len();
        line.extend(word.chars().filter(|char| !char.is_control()));
        if line.len() == start {
            // A word of control characters alone leaves no space either.
            line.truncate(before);
        }
    }
    line
}

/// Makes the form of a name that names are compared by: NFKC, lower-cased, white space
/// collapsed.
pub fn canonical(name: &str) -> String {
    // Lower-casing may leave a form that NFKC would compose, hence a second round.
    let folded: String = name.nfkc().collect::<String>().to_lowercase().nfkc().collect();
    clean(&folded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_no_control_characters_and_single_spaces() {
        assert_eq!(clean(" a\0b \u{7} \t\n c\u{1b}[0m\u{a0}d "), "ab c[0m d");
    }

    #[test]
    fn names_that_look_alike_compare_equal() {
        assert_eq!(canonical("ＡＣＭＥ\u{a0} Ｃｏｒｐ"), "acme corp");
        assert_eq!(canonical("Cafe\u{301}"), canonical("CAFÉ"));
    }
}
