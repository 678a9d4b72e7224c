use std::fmt::{self, Display};

use figment::error::{Actual, Kind};
use figment::value::{Num, Value};
use figment::{Figment, Source};
use waybill_tls::InvalidTls;

use super::secret::redact_url;
use super::{ENV_PREFIX, ENV_SEPARATOR};

/// Below this similarity (0 to 1, Jaro-Winkler) a suggestion confuses more than it helps.
const SUGGEST_FROM: f64 = 0.75;

/// Parts of a key's last name that mark its value as not for a terminal.
const SECRET_NAMES: [&str; 6] = ["password", "secret", "token", "api_key", "apikey", "credential"];

/// Says what is wrong with the configuration and how to mend it, on one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The key ("database.url"), if the error is about one.
    pub key: Option<String>,
    /// Its value, hidden if it may be a secret; `None` if there is none.
    pub value: Option<String>,
    /// Where the value came from ("environment variable `WAYBILL_DATABASE__URL`"), if known.
    pub origin: Option<String>,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub fix: String,
}

impl Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("configuration: ")?;
        if let Some(key) = &self.key {
            write!(f, "`{key}`")?;
            if let Some(value) = &self.value {
                write!(f, " = {value}")?;
            }
            if let Some(origin) = &self.origin {
                write!(f, " (from {origin})")?;
            }
            f.write_str(": ")?;
        } else if let Some(origin) = &self.origin {
            write!(f, "{origin}: ")?;
        }
        write!(f, "{}; {}", self.problem, self.fix)
    }
}

impl std::error::Error for ConfigError {}

impl From<InvalidTls> for ConfigError {
    fn from(invalid: InvalidTls) -> Self {
        Self::invalid(invalid.key, invalid.value, &invalid.problem, invalid.fix)
    }
}

impl ConfigError {
    /// Makes the error of a value that was read but makes no sense, for `validate` functions.
    #[must_use]
    pub fn invalid(key: impl Into<String>, value: impl Display, problem: &str, fix: &str) -> Self {
        let key = key.into();
        let value = if is_secret(&key) { "[hidden]".to_owned() } else { redact_url(&value.to_string()) };
        Self { key: Some(key), value: Some(value), origin: None, problem: problem.to_owned(), fix: fix.to_owned() }
    }

    pub(super) fn general(origin: &str, problem: &str, fix: &str) -> Self {
        Self {
            key: None,
            value: None,
            origin: Some(origin.to_owned()),
            problem: problem.trim().to_owned(),
            fix: fix.to_owned(),
        }
    }

    pub(super) fn from_figment(error: figment::Error, figment: &Figment) -> Self {
        let mut path = error.path.clone();
        match &error.kind {
            Kind::UnknownField(field, _) if path.last() != Some(field) => path.push(field.clone()),
            Kind::MissingField(field) => path.push(field.to_string()),
            _ => {}
        }
        let key = path.join(".");
        let found = figment.find_value(&key).ok();
        let origin =
            found.as_ref().and_then(|value| figment.get_metadata(value.tag())).or(error.metadata.as_ref()).map(
                |metadata| match &metadata.source {
                    Some(Source::File(file)) => format!("file {}", file.display()),
                    _ => metadata.name.to_string(),
                },
            );
        let (problem, fix) = explain(&error.kind, &key);
        if path.is_empty() {
            return Self { key: None, value: None, origin, problem, fix };
        }
        let value = found.map(|value| if is_secret(&key) { "[hidden]".to_owned() } else { show(&value) });
        Self { key: Some(key), value, origin, problem, fix }
    }
}

fn explain(kind: &Kind, key: &str) -> (String, String) {
    match kind {
        Kind::InvalidType(found, expected) | Kind::InvalidValue(found, expected) => {
            (format!("is {}", article(found)), format!("write {}", describe(expected)))
        }
        Kind::InvalidLength(found, expected) => (format!("has {found} items"), format!("write {expected}")),
        Kind::UnknownField(name, known) => {
            ("there is no such key".to_owned(), format!("{}known here: {}", suggest(name, known), known.join(", ")))
        }
        Kind::UnknownVariant(name, known) => (
            "is not one of the choices".to_owned(),
            format!("{}choose from: {}", suggest(name, known), known.join(", ")),
        ),
        Kind::MissingField(_) => {
            let variable = format!("{ENV_PREFIX}{}", key.replace('.', ENV_SEPARATOR).to_uppercase());
            ("is missing".to_owned(), format!("set it in the file or as {variable}"))
        }
        // Our own types write "problem; fix", the types of others whatever they like.
        Kind::Message(message) => match message.split_once("; ") {
            Some((problem, fix)) => (problem.to_owned(), fix.to_owned()),
            None => (message.trim().to_owned(), "write another value".to_owned()),
        },
        other => (other.to_string(), "write another value".to_owned()),
    }
}

fn article(found: &Actual) -> &'static str {
    match found {
        Actual::Bool(_) => "true or false",
        Actual::Unsigned(_) => "a whole number",
        Actual::Signed(_) => "a negative number",
        Actual::Float(_) => "a fraction",
        Actual::Char(_) | Actual::Str(_) => "a text",
        Actual::Seq => "a list",
        Actual::Map => "a table",
        _ => "of another type",
    }
}

/// Puts serde's word for a type into one that people use.
fn describe(expected: &str) -> String {
    match expected {
        "u8" => "a whole number from 0 to 255".to_owned(),
        "u16" => "a whole number from 0 to 65535".to_owned(),
        "u32" | "u64" | "usize" | "u128" => "a whole number, 0 or more".to_owned(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "socket address" => "an address and a port, such as 127.0.0.1:50051".to_owned(),
        other if other.starts_with("struct ") => "a table of keys, `[section]` in TOML".to_owned(),
        other => other.to_owned(),
    }
}

fn suggest(name: &str, known: &[&'static str]) -> String {
    known
        .iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(similarity, _)| *similarity >= SUGGEST_FROM)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| format!("did you mean `{candidate}`? "))
        .unwrap_or_default()
}

fn is_secret(key: &str) -> bool {
    let name = key.rsplit('.').next().unwrap_or(key).to_lowercase();
    // Counts of tokens are no secrets; a token is.
    let counts = name.contains("tokens") || name.ends_with("_file");
    !counts && SECRET_NAMES.iter().any(|part| name.contains(part))
}

/// Writes a value as TOML would. Long ones are cut: the line is for a person.
fn show(value: &Value) -> String {
    const MAX_CHARS: usize = 80;
    let text = match value {
        Value::String(_, text) => format!("{:?}", redact_url(text)),
        Value::Char(_, char) => format!("{char:?}"),
        Value::Bool(_, bool) => bool.to_string(),
        Value::Num(_, Num::F32(number)) => number.to_string(),
        Value::Num(_, Num::F64(number)) => number.to_string(),
        Value::Num(_, number) => match (number.to_u128(), number.to_i128()) {
            (Some(number), _) => number.to_string(),
            (None, Some(number)) => number.to_string(),
            (None, None) => "a number".to_owned(),
        },
        Value::Empty(..) => "nothing".to_owned(),
        // Their items may be secrets under names of their own.
        Value::Dict(..) => "{...}".to_owned(),
        Value::Array(..) => "[...]".to_owned(),
    };
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
