//! YAML, read into JSON values.

use anyhow::Context as _;
use serde_json::Value;

/// Reads a file's documents; empty ones are left out.
///
/// # Errors
/// If it is no YAML.
pub fn documents(text: &str) -> anyhow::Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).context("read YAML")?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// Reads a file of one document.
///
/// # Errors
/// If it is no YAML.
pub fn document(text: &str) -> anyhow::Result<Value> {
    serde_saphyr::from_str(text).context("read YAML")
}

/// Finds what is at a path of names and indices, `/spec/template`; null if nothing is.
#[must_use]
pub fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    value.pointer(path).unwrap_or(&Value::Null)
}

/// Returns the text at a path; empty if there is none.
#[must_use]
pub fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    at(value, path).as_str().unwrap_or_default()
}

/// Returns the items of the list at a path; none if there is no list.
#[must_use]
pub fn list<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    at(value, path).as_array().map_or(&[], Vec::as_slice)
}
