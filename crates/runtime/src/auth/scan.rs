//! Finds texts in Protobuf messages as they pass, without holding the messages.

use std::sync::Arc;

/// The longest text that is looked at: names of projects have 64 bytes at most.
const MAX_TEXT_BYTES: u64 = 256;

/// Why a message can't be let through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refused {
    /// It is no Protobuf message, or one that decoders may read in several ways.
    Malformed,
    /// The text is not among those that are allowed.
    Text(String),
}

/// Follows the messages of one request, and has every text at `path` checked: a decoder lets the
/// last of several win, and merges messages that come twice, so all of them have to be right.
pub(super) struct Scan {
    path: Arc<[u32]>,
    state: State,
    /// The messages that enclose this place, the innermost last: how many of their bytes are left.
    enclosing: Vec<u64>,
}

enum State {
    /// Of a field's number and type.
    Key { value: u64, shift: u32 },
    /// Of a value that doesn't matter.
    Varint { bytes: u32 },
    /// Of what follows in a field.
    Length { field: u32, value: u64, shift: u32 },
    /// Over bytes that don't matter.
    Skip { left: u64 },
    /// In a text that matters.
    Text { left: u64, text: Vec<u8> },
}

const KEY: State = State::Key { value: 0, shift: 0 };

impl Scan {
    pub(super) fn new(path: Arc<[u32]>) -> Self {
        Self { path, state: KEY, enclosing: Vec::new() }
    }

    /// Begins a message of `bytes`.
    pub(super) fn begin(&mut self, bytes: u64) {
        self.enclosing.clear();
        self.enclosing.push(bytes);
        self.state = KEY;
    }

    /// Says whether the message has ended where it should.
    pub(super) fn end(&self) -> Result<(), Refused> {
        let between = matches!(self.state, State::Key { shift: 0, .. });
        if between && self.enclosing.iter().all(|left| *left == 0) { Ok(()) } else { Err(Refused::Malformed) }
    }

    /// Takes the next bytes of the message, and has `allowed` say whether a text may pass.
    pub(super) fn feed(&mut self, mut bytes: &[u8], allowed: &dyn Fn(&str) -> bool) -> Result<(), Refused> {
        while let Some(&byte) = bytes.first() {
            let taken = match &mut self.state {
                State::Skip { left } | State::Text { left, .. } => {
                    usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len())
                }
                _ => 1,
            };
            let (now, rest) = bytes.split_at(taken);
            bytes = rest;
            self.consume(taken as u64)?;
            self.step(byte, now, allowed)?;
            self.leave_messages()?;
        }
        Ok(())
    }

    fn step(&mut self, byte: u8, now: &[u8], allowed: &dyn Fn(&str) -> bool) -> Result<(), Refused> {
        match &mut self.state {
            State::Key { value, shift } => {
                if push(value, shift, byte)? {
                    let key = *value;
                    self.state = self.after_key(key)?;
                }
            }
            State::Varint { bytes } => {
                *bytes += 1;
                if byte < 0x80 {
                    self.state = KEY;
                } else if *bytes >= 10 {
                    return Err(Refused::Malformed);
                }
            }
            State::Length { field, value, shift } => {
                if push(value, shift, byte)? {
                    let (field, length) = (*field, *value);
                    self.state = self.after_length(field, length, allowed)?;
                }
            }
            State::Skip { left } => {
                *left -= now.len() as u64;
                if *left == 0 {
                    self.state = KEY;
                }
            }
            State::Text { left, text } => {
                *left -= now.len() as u64;
                text.extend_from_slice(now);
                if *left == 0 {
                    let text = std::mem::take(text);
                    check(text, allowed)?;
                    self.state = KEY;
                }
            }
        }
        Ok(())
    }

    fn after_key(&self, key: u64) -> Result<State, Refused> {
        let field = u32::try_from(key >> 3).map_err(|_| Refused::Malformed)?;
        match key & 7 {
            _ if field == 0 => Err(Refused::Malformed),
            // A name can't be a number: what a decoder makes of that is not for us to guess.
            0 | 1 | 5 if self.is_next(field) => Err(Refused::Malformed),
            0 => Ok(State::Varint { bytes: 0 }),
            1 => Ok(State::Skip { left: 8 }),
            2 => Ok(State::Length { field, value: 0, shift: 0 }),
            5 => Ok(State::Skip { left: 4 }),
            // Groups are in none of our protos, and could hide what they enclose.
            _ => Err(Refused::Malformed),
        }
    }

    fn after_length(&mut self, field: u32, length: u64, allowed: &dyn Fn(&str) -> bool) -> Result<State, Refused> {
        if self.enclosing.last().is_none_or(|left| length > *left) {
            return Err(Refused::Malformed);
        }
        if !self.is_next(field) {
            return Ok(if length == 0 { KEY } else { State::Skip { left: length } });
        }
        if self.enclosing.len() < self.path.len() {
            self.enclosing.push(length);
            return Ok(KEY);
        }
        match length {
            0 => check(Vec::new(), allowed).map(|()| KEY),
            1..=MAX_TEXT_BYTES => Ok(State::Text { left: length, text: Vec::new() }),
            _ => Err(Refused::Text("a very long name".to_owned())),
        }
    }

    /// Says whether `field` of the message we are in is the next step of the path.
    fn is_next(&self, field: u32) -> bool {
        self.enclosing.len().checked_sub(1).and_then(|depth| self.path.get(depth)) == Some(&field)
    }

    fn consume(&mut self, bytes: u64) -> Result<(), Refused> {
        for left in &mut self.enclosing {
            *left = left.checked_sub(bytes).ok_or(Refused::Malformed)?;
        }
        Ok(())
    }

    fn leave_messages(&mut self) -> Result<(), Refused> {
        while self.enclosing.len() > 1 && self.enclosing.last() == Some(&0) {
            if !matches!(self.state, State::Key { shift: 0, .. }) {
                return Err(Refused::Malformed);
            }
            self.enclosing.pop();
        }
        Ok(())
    }
}

