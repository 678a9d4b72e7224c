//! Page sizes and page tokens.
//!
//! A token says where the next page begins. It is signed with a key of the database,
//! together with the query it belongs to: one that was made up, or comes from another
//! listing, is refused and not misread. It is no secret: it holds a name or a uri that the
//! caller has just been given.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use waybill_domain::ContentHash;

use crate::validate::Violations;

const DEFAULT_SIZE: i64 = 50;
const MAX_SIZE: i64 = 1_000;

/// Changes when the layout of a token does.
const VERSION: u8 = 1;

/// Enough that guessing one takes longer than anybody has.
const SIGNATURE_BYTES: usize = 16;

/// Longer than any token: a uri of 2,048 bytes in base64, and what goes before it.
const MAX_TOKEN_BYTES: usize = 4_096;

/// Reads a page size: 0 is the default, a large one is cut.
pub(crate) fn size(requested: i32, violations: &mut Violations) -> i64 {
    if requested < 0 {
        violations.add("page_size", format!("is {requested}: must be 0 (the default, {DEFAULT_SIZE}) to {MAX_SIZE}"));
    }
    match i64::from(requested) {
        0 => DEFAULT_SIZE,
        size => size.clamp(1, MAX_SIZE),
    }
}

/// Makes and reads the tokens of one listing.
pub(crate) struct Tokens<'a> {
    key: &'a [u8],
    query: String,
}

impl<'a> Tokens<'a> {
    /// `query` is all that decides what is listed, by parts.
    pub(crate) fn new(key: &'a [u8], query: &[&str]) -> Self {
        // JSON keeps the parts apart, whatever is in them.
        Self { key, query: serde_json::json!(query).to_string() }
    }

    /// Makes the token of the page that begins after `after`.
    pub(crate) fn make(&self, after: &str) -> String {
        let mut token = vec![VERSION];
        token.extend_from_slice(&self.sign(after));
        token.extend_from_slice(after.as_bytes());
        URL_SAFE_NO_PAD.encode(token)
    }

    /// Reads a token; an empty one is the first page.
    pub(crate) fn read(&self, token: &str, violations: &mut Violations) -> Option<String> {
        if token.is_empty() {
            return None;
        }
        let after = self.open(token);
        if after.is_none() {
            violations.add(
                "page_token",
                "is not a token of this listing: pass next_page_token of the page before, or nothing",
            );
        }
        after
    }

    fn open(&self, token: &str) -> Option<String> {
        if token.len() > MAX_TOKEN_BYTES {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (version, rest) = bytes.split_first()?;
        let (signature, after) = rest.split_at_checked(SIGNATURE_BYTES)?;
        let after = std::str::from_utf8(after).ok()?;
        (*version == VERSION && signature == self.sign(after)).then(|| after.to_owned())
    }

    /// Signs by hashing twice with the key in front, so that no signature can be continued.
    fn sign(&self, after: &str) -> [u8; SIGNATURE_BYTES] {
        let inner = ContentHash::of([self.key, self.query.as_bytes(), b"\0", after.as_bytes()].concat());
        let outer = ContentHash::of([self.key, inner.as_bytes()].concat());
        let mut signature = [0; SIGNATURE_BYTES];
        signature.copy_from_slice(&outer.as_bytes()[..SIGNATURE_BYTES]);
        signature
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_by_the_listing_that_made_it_only() {
        let tokens = Tokens::new(b"key", &["sources", "p"]);
        let token = tokens.make("docs/ä");
        let read = |tokens: &Tokens<'_>, token: &str| {
            let mut violations = Violations::default();
            let after = tokens.read(token, &mut violations);
            (after, violations.is_empty())
        };
        assert_eq!(read(&tokens, &token), (Some("docs/ä".to_owned()), true));
        assert_eq!(read(&tokens, ""), (None, true));
        assert_eq!(read(&Tokens::new(b"other", &["sources", "p"]), &token), (None, false));
        assert_eq!(read(&Tokens::new(b"key", &["sources", "q"]), &token), (None, false));
        assert_eq!(read(&Tokens::new(b"key", &["sources\",\"p"]), &token), (None, false));
        for forged in ["x", "not base64!", &token[1..], &token[..token.len() - 2], &"A".repeat(5_000)] {
            assert_eq!(read(&tokens, forged), (None, false), "{forged}");
        }
    }
}
