//! Documents made from a seed: the same on every machine and in every run.

use std::fmt::Write as _;

/// The form of a document's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Paragraphs, parted by blank lines.
    Text,
    /// Headings, paragraphs, lists and code.
    Markdown,
    /// The same as a page with navigation and a script around it.
    Html,
}

/// A document of the corpus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Unique within the corpus.
    pub uri: String,
    /// Its title.
    pub title: String,
    /// What `body` is.
    pub form: Form,
    /// Its text, in UTF-8 with some of it beyond ASCII.
    pub body: String,
    /// A word that is in this document and in no other of the corpus.
    pub needle: String,
}

/// Makes `count` documents, their forms in turn; every seed makes other ones.
///
/// They have 2 to 5 sections of 1 to 3 paragraphs, 1 to 6 kB in all.
pub fn documents(seed: u64, count: usize) -> impl Iterator<Item = Document> {
    (0..count).map(move |index| document(seed, index))
}

/// Makes the document at `index` of the corpus of `seed`.
pub fn document(seed: u64, index: usize) -> Document {
    // Each has its own stream, so that one can be made without those before it.
    let mut random = Random::new(seed ^ (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let form = [Form::Text, Form::Markdown, Form::Html][index % 3];
    let needle = format!("zq{seed:x}n{index:x}");
    let title = capitalised(&random.words(3));
    let sections = (0..random.between(2, 5))
        .map(|_| Section {
            heading: capitalised(&random.words(2)),
            paragraphs: (0..random.between(1, 3)).map(|_| random.paragraph()).collect(),
        })
        .collect::<Vec<_>>();
    let body = match form {
        Form::Text => text(&title, &sections, &needle),
        Form::Markdown => markdown(&title, &sections, &needle),
        Form::Html => html(&title, &sections, &needle),
    };
    let extension = match form {
        Form::Text => "txt",
        Form::Markdown => "md",
        Form::Html => "html",
    };
    Document { uri: format!("corpus/{seed:x}/{index:06}.{extension}"), title, form, body, needle }
}

struct Section {
    heading: String,
    paragraphs: Vec<String>,
}

fn text(title: &str, sections: &[Section], needle: &str) -> String {
    let mut out = format!("{title}\n\nThe mark of this page is {needle}.\n");
    for section in sections {
        for paragraph in &section.paragraphs {
            out += &format!("\n{paragraph}\n");
        }
    }
    out
}

fn markdown(title: &str, sections: &[Section], needle: &str) -> String {
    let mut out = format!("# {title}\n\nThe mark of this page is `{needle}`.\n");
    for section in sections {
        out += &format!("\n## {}\n", section.heading);
        for paragraph in &section.paragraphs {
            out += &format!("\n{paragraph}\n");
        }
        out += "\n- first, as a list\n- second, with *emphasis*\n";
    }
    out
}

fn html(title: &str, sections: &[Section], needle: &str) -> String {
    let mut out = format!(
        "<!DOCTYPE html>\n<html><head><meta charset=\"utf-8\"><title>{title}</title>\
         <script>console.log('not text')</script></head>\n<body><nav><a href=\"/\">Home</a></nav>\
         <main><h1>{title}</h1><p>The mark of this page is <code>{needle}</code>.</p>\n"
    );
    for section in sections {
        out += &format!("<h2>{}</h2>\n", section.heading);
        for paragraph in &section.paragraphs {
            out += &format!("<p>{}</p>\n", paragraph.replace('&', "&amp;"));
        }
    }
    out + "</main></body></html>\n"
}

/// SplitMix64: small, and the same for ever, which a library's generator need not be.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn between(&mut self, low: usize, high: usize) -> usize {
        let span = (high - low + 1) as u64;
        low + usize::try_from(self.next() % span).unwrap_or(0)
    }

    fn words(&mut self, count: usize) -> String {
        let words = (0..count).map(|_| WORDS[self.between(0, WORDS.len() - 1)]);
        words.collect::<Vec<_>>().join(" ")
    }

    fn paragraph(&mut self) -> String {
        let mut out = String::new();
        for _ in 0..self.between(2, 6) {
            let length = self.between(6, 18);
            let sentence = capitalised(&self.words(length));
            // Writing to a String can't fail.
            let _ = write!(out, "{sentence}. ");
        }
        out.trim_end().to_owned()
    }
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// Everyday words, some of them beyond ASCII and one that HTML must escape.
const WORDS: &[&str] = &[
    "harbour",
    "crane",
    "ledger",
    "cargo",
    "ballast",
    "manifest",
    "rope",
    "tide",
    "signal",
    "north",
    "winter",
    "lantern",
    "bridge",
    "market",
    "pilot",
    "anchor",
    "barrel",
    "copper",
    "grain",
    "salt",
    "paper",
    "stamp",
    "receipt",
    "wagon",
    "railway",
    "depot",
    "driver",
    "engine",
    "steam",
    "coal",
    "weighs",
    "carries",
    "delivers",
    "waits for",
    "signs",
    "returns",
    "counts",
    "loads",
    "seals",
    "opens",
    "quickly",
    "slowly",
    "twice",
    "never",
    "always",
    "before",
    "after",
    "under",
    "beside",
    "the",
    "a",
    "every",
    "no",
    "many",
    "several",
    "heavy",
    "light",
    "wet",
    "dry",
    "broken",
    "new",
    "café",
    "Übersee",
    "naïve",
    "façade",
    "Ærø",
    "東京",
    "крановщик",
    "fish & chips",
    "señal",
];
