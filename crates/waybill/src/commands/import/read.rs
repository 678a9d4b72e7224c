//! Files and JSON lines into documents.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};

use prost_types::Struct;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::sync::mpsc;
use waybill_api::ingestion::v1::MediaType;

use super::report::Refusal;
use super::walk::Found;
use crate::cli::Format;
use crate::values;

/// A NUL in the first 8 KiB: not a text. What git looks at, too.
const BINARY_PROBE_BYTES: usize = 8 * 1024;

/// JSON writes some characters in six, and a line has more than its text.
const LINE_OVERHEAD: u64 = 6;
const LINE_EXTRA_BYTES: u64 = 64 * 1024;

/// A document, ready to be sent.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Document {
    pub(super) uri: String,
    pub(super) title: String,
    pub(super) media_type: MediaType,
    pub(super) metadata: Option<Struct>,
    pub(super) body: Vec<u8>,
}

/// What reading gave.
#[derive(Debug)]
pub(super) enum Outcome {
    Document(Document),
    /// Not meant to be imported.
    Skipped(Refusal),
    /// Meant to be, but unreadable.
    Failed(Refusal),
}

impl Outcome {
    /// Returns the uri it is about; of what could not be read, the place it stands at.
    pub(super) fn uri(&self) -> &str {
        match self {
            Self::Document(document) => &document.uri,
            Self::Skipped(refusal) | Self::Failed(refusal) => &refusal.uri,
        }
    }
}

/// A result of reading, and how many bytes of the input it stands for.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) read: Outcome,
    pub(super) input_bytes: u64,
}

/// What all documents of an import share.
#[derive(Debug, Clone)]
pub(super) struct Common {
    pub(super) uri_prefix: String,
    pub(super) metadata: Map<String, Value>,
    pub(super) max_bytes: u64,
}

/// Nobody takes items any more: the import ended early.
struct Stopped;

/// Reads files one after the other. Blocks: run it on a thread of its own.
pub(super) fn files(files: Vec<Found>, common: &Common, items: &mpsc::Sender<Item>) {
    for found in files {
        let done = if found.format == Format::Jsonl {
            match File::open(&found.path) {
                Ok(file) => lines(BufReader::new(file), &found.name, common, items),
                Err(error) => send(items, failed(&found.name, &error), found.bytes),
            }
        } else {
            send(items, file(&found, common), found.bytes)
        };
        if done.is_err() {
            return;
        }
    }
}

/// Reads stdin. Blocks: run it on a thread of its own.
pub(super) fn stdin(format: Format, common: &Common, items: &mpsc::Sender<Item>) {
    let stdin = io::stdin().lock();
    // The receiver may be gone; there is nothing to be done about it.
    let _ = match format {
        Format::Auto | Format::Jsonl => lines(stdin, "stdin", common, items),
        Format::Text | Format::Markdown | Format::Html => {
            let mut body = Vec::new();
            let read = stdin.take(common.max_bytes + 1).read_to_end(&mut body);
            let bytes = body.len() as u64;
            let read = match read {
                Err(error) => failed("stdin", &error),
                Ok(_) if bytes > common.max_bytes => Outcome::Failed(refusal("stdin", "larger than --max-size")),
                Ok(_) => document("stdin", format, body, common),
            };
            send(items, read, bytes)
        }
    };
}

fn file(found: &Found, common: &Common) -> Outcome {
    match fs::read(&found.path) {
        Ok(body) => document(&found.name, found.format, body, common),
        Err(error) => failed(&found.name, &error),
    }
}

fn document(name: &str, format: Format, body: Vec<u8>, common: &Common) -> Outcome {
    let uri = format!("{}{name}", common.uri_prefix);
    if body.is_empty() {
        return Outcome::Skipped(refusal(&uri, "empty"));
    }
    if body[..body.len().min(BINARY_PROBE_BYTES)].contains(&0) {
        return Outcome::Skipped(refusal(&uri, "binary"));
    }
    if let Err(error) = std::str::from_utf8(&body) {
        let at = error.valid_up_to();
        return Outcome::Skipped(refusal(&uri, &format!("not UTF-8 (at byte {at})")));
    }
    Outcome::Document(Document {
        uri,
        // Taken from the document by the service.
        title: String::new(),
        media_type: media_type(format),
        metadata: metadata(common, Map::new()),
        body,
    })
}

const fn media_type(format: Format) -> MediaType {
    match format {
        Format::Auto | Format::Jsonl | Format::Text => MediaType::Text,
        Format::Markdown => MediaType::Markdown,
        Format::Html => MediaType::Html,
    }
}

fn metadata(common: &Common, own: Map<String, Value>) -> Option<Struct> {
    let mut metadata = common.metadata.clone();
    metadata.extend(own);
    (!metadata.is_empty()).then(|| values::to_struct(metadata))
}

