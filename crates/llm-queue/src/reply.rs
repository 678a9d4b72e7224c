//! Reading stream entries. The client's own types fail as a whole if one entry is not text,
//! and a stream that anybody can write to must not stop for that.

use deadpool_redis::redis::Value;
use uuid::Uuid;

use crate::{Message, QueueError, Result};

/// An entry of a stream, whatever is in it.
pub(crate) struct Entry {
    pub(crate) id: String,
    /// `None` if it is no message.
    pub(crate) message: Option<Message>,
    pub(crate) deliveries: u64,
}

/// What [`reclaim`] reads: where to go on, and the entries.
pub(crate) struct Page {
    pub(crate) cursor: String,
    pub(crate) entries: Vec<Entry>,
}

const BAD: QueueError = QueueError::BadAnswer("not stream entries");

/// Reads the answer to XREADGROUP about one stream.
pub(crate) fn read_group(answer: Value) -> Result<Vec<Entry>> {
    let entries = match answer {
        Value::Nil => return Ok(Vec::new()),
        // By protocol 2 a list of pairs, by protocol 3 a map.
        Value::Array(mut streams) => match streams.pop() {
            Some(Value::Array(mut pair)) => pair.pop(),
            _ => None,
        },
        Value::Map(mut streams) => streams.pop().map(|(_, entries)| entries),
        _ => None,
    };
    list(entries.ok_or(BAD)?)?.into_iter().map(entry).collect()
}

/// Reads the answer of the script `reclaim`.
pub(crate) fn reclaim(answer: Value) -> Result<Page> {
    let Ok([cursor, entries]) = <[Value; 2]>::try_from(list(answer)?) else { return Err(BAD) };
    let entries = list(entries)?.into_iter().map(entry).collect::<Result<_>>()?;
    Ok(Page { cursor: text(cursor).ok_or(BAD)?, entries })
}

/// What [`hold`] reads.
pub(crate) enum Held {
    Gone,
    Free,
    Taken(String),
    Ours(Entry),
}

/// Reads the answer of the script `hold`.
pub(crate) fn hold(answer: Value) -> Result<Held> {
    let mut parts = list(answer)?.into_iter();
    let who = parts.next().and_then(text);
    match (who.as_deref(), parts.next()) {
        (Some("gone"), _) => Ok(Held::Gone),
        (Some("free"), _) => Ok(Held::Free),
        // A name need not be text; whoever it is, it is not the worker that asks.
        (Some("taken"), Some(name)) => Ok(Held::Taken(text(name).unwrap_or_default())),
        (Some("ours"), Some(found)) => Ok(Held::Ours(entry(found)?)),
        _ => Err(BAD),
    }
}

/// Reads an id, a list of fields and values, and if it is there the number of deliveries.
fn entry(value: Value) -> Result<Entry> {
    let mut parts = list(value)?.into_iter();
    let (Some(id), Some(fields)) = (parts.next().and_then(text), parts.next()) else { return Err(BAD) };
    let deliveries = match parts.next() {
        Some(Value::Int(count)) => u64::try_from(count).unwrap_or(1),
        _ => 1,
    };
    Ok(Entry { id, message: list(fields).ok().and_then(message), deliveries })
}

fn message(fields: Vec<Value>) -> Option<Message> {
    let (mut request_id, mut project_id, mut job_id, mut headers) = (None, None, None, None);
    let mut fields = fields.into_iter();
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        let Value::BulkString(name) = name else { continue };
        let slot = match name.as_slice() {
            b"request_id" => &mut request_id,
            b"project_id" => &mut project_id,
            b"job_id" => &mut job_id,
            b"headers" => &mut headers,
            _ => continue,
        };
        *slot = Some(text(value)?).filter(|value| !value.is_empty());
    }
    let uuid = |text: String| Uuid::try_parse(&text).ok();
    Some(Message {
        request_id: uuid(request_id?)?,
        project_id: uuid(project_id?)?,
        job_id: match job_id {
            Some(text) => Some(uuid(text)?),
            None => None,
        },
        headers,
    })
}

fn list(value: Value) -> Result<Vec<Value>> {
    match value {
        Value::Array(values) => Ok(values),
        _ => Err(BAD),
    }
}

fn text(value: Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    fn fields(pairs: &[(&str, &str)]) -> Vec<Value> {
        pairs.iter().flat_map(|(name, value)| [bulk(name), bulk(value)]).collect()
    }

    const ID: &str = "018f4d3e-0000-7000-8000-000000000001";

    #[test]
    fn empty_fields_count_as_absent_and_others_are_ignored() {
        let fields = fields(&[("request_id", ID), ("project_id", ID), ("job_id", ""), ("headers", ""), ("more", "x")]);
        let id = Uuid::try_parse(ID).unwrap();
        assert_eq!(message(fields), Some(Message { request_id: id, project_id: id, job_id: None, headers: None }));
    }

    #[test]
    fn what_is_no_message_is_none() {
        assert_eq!(message(fields(&[("request_id", ID)])), None);
        assert_eq!(message(fields(&[("request_id", "x"), ("project_id", ID)])), None);
        assert_eq!(message(fields(&[("request_id", ID), ("project_id", ID), ("job_id", "x")])), None);
        let mut binary = fields(&[("request_id", ID), ("project_id", ID)]);
        binary.extend([bulk("headers"), Value::BulkString(vec![0xff])]);
        assert_eq!(message(binary), None);
    }

    #[test]
    fn both_protocols_are_read() {
        let entries = || Value::Array(vec![Value::Array(vec![bulk("1-1"), Value::Array(Vec::new())])]);
        let two = Value::Array(vec![Value::Array(vec![bulk("key"), entries()])]);
        let three = Value::Map(vec![(bulk("key"), entries())]);
        for answer in [two, three] {
            let read = read_group(answer).unwrap();
            assert_eq!(read.len(), 1);
            assert_eq!(read[0].id, "1-1");
            assert_eq!(read[0].deliveries, 1);
            assert!(read[0].message.is_none());
        }
        assert!(read_group(Value::Nil).unwrap().is_empty());
        assert!(read_group(Value::Okay).is_err());
    }
}
