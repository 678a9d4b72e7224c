//! Cuts a section at paragraphs, sentences and words.

use std::ops::Range;

use text_splitter::{ChunkConfig, ChunkSizer, MarkdownSplitter, TextSplitter};
use waybill_domain::MediaType;

use super::tokens::TokenCounter;

/// A section is handed to the splitter in windows of at most this size: its time grows
/// faster than the text if that is one paragraph. At 200 tokens a passage, one cut in
/// about 15 is at a window's end, which is a paragraph's or a sentence's end, too.
const WINDOW_BYTES: usize = 16 * 1024;

/// How far back from a window's end a good place to cut is looked for.
const SEARCH_BYTES: usize = 2 * 1024;

/// Where more than one byte in this many is a sign of inline markup, a text is no Markdown
/// that anybody wrote, and is cut as plain text: thirty times faster where it is hostile.
const BYTES_PER_MARKUP: usize = 6;

/// Where to end a window, best first.
const BREAKS: [&str; 4] = ["\n\n", "\n", ". ", " "];

/// Cuts `range` of `text` into passages of at most `budget` tokens and hands each to
/// `found`, with its place in `text` and its number of tokens.
pub(super) fn split(
    text: &str,
    range: Range<usize>,
    media_type: MediaType,
    counter: &TokenCounter,
    budget: usize,
    overlap: usize,
    mut found: impl FnMut(Range<usize>, u32),
) {
    let mut start = range.start;
    while start < range.end {
        let window = &text[start..window_end(text, start, range.end)];
        let sizer =
            Positions { base: window.as_ptr() as usize, len: window.len(), starts: counter.starts(window), counter };
        // With an overlap that is no smaller than the capacity there is no configuration; ours is.
        let config = ChunkConfig::new(budget)
            .with_overlap(overlap)
            .unwrap_or_else(|_| ChunkConfig::new(budget))
            .with_sizer(&sizer);
        let mut push = |(offset, passage): (usize, &str)| {
            // Trimmed again: the splitter keeps the indentation of code.
            let begin = start + offset + (passage.len() - passage.trim_start().len());
            let passage = passage.trim();
            if !passage.is_empty() {
                found(begin..begin + passage.len(), u32::try_from(sizer.size(passage)).unwrap_or(u32::MAX));
            }
        };
        if media_type == MediaType::Text || is_soup(window) {
            TextSplitter::new(config).chunk_indices(window).for_each(&mut push);
        } else {
            MarkdownSplitter::new(config).chunk_indices(window).for_each(&mut push);
        }
        start += window.len();
    }
}

fn window_end(text: &str, start: usize, end: usize) -> usize {
    if end - start <= WINDOW_BYTES {
        return end;
    }
    let hard = text.floor_char_boundary(start + WINDOW_BYTES);
    let from = text.floor_char_boundary(hard - SEARCH_BYTES);
    let tail = &text[from..hard];
    BREAKS.iter().find_map(|pattern| tail.rfind(pattern).map(|at| from + at + pattern.len())).unwrap_or(hard)
}

fn is_soup(text: &str) -> bool {
    let signs =
        text.bytes().filter(|byte| matches!(byte, b'*' | b'_' | b'[' | b']' | b'`' | b'<' | b'>' | b'~')).count();
    signs > text.len() / BYTES_PER_MARKUP
}

/// Counts the tokens of parts of one text, which is tokenized once: the splitter asks for
/// the size of a passage many times until it has found its end.
struct Positions<'a> {
    base: usize,
    len: usize,
    starts: Vec<usize>,
    counter: &'a TokenCounter,
}

impl ChunkSizer for Positions<'_> {
    fn size(&self, chunk: &str) -> usize {
        // The splitter hands in slices of the text; where one lies is its address.
        match (chunk.as_ptr() as usize).checked_sub(self.base) {
            Some(start) if start + chunk.len() <= self.len => {
                let before = |at: usize| self.starts.partition_point(|&token| token < at);
                before(start + chunk.len()) - before(start)
            }
            _ => self.counter.count(chunk),
        }
    }
}
