use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The longest wait that may be configured: an hour.
const MAX_WAIT_MS: u64 = 60 * 60 * 1_000;

/// How documents are taken in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How texts are cut.
    pub chunking: ChunkingConfig,
    /// The largest body, in bytes.
    pub max_body_bytes: usize,
    /// Items of a `PutSources` stream that are committed together, at most.
    pub group_items: usize,
    /// Bytes of bodies that are committed together, at most; one larger body is a group.
    pub group_bytes: usize,
    /// How long a group waits for its next item, in milliseconds.
    pub group_idle_ms: u64,
    /// `PutSource` and `UploadSource` calls at once; one more is refused and may come again.
    pub max_concurrent_puts: usize,
    /// `PutSources` streams at once; one more is refused and may come again.
    pub max_streams: usize,
    /// Bytes of bodies in memory at once. A call that would pass it is refused; a stream waits.
    pub max_bytes_in_flight: usize,
    /// How long a put with ACKNOWLEDGE_INDEXED or ACKNOWLEDGE_ALL_OR_NOTHING waits for the vector
    /// store, in milliseconds, if it doesn't say.
    pub index_timeout_ms: u64,
    /// How long it may ask for, in milliseconds.
    pub index_timeout_max_ms: u64,
    /// How long a put waits, once it was taken back, for the vector store to confirm that, in
    /// milliseconds.
    pub take_back_wait_ms: u64,
    /// Puts that wait for the vector store at once; one more is refused and may come again.
    pub max_waiting_puts: usize,
    /// Changes that the vector store has yet to confirm beyond which answers suggest to slow
    /// down; 0: never.
    pub backlog_soft_limit: u64,
    /// Changes beyond which puts are refused for the time being; 0: never.
    pub backlog_hard_limit: u64,
}

/// How texts are cut. A change has every source cut anew when it is put the next time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChunkingConfig {
    /// Tokens of a passage with its headings, at most. Below what the embedding model reads.
    pub max_tokens: usize,
    /// Tokens that a passage repeats of the one before, at most.
    pub overlap_tokens: usize,
    /// The model's `tokenizer.json`. Without one, tokens are estimated.
    pub tokenizer: Option<PathBuf>,
}

impl Default for ChunkingConfig {
    fn default() -> Self {
        // Sentence models of the MiniLM family read 256; an estimate needs room to be wrong.
        Self { max_tokens: 200, overlap_tokens: 20, tokenizer: None }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            chunking: ChunkingConfig::default(),
            max_body_bytes: 16 << 20,
            // A commit costs about as much as a few rows: at 64 its share is small already.
            group_items: 64,
            group_bytes: 4 << 20,
            group_idle_ms: 20,
            // More than a pool of connections can serve at once: the rest waits for one.
            max_concurrent_puts: 256,
            max_streams: 64,
            max_bytes_in_flight: 256 << 20,
            index_timeout_ms: 30_000,
            index_timeout_max_ms: 10 * 60 * 1_000,
            // A relay that was away takes its lanes back within seconds.
            take_back_wait_ms: 10_000,
            // Each looks at Postgres five times a second.
            max_waiting_puts: 256,
            // Some minutes of work for a small model on a CPU.
            backlog_soft_limit: 100_000,
            backlog_hard_limit: 0,
        }
    }
}

impl Config {
    /// Checks what the types allow and the service does not.
    ///
    /// # Errors
    /// A sentence with the key, its value and the fix.
    pub fn validate(&self) -> Result<(), String> {
        let ranges = [
            ("chunking.max_tokens", self.chunking.max_tokens, 16, 8_192),
            ("chunking.overlap_tokens", self.chunking.overlap_tokens, 0, self.chunking.max_tokens / 2),
            // Postgres takes 1 GB in a value, and a body is copied a few times on its way.
            ("max_body_bytes", self.max_body_bytes, 1_024, 256 << 20),
            ("group_items", self.group_items, 1, 1_024),
            ("group_bytes", self.group_bytes, 1, 256 << 20),
            ("max_concurrent_puts", self.max_concurrent_puts, 1, 100_000),
            ("max_streams", self.max_streams, 1, 100_000),
            ("max_waiting_puts", self.max_waiting_puts, 1, 100_000),
            ("max_bytes_in_flight", self.max_bytes_in_flight, self.max_body_bytes, 1 << 40),
        ];
        for (key, value, min, max) in ranges {
            if !(min..=max).contains(&value) {
                return Err(format!("ingestion.{key} is {value}: set it to {min} at least and {max} at most"));
            }
        }
        if self.group_idle_ms > 10_000 {
            return Err(format!("ingestion.group_idle_ms is {}: set it to 10000 at most", self.group_idle_ms));
        }
        let waits = [
            ("index_timeout_max_ms", self.index_timeout_max_ms, MAX_WAIT_MS),
            ("index_timeout_ms", self.index_timeout_ms, self.index_timeout_max_ms),
            ("take_back_wait_ms", self.take_back_wait_ms, MAX_WAIT_MS),
        ];
        for (key, value, max) in waits {
            if !(1..=max).contains(&value) {
                return Err(format!("ingestion.{key} is {value}: set it to 1 at least and {max} at most"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Config;

    #[test]
    fn the_defaults_are_valid_and_a_bad_value_is_named() {
        assert_eq!(Config::default().validate(), Ok(()));
        let mut config = Config::default();
        config.chunking.overlap_tokens = 150;
        assert_eq!(
            config.validate().unwrap_err(),
            "ingestion.chunking.overlap_tokens is 150: set it to 0 at least and 100 at most"
        );
        let config = Config { index_timeout_max_ms: 1_000, ..Config::default() };
        assert_eq!(
            config.validate().unwrap_err(),
            "ingestion.index_timeout_ms is 30000: set it to 1 at least and 1000 at most"
        );
    }
}
