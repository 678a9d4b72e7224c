//! Configuration in layers: defaults < TOML file < environment.
//!
//! A key `database.url` is `[database] url = "..."` in the file and `WAYBILL_DATABASE__URL`
//! in the environment. A configuration type derives `Deserialize` with
//! `#[serde(default, deny_unknown_fields)]`, so its `Default` is the lowest layer and a
//! misspelt key is an error.

mod error;
mod layers;
mod secret;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use error::ConfigError;
pub use layers::Loader;
pub use secret::{Secret, SecretUrl};

/// What every environment variable of the configuration begins with.
pub const ENV_PREFIX: &str = "WAYBILL_";

/// Stands between the sections of a key in an environment variable. Two underscores, as one
/// is part of many names.
pub const ENV_SEPARATOR: &str = "__";

/// Loads the configuration from `toml_path`, if given, and this process's environment.
///
/// # Errors
/// The first thing wrong: the key, its value, where it came from, and how to mend it.
pub fn load<T: DeserializeOwned>(toml_path: Option<&Path>) -> Result<T, ConfigError> {
    Loader::from_environment().toml_file(toml_path).load()
}

/// Writes the effective configuration as TOML. [`Secret`] and [`SecretUrl`] hide themselves.
///
/// # Errors
/// When the type can't be written as TOML, such as a map with keys that aren't strings.
pub fn render_redacted<T: Serialize>(config: &T) -> Result<String, ConfigError> {
    toml::to_string_pretty(config).map_err(|error| {
        ConfigError::general("the effective configuration", &error.to_string(), "report this as a bug")
    })
}

/// Where a service listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenConfig {
    /// The address and port; port 0 takes a free one.
    pub listen: SocketAddr,
}

/// How a process stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShutdownConfig {
    /// Seconds from the signal until what is left is dropped.
    pub deadline_s: u64,
}

impl Default for ShutdownConfig {
    fn default() -> Self {
        // Kubernetes kills 30 s after its signal; the rest is for closing connections.
        Self { deadline_s: 25 }
    }
}

impl ShutdownConfig {
    /// An hour: a stop that takes longer is one that hangs.
    const MAX_DEADLINE_S: u64 = 3_600;

    /// Returns the time from the soft to the hard stage.
    #[must_use]
    pub const fn deadline(&self) -> Duration {
        Duration::from_secs(self.deadline_s)
    }

    /// Checks the values. `section` is where this stands in the whole ("shutdown").
    ///
    /// # Errors
    /// When the deadline is over an hour.
    pub fn validate(&self, section: &str) -> Result<(), ConfigError> {
        if self.deadline_s > Self::MAX_DEADLINE_S {
            return Err(ConfigError::invalid(
                format!("{section}.deadline_s"),
                self.deadline_s,
                "is over an hour",
                "write 3600 or less, in seconds",
            ));
        }
        Ok(())
    }
}
