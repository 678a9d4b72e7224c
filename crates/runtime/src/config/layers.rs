use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use figment::error::{Actual, Kind};
use figment::providers::{Format, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::de::DeserializeOwned;

use super::error::ConfigError;
use super::{ENV_PREFIX, ENV_SEPARATOR};

/// Variables under our prefix that belong to the command line, the log and the tests.
const NOT_KEYS: [&str; 2] = ["WAYBILL_LOG", "WAYBILL_CONFIG"];
const NOT_KEYS_PREFIX: &str = "WAYBILL_TEST_";

/// Ends the key of a file that holds the value: `password_file` for `password`.
const FILE_SUFFIX: &str = "_file";

/// Reads a configuration out of its layers. Made by [`super::load`] for most.
#[derive(Debug, Clone, Default)]
pub struct Loader {
    toml_file: Option<PathBuf>,
    variables: Vec<(String, String)>,
    aliases: Vec<(&'static str, &'static str)>,
    ignored: Vec<&'static str>,
}

impl Loader {
    /// Makes a loader that reads this process's environment.
    #[must_use]
    pub fn from_environment() -> Self {
        // A variable that isn't UTF-8 is none of ours.
        let utf8 = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self::from_variables(std::env::vars_os().filter_map(utf8))
    }

    /// Makes a loader that reads these variables in place of the environment.
    #[must_use]
    pub fn from_variables(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        Self { variables: variables.into_iter().collect(), ..Self::default() }
    }

    /// Reads this file too, below the environment.
    #[must_use]
    pub fn toml_file(mut self, path: Option<&Path>) -> Self {
        self.toml_file = path.map(Path::to_owned);
        self
    }

    /// Lets a variable of another name (`DATABASE_URL`) set `key` ("database.url"), below our
    /// own name for it.
    #[must_use]
    pub fn alias(mut self, variable: &'static str, key: &'static str) -> Self {
        self.aliases.push((variable, key));
        self
    }

    /// Skips a variable that begins with our prefix but is no key, such as one of the
    /// command line's.
    #[must_use]
    pub fn ignore(mut self, variable: &'static str) -> Self {
        self.ignored.push(variable);
        self
    }

    /// Reads all layers into `T`.
    ///
    /// # Errors
    /// The first thing wrong: the key, its value, where it came from, and how to mend it.
    pub fn load<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        let mut learnt = Learnt::default();
        // Ends: every turn either returns or learns one more of finitely many keys.
        loop {
            let figment = self.figment(&learnt)?;
            let error = match figment.extract::<T>() {
                Ok(config) => return Ok(config),
                Err(error) => error,
            };
            if !learnt.from(&error) {
                return Err(ConfigError::from_figment(error, &figment));
            }
        }
    }

    fn figment(&self, learnt: &Learnt) -> Result<Figment, ConfigError> {
        let mut figment = Figment::new();
        if let Some(path) = &self.toml_file {
            let origin = format!("file {}", path.display());
            if !path.is_file() {
                return Err(ConfigError::general(&origin, "there is no such file", "create it, or leave it out"));
            }
            let toml = Toml::file_exact(path);
            let mut data =
                toml.data().map_err(|error| ConfigError::general(&origin, &error.kind.to_string(), "mend the TOML"))?;
            for dict in data.values_mut() {
                learnt.move_files(dict, "");
            }
            figment = figment.merge(Layer { metadata: toml.metadata(), data });
        }
        for (variable, key) in &self.aliases {
            if let Some((name, value)) = self.variables.iter().find(|(name, _)| name == variable) {
                figment = figment.merge(variable_layer(name, key, value, learnt));
            }
        }
        for (name, value) in &self.variables {
            if let Some(key) = self.key_of(name, value) {
                figment = figment.merge(variable_layer(name, &key, value, learnt));
            }
        }
        Ok(figment)
    }

    fn key_of(&self, name: &str, value: &str) -> Option<String> {
        let rest = name.strip_prefix(ENV_PREFIX)?;
        let reserved = NOT_KEYS.contains(&name) || name.starts_with(NOT_KEYS_PREFIX) || self.ignored.contains(&name);
        // Kubernetes tells every pod of a Service `waybill-relay` in WAYBILL_RELAY_SERVICE_HOST
        // and five more: those are not for us.
        let service_link = name.ends_with("_SERVICE_HOST")
            || name.contains("_SERVICE_PORT")
            || name.contains("_PORT_")
            || value.starts_with("tcp://");
        if rest.is_empty() || reserved || service_link {
            return None;
        }
        Some(rest.to_lowercase().replace(ENV_SEPARATOR, "."))
    }
}

/// What a failed reading taught about keys: the types tell it, and only by failing.
#[derive(Debug, Default)]
struct Learnt {
    /// Keys whose variable is a text, though it looks like a number, a list or a boolean.
    texts: BTreeSet<String>,
    /// Keys like `database.password_file` that stand for the content of a file.
    files: BTreeSet<String>,
}

impl Learnt {
    /// Says whether `error` taught something new, so that reading again can help.
    fn from(&mut self, error: &figment::Error) -> bool {
        let key = error.path.join(".");
        match &error.kind {
            Kind::InvalidType(found, _) if !matches!(found, Actual::Str(_)) => {
                let from_variable = error.metadata.as_ref().is_some_and(|metadata| metadata.source.is_none());
                from_variable && self.texts.insert(key)
            }
            Kind::UnknownField(field, known) => {
                let is_file = field.strip_suffix(FILE_SUFFIX).is_some_and(|stem| known.contains(&stem));
                let mut path = error.path.clone();
                if path.last() != Some(field) {
                    path.push(field.clone());
                }
                is_file && self.files.insert(path.join("."))
            }
            _ => false,
        }
    }

    /// Turns `password_file = "p"` into `password = { file = "p" }`, which the types read.
    fn move_files(&self, dict: &mut Dict, section: &str) {
        for key in &self.files {
            let (parent, field) = key.rsplit_once('.').unwrap_or(("", key));
            let Some(stem) = field.strip_suffix(FILE_SUFFIX).filter(|_| parent == section) else {
                continue;
            };
            // Both in one layer is for the person to decide: it stays an unknown key.
            if dict.contains_key(stem) {
                continue;
            }
            if let Some(path) = dict.remove(field) {
                dict.insert(stem.to_owned(), Value::from(Dict::from([("file".to_owned(), path)])));
            }
        }
        for (name, value) in dict.iter_mut() {
            if let Value::Dict(_, inner) = value {
                let section = if section.is_empty() { name.clone() } else { format!("{section}.{name}") };
                self.move_files(inner, &section);
            }
        }
    }
}

/// One source of values, with what errors call it.
struct Layer {
    metadata: Metadata,
    data: Map<Profile, Dict>,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        self.metadata.clone()
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(self.data.clone())
    }
}

fn variable_layer(name: &str, key: &str, text: &str, learnt: &Learnt) -> Layer {
    let parsed = if learnt.texts.contains(key) { None } else { text.parse::<Value>().ok() };
    let value = match parsed {
        // A table is said with one variable per key; a text with braces is a password.
        None | Some(Value::Dict(..)) => Value::from(text),
        Some(value) => value,
    };
    let mut dict = Dict::new();
    if let Value::Dict(_, nested) = figment::util::nest(key, value) {
        dict = nested;
    }
    learnt.move_files(&mut dict, "");
    Layer {
        metadata: Metadata::named(format!("environment variable {name}")),
        data: Map::from([(Profile::Default, dict)]),
    }
}
