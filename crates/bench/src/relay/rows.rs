//! The rows of a round, as SQL: a bulk load goes past the application, and past nothing else.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use uuid::Uuid;
use waybill_domain::{ChunkId, ContentHash, SourceId, TextHash};
use waybill_storage::OUTBOX_CHANNEL;
use waybill_testkit::corpus;

/// About the size of a real chunk: 150 tokens.
const TEXT_BYTES: usize = 700;

/// The seed of the corpus: every run has the same texts.
const SEED: u64 = 15;

/// Makes `count` different texts.
pub(super) fn texts(count: usize) -> Vec<String> {
    corpus::documents(SEED, count)
        .map(|document| {
            // The needle is in no other document, so no two texts are the same.
            let mut text = format!("{} {}", document.needle, document.body);
            let end = (0..=TEXT_BYTES.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
            text.truncate(end.unwrap_or_default());
            text
        })
        .collect()
}

/// Chunks that are new, with texts that are known.
pub(super) struct Round<'a> {
    project: Uuid,
    source: SourceId,
    uri: String,
    texts: &'a [String],
}

impl<'a> Round<'a> {
    /// Makes the round of this number.
    pub(super) fn new(number: usize, texts: &'a [String]) -> Self {
        let uri = format!("bench/{number}");
        let project = Uuid::new_v5(&Uuid::NAMESPACE_OID, b"waybill-bench");
        let source = SourceId::from_uuid(Uuid::new_v5(&project, uri.as_bytes()));
        Self { project, source, uri, texts }
    }

    /// How many chunks it has.
    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    /// Returns the source that the chunks belong to.
    pub(super) fn source(&self) -> SourceId {
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
    pub(super) fn write_sql(&self, path: &Path) -> anyhow::Result<()> {
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
        assert!(texts.iter().all(|text| text.len() <= TEXT_BYTES));
    }

    #[test]
    fn copy_gets_one_line_a_row() {
        assert_eq!(escape("a\tb\nc\\d"), "a\\tb\\nc\\\\d");
    }
}
