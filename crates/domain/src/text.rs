use std::fmt;

use sha2::{Digest, Sha256};

macro_rules! hash {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// Hashes `bytes`.
            #[must_use]
            pub fn of(bytes: impl AsRef<[u8]>) -> Self {
                Self(Sha256::digest(bytes).into())
            }

            /// Takes a hash that was stored; `None` if it isn't 32 bytes.
            #[must_use]
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            /// Returns the 32 bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

hash! {
    /// SHA-256 of a text that is embedded; names its vector under a model.
    TextHash
}

hash! {
    /// SHA-256 of a body as it was sent.
    ContentHash
}

/// Builds what is embedded of a chunk: its headings, then its text.
///
/// The headings tell the model what the passage is about when the passage itself doesn't.
#[must_use]
pub fn embedding_text(headings: &[String], text: &str) -> String {
    if headings.is_empty() {
        return text.to_owned();
    }
    format!("{}\n\n{text}", headings.join(" > "))
}
