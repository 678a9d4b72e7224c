//! Errors of other servers, which may quote what they were sent.

/// As much of a text, in characters, is no coincidence any more.
const EXCERPT_CHARS: usize = 24;

/// Of a text that is shorter, all of it must be there, and it must not be a mere word.
const SHORT_TEXT_CHARS: usize = 12;

/// What stands for a message that was left out.
const LEFT_OUT: &str = "the server's message quotes what it was sent, and is left out";

/// Returns `message`, unless it quotes one of `texts`: documents and prompts must not get into
/// errors, which are logged and stored.
#[must_use]
pub fn without_echo<'a>(message: String, texts: impl IntoIterator<Item = &'a str>) -> String {
    let chars: Vec<char> = message.chars().collect();
    let excerpts: Vec<String> = chars.windows(EXCERPT_CHARS).map(|excerpt| excerpt.iter().collect()).collect();
    let quotes = |text: &str| match text.chars().count() {
        0..SHORT_TEXT_CHARS => false,
        SHORT_TEXT_CHARS..EXCERPT_CHARS => message.contains(text),
        _ => excerpts.iter().any(|excerpt| text.contains(excerpt.as_str())),
    };
    if texts.into_iter().any(quotes) { LEFT_OUT.to_owned() } else { message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_quotes_a_text_is_left_out() {
        let text = "The contract between Müller and the harbour ends in May.";
        let of = |message: &str| without_echo(message.to_owned(), [text, "who pays for this?", "bad"]);
        assert_eq!(of("bad input: 'The contract between Müller and…'"), LEFT_OUT);
        assert_eq!(of("can't read \"who pays for this?\""), LEFT_OUT);
        for harmless in ["", "model not found", "bad request", "the contract between the two is void", "who pays?"] {
            assert_eq!(of(harmless), harmless);
        }
    }
}
