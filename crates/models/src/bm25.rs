use bm25::{DefaultTokenizer, Embedder, EmbedderBuilder, Language, TokenEmbedder, Tokenizer};

/// How fast a term's weight saturates as it repeats. The usual value.
const K1: f32 = 1.2;

/// How much a long document is held against its terms, 0 to 1. The usual value.
const B: f32 = 0.75;

/// The terms of an average document. Fixed, not measured: a weight that depended on the
/// corpus would be stale as soon as the corpus grew. A chunk of ours has about 200 words,
/// of which stop words are gone.
const AVERAGE_TERMS: f32 = 128.0;

/// A vector in which nearly all numbers are zero.
///
/// `indices` are unique and ascending; `values` has as many entries.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SparseVector {
    /// The places that are not zero: hashes of terms.
    pub indices: Vec<u32>,
    /// What stands there.
    pub values: Vec<f32>,
}

impl SparseVector {
    fn from_pairs(mut pairs: Vec<(u32, f32)>) -> Self {
        pairs.sort_unstable_by_key(|(index, _)| *index);
        // Entries of one index are equal: the weight is of the index, not of the place in the text.
        pairs.dedup_by_key(|(index, _)| *index);
        let (indices, values) = pairs.into_iter().unzip();
        Self { indices, values }
    }

    /// Says whether there is nothing in it: the text had stop words and signs only.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }
}

/// Makes the sparse vectors of lexical search: English, stemmed, without stop words.
///
/// The dot product of a query's and a document's vector is BM25 without the inverse
/// document frequency, which Qdrant multiplies in (`modifier: idf`). The same text makes
/// the same vector in every process and on every platform.
pub struct Bm25 {
    embedder: Embedder<TermHash, DefaultTokenizer>,
    tokenizer: DefaultTokenizer,
}

impl Bm25 {
    /// Loads stop words and stemmer. Takes some milliseconds: make one and share it.
    #[must_use]
    pub fn new() -> Self {
        let embedder = EmbedderBuilder::<TermHash, DefaultTokenizer>::with_avgdl(AVERAGE_TERMS)
            .tokenizer(DefaultTokenizer::new(Language::English))
            .k1(K1)
            .b(B)
            .build();
        Self { embedder, tokenizer: DefaultTokenizer::new(Language::English) }
    }

    /// Weighs each term of a document by how often it is there and how long the document is.
    #[must_use]
    pub fn document(&self, text: &str) -> SparseVector {
        let embedding = self.embedder.embed(&spaced(text));
        SparseVector::from_pairs(embedding.iter().map(|term| (term.index.0, term.value)).collect())
    }

    /// Gives each distinct term of a query the weight 1.
    #[must_use]
    pub fn query(&self, text: &str) -> SparseVector {
        let terms = self.tokenizer.tokenize(&spaced(text));
        SparseVector::from_pairs(terms.iter().map(|term| (TermHash::embed(term).0, 1.0)).collect())
    }
}

impl Default for Bm25 {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Bm25 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bm25").finish_non_exhaustive()
    }
}

/// Puts a space in place of each line break, tab or other control character. The tokenizer turns
/// text into ASCII and drops these behind the first letter that isn't: the last word of a line
/// would become one with the first of the next.
fn spaced(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// A term's place in the vector: FNV-1a of its UTF-8 bytes.
///
/// The library's own hash reads words in the machine's byte order, and what is stored
/// in Qdrant must mean the same to every process that reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct TermHash(u32);

impl TokenEmbedder for TermHash {
    type EmbeddingSpace = Self;

    fn embed(term: &str) -> Self {
        const OFFSET_BASIS: u32 = 0x811c_9dc5;
        const PRIME: u32 = 0x0100_0193;
        Self(term.bytes().fold(OFFSET_BASIS, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(PRIME)))
    }
}
