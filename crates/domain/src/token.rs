use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{ProjectId, SourceId};

/// The layout below. Another one gets another number.
const LAYOUT: u8 = 1;

/// Layout, flags, project, source, version.
const BODY_BYTES: usize = 1 + 1 + 16 + 16 + 8;

/// Enough to tell a cut or mistyped token; a token grants nothing, so nobody gains by making one.
const CHECKSUM_BYTES: usize = 4;

const TOKEN_BYTES: usize = BODY_BYTES + CHECKSUM_BYTES;

const DELETED: u8 = 1;

/// Names a write: which source it changed, and the source's version after it.
///
/// As text it is base64url of 46 bytes: layout, flags, project, source, version (big-endian)
/// and the first four bytes of their SHA-256. To callers it is opaque.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FreshnessToken {
    /// The project that the source is in.
    pub project: ProjectId,
    /// The source.
    pub source: SourceId,
    /// The source's version after the write; of a deletion, the last it had.
    pub version: i64,
    /// Whether the write deleted the source.
    pub deleted: bool,
}

/// Why a text is no freshness token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    /// No token at all, or not all of one.
    #[error("is no freshness token: send one exactly as a write returned it")]
    Malformed,
    /// A token of another layout.
    #[error(
        "is a freshness token of layout {0}, this program reads layout {LAYOUT}: use a server as new as the one that made it"
    )]
    Layout(u8),
}

impl FreshnessToken {
    fn body(&self) -> [u8; BODY_BYTES] {
        let mut body = [0; BODY_BYTES];
        body[0] = LAYOUT;
        body[1] = if self.deleted { DELETED } else { 0 };
        body[2..18].copy_from_slice(self.project.as_uuid().as_bytes());
        body[18..34].copy_from_slice(self.source.as_uuid().as_bytes());
        body[34..42].copy_from_slice(&self.version.to_be_bytes());
        body
    }
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let digest = Sha256::digest(body);
    let mut sum = [0; CHECKSUM_BYTES];
    sum.copy_from_slice(&digest[..CHECKSUM_BYTES]);
    sum
}

impl fmt::Display for FreshnessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = self.body();
        let mut bytes = [0; TOKEN_BYTES];
        bytes[..BODY_BYTES].copy_from_slice(&body);
        bytes[BODY_BYTES..].copy_from_slice(&checksum(&body));
        f.write_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for FreshnessToken {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| InvalidToken::Malformed)?;
        let (body, sum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(InvalidToken::Malformed)?;
        // The checksum first: only a sound token of another layout is worth that message.
        if *sum != checksum(body) {
            return Err(InvalidToken::Malformed);
        }
        match body.first() {
            Some(&LAYOUT) => {}
            Some(&layout) => return Err(InvalidToken::Layout(layout)),
            None => return Err(InvalidToken::Malformed),
        }
        let body: &[u8; BODY_BYTES] = body.try_into().map_err(|_| InvalidToken::Malformed)?;
        let id = |from: usize| Uuid::from_slice(&body[from..from + 16]).map_err(|_| InvalidToken::Malformed);
        let mut version = [0; 8];
        version.copy_from_slice(&body[34..42]);
        let token = Self {
            project: ProjectId::from_uuid(id(2)?),
            source: SourceId::from_uuid(id(18)?),
            version: i64::from_be_bytes(version),
            deleted: body[1] == DELETED,
        };
        // Flags of a later day are not read over.
        if token.body() == *body { Ok(token) } else { Err(InvalidToken::Malformed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> FreshnessToken {
        let project = ProjectId::derive(&"docs".parse().unwrap());
        FreshnessToken { project, source: SourceId::derive(project, "a"), version: 7, deleted: false }
    }

    #[test]
    fn a_token_is_read_as_it_was_written() {
        for token in [
            token(),
            FreshnessToken { deleted: true, ..token() },
            FreshnessToken { version: 0, ..token() },
            FreshnessToken { version: i64::MAX, ..token() },
        ] {
            let text = token.to_string();
            assert_eq!(text.len(), 62, "{text}");
            assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{text}");
            assert_eq!(text.parse(), Ok(token));
        }
    }

    #[test]
    fn nothing_else_is_a_token() {
        let good = token().to_string();
        for bad in [
            "",
            "x",
            "AAAA",
            "not base64!",
            &good[1..],
            &good[..60],
            &format!("{good}A"),
            &format!("{good}=="),
            &format!(" {good}"),
        ] {
            assert_eq!(bad.parse::<FreshnessToken>(), Err(InvalidToken::Malformed), "{bad:?}");
        }
        for place in 0..good.len() {
            let mut changed = good.clone().into_bytes();
            changed[place] = if changed[place] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert!(changed.parse::<FreshnessToken>().is_err(), "{changed} at {place}");
        }
    }

    #[test]
    fn another_layout_and_unknown_flags_are_refused() {
        let with = |place: usize, value: u8| {
            let mut body = token().body();
            body[place] = value;
            URL_SAFE_NO_PAD.encode([body.as_slice(), checksum(&body).as_slice()].concat())
        };
        assert_eq!(with(0, 2).parse::<FreshnessToken>(), Err(InvalidToken::Layout(2)));
        assert_eq!(with(1, 4).parse::<FreshnessToken>(), Err(InvalidToken::Malformed));
        let later = [[2].as_slice(), &[0; 60]].concat();
        let later = URL_SAFE_NO_PAD.encode([later.as_slice(), checksum(&later).as_slice()].concat());
        assert_eq!(later.parse::<FreshnessToken>(), Err(InvalidToken::Layout(2)), "of another length, too");
    }
}
