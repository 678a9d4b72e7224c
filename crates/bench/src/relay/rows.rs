//! The rows of a round, as SQL: a bulk load goes past the application, and past nothing else.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use uuid::Uuid;
use waybill_domain::{ChunkId, ContentHash, ProjectId, SourceId, TextHash};
use waybill_storage::OUTBOX_CHANNEL;

/// Words of a text: about the size of a real chunk, 150 tokens.
const TEXT_WORDS: usize = 110;

/// Of these, one in so many is a stop word, as in English.
const STOP_WORD_EVERY: u64 = 3;

/// The words that a stemmer throws away.
const STOP_WORDS: [&str; 8] = ["the", "of", "and", "to", "in", "is", "that", "for"];

/// Different words in all texts together.
const VOCABULARY: f64 = 50_000.0;

/// The frequency of the r-th word falls with 1 / r from here on; those before are stop words.
const FIRST_RANK: f64 = 30.0;

/// The seed of the texts: every run has the same.
const SEED: u64 = 15;

/// Makes `count` different texts whose words are as unevenly frequent as those of a language
/// (Zipf): how many texts share a word decides what an index of words costs.
pub(crate) fn texts(count: usize) -> Vec<String> {
    (0..count)
        .map(|number| {
            let mut random = Xorshift::new(SEED ^ (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let words = (0..TEXT_WORDS).map(|_| random.word());
            // The number is in no other text, so no two are the same.
            format!("q{number} {}", words.collect::<Vec<_>>().join(" "))
        })
        .collect()
}

/// xorshift64: any spread will do.
pub(super) struct Xorshift(u64);

impl Xorshift {
    /// Starts from any number.
    pub(super) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// From 0 up to 1, in steps of 2^-24, so that it is an f32 as well.
    pub(super) fn fraction(&mut self) -> f64 {
        (self.next() >> 40) as f64 / (1_u64 << 24) as f64
    }

    fn word(&mut self) -> String {
        let choice = self.next() >> 32;
        if choice.is_multiple_of(STOP_WORD_EVERY) {
            let place = (choice / STOP_WORD_EVERY) as usize % STOP_WORDS.len();
            return STOP_WORDS[place].to_owned();
        }
        let mut rank = (FIRST_RANK * (VOCABULARY / FIRST_RANK).powf(self.fraction())) as u64;
        let mut word = String::new();
        while rank > 0 {
            word.push_str(SYLLABLES[(rank % SYLLABLES.len() as u64) as usize]);
            rank /= SYLLABLES.len() as u64;
        }
        word
    }
}

/// Ranks are written with these, as numbers are with digits.
const SYLLABLES: [&str; 20] = [
    "ba", "ko", "mi", "ru", "te", "la", "no", "si", "du", "ve", "pa", "go", "fi", "tu", "re", "za", "lo", "ni", "cu",
    "he",
];

/// Chunks that are new, with texts that are known.
pub(crate) struct Round<'a> {
    project: Uuid,
    source: SourceId,
    uri: String,
    texts: &'a [String],
}

impl<'a> Round<'a> {
    /// Makes the round of this number.
    pub(crate) fn new(number: usize, texts: &'a [String]) -> Self {
        let uri = format!("bench/{number}");
        let project = Uuid::new_v5(&Uuid::NAMESPACE_OID, b"waybill-bench");
        let source = SourceId::from_uuid(Uuid::new_v5(&project, uri.as_bytes()));
        Self { project, source, uri, texts }
    }

    /// How many chunks it has.
    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    /// Returns the project that the source belongs to.
    pub(crate) fn project(&self) -> ProjectId {
        ProjectId::from_uuid(self.project)
    }

    /// Returns the uri of the source.
    pub(crate) fn uri(&self) -> &str {
        &self.uri
    }

    /// Returns the source that the chunks belong to.
    pub(crate) fn source(&self) -> SourceId {
        self.source
    }

    /// Returns the ids of the chunks, and so of their points.
    pub(super) fn ids(&self) -> impl Iterator<Item = Uuid> {
        self.texts.iter().map(|text| self.id(text))
    }

    fn id(&self, text: &str) -> Uuid {
        ChunkId::derive(self.source, &TextHash::of(text), 0).as_uuid()
    }

    /// Writes SQL that inserts the source and its chunks.
    pub(crate) fn write_sql(&self, path: &Path) -> anyhow::Result<()> {
        let (project, source, uri) = (self.project, self.source, &self.uri);
        let mut sql = format!(
            "INSERT INTO project (id, name) VALUES ('{project}', 'bench') ON CONFLICT DO NOTHING;
             INSERT INTO source (id, project_id, uri, title, media_type, content_hash, text, state, chunk_count, chunker)
             VALUES ('{source}', '{project}', '{uri}', '{uri}', 'text', '\\x{}', '', 'chunked', {}, 'bench');
             COPY chunk (id, project_id, source_id, ordinal, text, text_hash, start_byte, end_byte, token_count) FROM stdin;\n",
            ContentHash::of(uri),
            self.texts.len(),
        );
        for (ordinal, text) in self.texts.iter().enumerate() {
            let (id, hash, length) = (self.id(text), TextHash::of(text), text.len());
            let text = escape(text);
            writeln!(sql, "{id}\t{project}\t{source}\t{ordinal}\t{text}\t\\\\x{hash}\t0\t{length}\t150")?;
        }
        // Rings at the commit, as a writer does right after it. The last line of the output is
        // the time just before.
        writeln!(sql, "\\.\nSELECT pg_notify('{OUTBOX_CHANNEL}', '');")?;
        sql.push_str("SELECT extract(epoch FROM clock_timestamp());\n");
        std::fs::write(path, sql).map_err(|error: io::Error| error.into())
    }
}

/// Writes a text as COPY wants it.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\t', "\\t").replace('\n', "\\n").replace('\r', "\\r")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn chunks_of_all_rounds_differ_and_their_texts_do_not() {
        let texts = texts(50);
        let ids: HashSet<_> = (0..2).flat_map(|n| Round::new(n, &texts).ids().collect::<Vec<_>>()).collect();
        assert_eq!(ids.len(), 100);
        let words: HashSet<_> = texts.iter().flat_map(|text| text.split(' ')).collect();
        assert!(words.len() > 1_000, "{} words", words.len());
        assert!(texts.iter().all(|text| text.len() < 2_000));
    }

    #[test]
    fn copy_gets_one_line_a_row() {
        assert_eq!(escape("a\tb\nc\\d"), "a\\tb\\nc\\\\d");
    }
}
