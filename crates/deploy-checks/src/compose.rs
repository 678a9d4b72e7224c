//! The compose file, with its variables filled in.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde_json::Value;

use crate::yaml;

/// The file, from the workspace's folder.
pub const COMPOSE: &str = "deploy/compose/compose.yaml";

/// Ends what stands for a variable that the user has to set, after its name: long enough for a key,
/// and no two are the same.
const SAMPLE: &str = "-0123456789abcdef0123456789abcdef";

/// A container.
#[derive(Debug)]
pub struct Service {
    /// What it is called.
    pub name: String,
    /// Whether it runs our image.
    pub is_ours: bool,
    /// Its `command`.
    pub command: Vec<String>,
    /// Its `environment`.
    pub environment: BTreeMap<String, String>,
    /// All of it.
    pub value: Value,
}

/// Reads the file with samples in place of what a user sets, and `<<` taken apart.
///
/// # Errors
/// If it can't be read.
pub fn read() -> anyhow::Result<Value> {
    yaml::document(&interpolated(&crate::read(COMPOSE)?)).context(COMPOSE)
}

/// Reads the services.
///
/// # Errors
/// If the file can't be read, or has none.
pub fn services() -> anyhow::Result<Vec<Service>> {
    let file = read()?;
    let services = file.get("services").and_then(Value::as_object).context("no services")?;
    let service = |(name, value): (&String, &Value)| Service {
        name: name.clone(),
        is_ours: yaml::text(value, "/image").starts_with("waybill:"),
        command: yaml::list(value, "/command").iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        environment: yaml::at(value, "/environment")
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, value)| (name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
            .collect(),
        value: value.clone(),
    };
    Ok(services.iter().map(service).collect())
}

/// Fills in `${NAME}`, `${NAME:-default}` and `${NAME:?message}`.
fn interpolated(text: &str) -> String {
    let mut parts = text.split("${");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (inside, rest) = part.split_once('}').unwrap_or((part, ""));
        if let Some((_, default)) = inside.split_once(":-") {
            out.push_str(default);
        } else {
            out.extend([inside.split(':').next().unwrap_or_default(), SAMPLE]);
        }
        out.push_str(rest);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_filled_in() {
        let filled = interpolated("a: x${A:?why}y\nb: ${B:-d}");
        assert_eq!(filled, format!("a: xA{SAMPLE}y\nb: d"));
    }
}
