use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

/// Begins every key, so that scanners for leaked secrets can know one.
const SCHEME: &str = "wbk_";
/// Shown in lists and logs. A billion of them, and Postgres refuses the second of two.
const PREFIX_CHARS: usize = 8;
/// 260 bits: nobody guesses one, so a plain hash is enough to store it by.
const SECRET_CHARS: usize = 52;
/// Enough to tell a mistyped key from a wrong one without asking anybody.
const CHECK_CHARS: usize = 4;
const KEY_CHARS: usize = SCHEME.len() + PREFIX_CHARS + 1 + SECRET_CHARS + CHECK_CHARS;

/// Of five bits each, without those that are taken for each other.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// An API key as its holder has it: `wbk_`, 8 characters that are shown, `_`, 52 that are secret
/// and 4 to check them. Shown as its prefix only.
#[derive(Clone)]
pub struct ApiKey(SecretString);

/// Why a text is no API key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is no API key: one begins with wbk_ and has {KEY_CHARS} characters, pass it whole, as it was made")]
pub struct NoKey;

impl ApiKey {
    /// How many random bytes make a key.
    pub const RANDOM_BYTES: usize = PREFIX_CHARS + SECRET_CHARS;

    /// Makes a key of random bytes, which have to come from a source fit for secrets.
    #[must_use]
    pub fn from_random(random: &[u8; Self::RANDOM_BYTES]) -> Self {
        let (prefix, secret) = random.split_at(PREFIX_CHARS);
        let body = format!("{SCHEME}{}_{}", encode(prefix), encode(secret));
        let check = check(&body);
        Self(SecretString::from(body + &check))
    }

    /// Reads a key, and tells one that was cut or mistyped.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse(text: &str) -> Result<Self, NoKey> {
        if text.len() != KEY_CHARS || !text.is_ascii() || !text.starts_with(SCHEME) {
            return Err(NoKey);
        }
        let (body, sum) = text.split_at(KEY_CHARS - CHECK_CHARS);
        let is_plain = |part: &str| part.bytes().all(|byte| ALPHABET.contains(&byte));
        let (prefix, secret) = body[SCHEME.len()..].split_at(PREFIX_CHARS);
        let sound = is_plain(prefix) && secret.strip_prefix('_').is_some_and(is_plain) && check(body) == sum;
        if sound { Ok(Self(SecretString::from(text))) } else { Err(NoKey) }
    }

    /// Returns the part that may be shown, and that names the key.
    #[must_use]
    pub fn prefix(&self) -> &str {
        self.0.expose_secret().get(SCHEME.len()..SCHEME.len() + PREFIX_CHARS).unwrap_or_default()
    }

    /// Returns what a store keeps in its place: SHA-256 of the whole key.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        hash(self.0.expose_secret())
    }

    /// Returns the key itself: for its holder, once, never for a log.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey({})", self.prefix())
    }
}

/// Returns SHA-256 of a text.
pub(super) fn hash(text: &str) -> [u8; 32] {
    Sha256::digest(text).into()
}

fn check(body: &str) -> String {
    encode(&hash(body)[..CHECK_CHARS])
}

fn encode(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte & 31)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ApiKey {
        ApiKey::from_random(&std::array::from_fn(|place| u8::try_from(place * 7 % 256).unwrap()))
    }

    #[test]
    fn a_key_is_read_as_it_was_made() {
        let key = key();
        let read = ApiKey::parse(key.expose()).unwrap();
        assert_eq!((read.prefix(), read.hash()), (key.prefix(), key.hash()));
        assert_eq!(key.expose().len(), KEY_CHARS);
        assert_eq!(key.prefix().len(), PREFIX_CHARS);
    }

    #[test]
    fn one_wrong_character_is_noticed() {
        let text = key().expose().to_owned();
        for at in 0..text.len() {
            let mut wrong = text.clone().into_bytes();
            wrong[at] = if wrong[at] == b'a' { b'b' } else { b'a' };
            let wrong = String::from_utf8(wrong).unwrap();
            assert_eq!(ApiKey::parse(&wrong).err(), Some(NoKey), "{at}");
        }
        for none in ["", "wbk_", &text[1..], &format!("{text}a"), &"ä".repeat(KEY_CHARS)] {
            assert_eq!(ApiKey::parse(none).err(), Some(NoKey), "{none}");
        }
    }

    #[test]
    fn it_shows_its_prefix_only() {
        let key = key();
        assert_eq!(format!("{key:?}"), format!("ApiKey({})", key.prefix()));
    }
}
