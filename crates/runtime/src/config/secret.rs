use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const HIDDEN: &str = "[hidden]";

/// A password, key or token in a configuration.
///
/// Read from a text, from the file in `{ file = "path" }` or, as `config::load` sees to, from
/// the file named by the same key with `_file` behind it. Written as `[hidden]`.
#[derive(Clone, Debug, Default)]
pub struct Secret(SecretString);

impl Secret {
    /// Makes a secret of a text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(SecretString::from(text.into()))
    }

    /// Returns the text itself: for the peer it is meant for, never for a log.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// Says whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.expose().is_empty()
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.is_empty() { "" } else { HIDDEN })
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOrFile { expecting: "a text, or { file = \"path\" }" }).map(Self)
    }
}

/// A URL that may hold a password. Shown and written without it.
///
/// Read like a [`Secret`], from a text or from a file.
#[derive(Clone, Default)]
pub struct SecretUrl(SecretString);

impl SecretUrl {
    /// Makes one of a URL. Not checked: see [`SecretUrl::parse`].
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self(SecretString::from(url.into()))
    }

    /// Makes one of a text that must have a scheme and something behind it.
    ///
    /// # Errors
    /// What is wrong with the text, without showing it.
    pub fn parse(text: impl Into<String>) -> Result<Self, &'static str> {
        let text = text.into();
        match text.split_once("://") {
            Some((scheme, rest)) if !scheme.is_empty() && !rest.is_empty() => Ok(Self::new(text)),
            _ => Err("is not a URL; write scheme://host"),
        }
    }

    /// Returns the whole URL, password included: for connecting, never for a log.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// Says whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.expose().is_empty()
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redact_url(self.expose()))
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretUrl({self})")
    }
}

impl Serialize for SecretUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SecretUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = deserializer.deserialize_any(TextOrFile { expecting: "a URL, or { file = \"path\" }" })?;
        // Empty is how a layer takes back what a lower one set.
        if text.expose_secret().is_empty() {
            return Ok(Self::default());
        }
        Self::parse(text.expose_secret()).map_err(D::Error::custom)
    }
}

/// Returns `text` with the password of a URL hidden; a text without one comes back as it is.
///
/// Passwords with unescaped `/` or `@` are common, so everything up to the last `@` counts
/// as user and password: that may hide too much, never too little.
pub(super) fn redact_url(text: &str) -> String {
    let (scheme, rest) = match text.find("://") {
        Some(at) => text.split_at(at + "://".len()),
        // Somebody forgot the scheme: the password is as secret as ever.
        None => ("", text),
    };
    let credentials =
        rest.rsplit_once('@').and_then(|(credentials, host)| Some((credentials.split_once(':')?.0, host)));
    let rest = match credentials {
        Some((user, host)) => Cow::Owned(format!("{user}:{HIDDEN}@{host}")),
        None => Cow::Borrowed(rest),
    };
    let Some((base, query)) = rest.split_once('?') else {
        return format!("{scheme}{rest}");
    };
    let pairs: Vec<_> = query.split('&').map(redact_parameter).collect();
    format!("{scheme}{base}?{}", pairs.join("&"))
}

fn redact_parameter(pair: &str) -> Cow<'_, str> {
    match pair.split_once('=') {
        Some((name, _)) if matches!(name, "password" | "sslpassword" | "api_key" | "api-key" | "token") => {
            Cow::Owned(format!("{name}={HIDDEN}"))
        }
        _ => Cow::Borrowed(pair),
    }
}

struct TextOrFile {
    expecting: &'static str,
}

impl<'de> Visitor<'de> for TextOrFile {
    type Value = SecretString;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expecting)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<SecretString, E> {
        Ok(SecretString::from(text))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<SecretString, A::Error> {
        let mut path = None;
        while let Some(key) = map.next_key::<String>()? {
            if key != "file" {
                return Err(A::Error::unknown_field(&key, &["file"]));
            }
            path = Some(map.next_value::<PathBuf>()?);
        }
        let path = path.ok_or_else(|| A::Error::missing_field("file"))?;
        let text = std::fs::read_to_string(&path).map_err(|error| {
            A::Error::custom(format!(
                "can't be read from {}: {error}; make the file readable or name another",
                path.display()
            ))
        })?;
        // Editors and `kubectl create secret` end files with a newline that isn't meant.
        Ok(SecretString::from(text.trim_end_matches(['\r', '\n'])))
    }
}