fn check(text: Vec<u8>, allowed: &dyn Fn(&str) -> bool) -> Result<(), Refused> {
    let text = String::from_utf8(text).map_err(|_| Refused::Malformed)?;
    // Empty is the same as not there, which the handler refuses.
    if text.is_empty() || allowed(&text) { Ok(()) } else { Err(Refused::Text(text)) }
}

/// Adds a byte to a varint. Returns whether it was the last.
fn push(value: &mut u64, shift: &mut u32, byte: u8) -> Result<bool, Refused> {
    // Ten bytes make 64 bits, of the tenth one bit counts.
    if *shift > 63 || (*shift == 63 && byte > 1) {
        return Err(Refused::Malformed);
    }
    *value |= u64::from(byte & 0x7f) << *shift;
    *shift += 7;
    Ok(byte < 0x80)
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[derive(Clone, PartialEq, prost::Message)]
    struct Inner {
        #[prost(string, tag = "1")]
        project: String,
        #[prost(bytes = "vec", tag = "6")]
        body: Vec<u8>,
        #[prost(int64, tag = "7")]
        number: i64,
        #[prost(double, tag = "8")]
        double: f64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct Outer {
        #[prost(message, optional, tag = "1")]
        header: Option<Inner>,
        #[prost(bytes = "vec", tag = "2")]
        data: Vec<u8>,
    }

    fn inner(project: &str) -> Inner {
        Inner { project: project.to_owned(), body: vec![10; 300], number: -1, double: 0.5 }
    }

    /// Feeds a message in parts of `step` bytes.
    fn scan(path: &[u32], message: &[u8], step: usize) -> Result<(), Refused> {
        let mut scan = Scan::new(path.into());
        scan.begin(message.len() as u64);
        for part in message.chunks(step) {
            scan.feed(part, &|text| text == "mine")?;
        }
        scan.end()
    }

    fn refused(text: &str) -> Result<(), Refused> {
        Err(Refused::Text(text.to_owned()))
    }

    #[test]
    fn a_name_is_found_wherever_the_parts_are_cut() {
        let (mine, other) = (inner("mine").encode_to_vec(), inner("other").encode_to_vec());
        let outer = |project| Outer { header: Some(inner(project)), data: vec![7; 50] }.encode_to_vec();
        for step in [1, 2, 3, 7, 64, 1_000] {
            assert_eq!(scan(&[1], &mine, step), Ok(()), "{step}");
            assert_eq!(scan(&[1], &other, step), refused("other"), "{step}");
            assert_eq!(scan(&[1, 1], &outer("mine"), step), Ok(()), "{step}");
            assert_eq!(scan(&[1, 1], &outer("other"), step), refused("other"), "{step}");
        }
    }

    #[test]
    fn a_second_name_does_not_hide_behind_the_first() {
        let twice = [inner("mine").encode_to_vec(), inner("other").encode_to_vec()].concat();
        assert_eq!(Inner::decode(&twice[..]).unwrap().project, "other");
        assert_eq!(scan(&[1], &twice, 5), refused("other"));
        let headers = ["mine", "other"].map(|project| Outer { header: Some(inner(project)), data: vec![] });
        let twice = headers.map(|header| header.encode_to_vec()).concat();
        assert_eq!(scan(&[1, 1], &twice, 5), refused("other"));
    }

    #[test]
    fn what_is_not_there_is_not_refused() {
        assert_eq!(scan(&[1], &[], 1), Ok(()));
        assert_eq!(scan(&[1, 1], &Outer { header: None, data: vec![1; 9] }.encode_to_vec(), 4), Ok(()));
        // The body holds what would be a foreign name, were it a message.
        let body = inner("other").encode_to_vec();
        assert_eq!(scan(&[1], &Inner { body, ..inner("mine") }.encode_to_vec(), 4), Ok(()));
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        let malformed = Err(Refused::Malformed);
        // A group, a name as a number, a field 0, a length beyond the end, a message cut short.
        for bytes in [&[0x0b, 0x0c][..], &[0x08, 1], &[0x02, 0], &[0x0a, 9, b'x'], &[0x0a], &[0x80; 11]] {
            assert_eq!(scan(&[1], bytes, 1), malformed, "{bytes:?}");
        }
        // The enclosed message says that its text is longer than itself.
        assert_eq!(scan(&[1, 1], &[0x0a, 2, 0x0a, 5, b'm', b'i', b'n', b'e', b's'], 1), malformed);
    }

    proptest::proptest! {
        /// Whatever prost takes for another's project is refused.
        #[test]
        fn no_bytes_get_a_foreign_name_past(bytes in proptest::collection::vec(0_u8..48, 0..24), step in 1_usize..8) {
            let scanned = scan(&[1], &bytes, step);
            if let Ok(message) = Inner::decode(&bytes[..]) && scanned.is_ok() {
                proptest::prop_assert!(message.project.is_empty() || message.project == "mine");
            }
        }
    }
}