/// One line of a JSONL file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    uri: String,
    text: String,
    #[serde(default)]
    title: String,
    #[serde(default)]
    media_type: LineMediaType,
    #[serde(default)]
    metadata: Map<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum LineMediaType {
    #[default]
    Text,
    Markdown,
    Html,
}

fn lines(mut input: impl BufRead, name: &str, common: &Common, items: &mpsc::Sender<Item>) -> Result<(), Stopped> {
    let limit = common.max_bytes.saturating_mul(LINE_OVERHEAD).saturating_add(LINE_EXTRA_BYTES);
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        let place = format!("{name}:{number}");
        let bytes = match input.by_ref().take(limit).read_until(b'\n', &mut line) {
            Ok(0) => break,
            Ok(bytes) => bytes as u64,
            Err(error) => return send(items, failed(&place, &error), 0),
        };
        let is_whole = line.ends_with(b"\n") || bytes < limit;
        let read = if !is_whole {
            // Where the next line begins can't be told without reading on for ever.
            let reason = format!("the line is longer than {limit} bytes: the rest was not read");
            send(items, Outcome::Failed(refusal(&place, &reason)), bytes)?;
            break;
        } else if line.trim_ascii().is_empty() {
            continue;
        } else {
            parse(&line, &place, common)
        };
        send(items, read, bytes)?;
    }
    Ok(())
}

fn parse(line: &[u8], place: &str, common: &Common) -> Outcome {
    let line: Line = match serde_json::from_slice(line) {
        Ok(line) => line,
        Err(error) => return Outcome::Failed(refusal(place, &format!("not a document: {error}"))),
    };
    let uri = format!("{}{}", common.uri_prefix, line.uri);
    if line.text.is_empty() {
        return Outcome::Skipped(refusal(&uri, "empty"));
    }
    if line.text.len() as u64 > common.max_bytes {
        return Outcome::Skipped(refusal(&uri, "larger than --max-size"));
    }
    Outcome::Document(Document {
        uri,
        title: line.title,
        media_type: match line.media_type {
            LineMediaType::Text => MediaType::Text,
            LineMediaType::Markdown => MediaType::Markdown,
            LineMediaType::Html => MediaType::Html,
        },
        metadata: metadata(common, line.metadata),
        body: line.text.into_bytes(),
    })
}

fn failed(name: &str, error: &io::Error) -> Outcome {
    Outcome::Failed(refusal(name, &format!("can't be read: {error}")))
}

fn refusal(uri: &str, reason: &str) -> Refusal {
    Refusal { uri: uri.to_owned(), reason: reason.to_owned() }
}

fn send(items: &mpsc::Sender<Item>, read: Outcome, input_bytes: u64) -> Result<(), Stopped> {
    items.blocking_send(Item { read, input_bytes }).map_err(|_| Stopped)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn common() -> Common {
        let Value::Object(metadata) = json!({"lang": "en", "team": "a"}) else { unreachable!() };
        Common { uri_prefix: "p/".to_owned(), metadata, max_bytes: 100 }
    }

    fn read(input: &str) -> Vec<Outcome> {
        let (sender, mut receiver) = mpsc::channel(100);
        assert!(lines(input.as_bytes(), "f.jsonl", &common(), &sender).is_ok());
        drop(sender);
        std::iter::from_fn(|| receiver.blocking_recv()).map(|item| item.read).collect()
    }

    #[test]
    fn a_line_is_a_document() {
        let input = r#"{"uri":"a","text":"x","title":"T","media_type":"html","metadata":{"team":"b"}}"#;
        let read = read(input);
        let [Outcome::Document(document)] = read.as_slice() else { panic!("{read:?}") };
        assert_eq!(document.uri, "p/a");
        assert_eq!(document.media_type, MediaType::Html);
        let metadata = values::from_struct(document.metadata.clone().unwrap());
        assert_eq!(Value::Object(metadata), json!({"lang": "en", "team": "b"}));
    }

    #[test]
    fn a_bad_line_is_named_and_the_next_one_read() {
        let read = read("{\"uri\":\"a\"}\n\n{\"uri\":\"b\",\"text\":\"x\"}\n");
        let [Outcome::Failed(bad), Outcome::Document(good)] = read.as_slice() else { panic!("{read:?}") };
        assert_eq!(bad.uri, "f.jsonl:1");
        assert!(bad.reason.contains("missing field `text`"), "{}", bad.reason);
        assert_eq!(good.uri, "p/b");
    }

    #[test]
    fn binary_and_foreign_encodings_are_left_out() {
        let reason = |body: &[u8]| match document("x", Format::Text, body.to_vec(), &common()) {
            Outcome::Skipped(refusal) => refusal.reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(reason(b"a\0b"), "binary");
        assert_eq!(reason(b"caf\xe9"), "not UTF-8 (at byte 3)");
        assert_eq!(reason(b""), "empty");
    }
}
