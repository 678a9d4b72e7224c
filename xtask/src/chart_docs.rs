//! The table of values in the chart's README, made of the comments in its values.yaml.

use std::fs;

use anyhow::Context as _;

use crate::sh;

const VALUES: &str = "deploy/helm/waybill/values.yaml";
const README: &str = "deploy/helm/waybill/README.md";
const BEGIN: &str = "<!-- values: begin (cargo xtask chart-docs) -->";
const END: &str = "<!-- values: end -->";

/// What stands in place of a default that is no single line.
const LONG: &str = "see [values.yaml](values.yaml)";

/// Writes the table into the README.
///
/// # Errors
/// If one of the files can't be read or written, or the README has no place for the table.
pub(crate) fn run() -> anyhow::Result<()> {
    fs::write(sh::root().join(README), renewed()?).with_context(|| format!("write {README}"))
}

/// Returns the README as it should be.
fn renewed() -> anyhow::Result<String> {
    let read = |path: &str| fs::read_to_string(sh::root().join(path)).with_context(|| format!("read {path}"));
    let readme = read(README)?;
    with_table(&readme, &table(&read(VALUES)?)).with_context(|| format!("find {BEGIN:?} and {END:?} in {README}"))
}

fn with_table(readme: &str, table: &str) -> Option<String> {
    let begin = readme.find(BEGIN)? + BEGIN.len();
    let end = begin + readme.get(begin..)?.find(END)?;
    Some(format!("{}\n{table}{}", readme.get(..begin)?, readme.get(end..)?))
}

/// Makes a row of each value that a comment explains.
fn table(values: &str) -> String {
    let mut rows = String::from("| value | default | what it does |\n| --- | --- | --- |\n");
    // Names and indentation of the maps that a line stands in.
    let mut parents: Vec<(usize, &str)> = Vec::new();
    let mut said: Option<&str> = None;
    let lines: Vec<&str> = values.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let indent = line.len() - trimmed.len();
        if let Some(comment) = trimmed.strip_prefix("# -- ") {
            said = Some(comment);
            continue;
        }
        let Some((name, value)) = trimmed.split_once(':').filter(|_| !trimmed.starts_with(['#', '-'])) else {
            continue;
        };
        parents.retain(|(depth, _)| *depth < indent);
        if let Some(comment) = said.take() {
            let path: Vec<_> = parents.iter().map(|(_, parent)| *parent).chain([name]).collect();
            let default = default_of(value.trim(), lines.get(index + 1..).unwrap_or_default(), indent);
            rows.push_str(&format!("| `{}` | {default} | {} |\n", path.join("."), comment.replace('|', "\\|")));
        }
        parents.push((indent, name));
    }
    rows
}

fn default_of(value: &str, following: &[&str], indent: usize) -> String {
    if !value.is_empty() {
        return format!("`{value}`");
    }
    let mut inside = following.iter().take_while(|line| line.len() - line.trim_start().len() > indent);
    // A group whose members have rows of their own has no default itself.
    let is_group = inside.clone().any(|line| line.trim_start().starts_with("# -- "));
    let mut first = inside.next().map(|line| line.trim_start()).unwrap_or_default();
    if is_group {
        return String::new();
    }
    if let Some(item) = first.strip_prefix("- ") {
        first = item;
    }
    match inside.next() {
        None => format!("`{first}`"),
        Some(_) => LONG.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_is_made_of_the_values() {
        let there = fs::read_to_string(sh::root().join(README)).unwrap();
        assert!(there == renewed().unwrap(), "{README} is out of date: run `cargo xtask chart-docs`");
    }

    #[test]
    fn paths_defaults_and_comments_are_read() {
        let values = "# Not about a value.\na:\n  # -- One | two.\n  b: \"\"\n  # -- A map.\n  c:\n    x: 1\n    y: 2\n  # -- A list.\n  d:\n    - 5432\n# -- Last.\ne: {}\n";
        let rows: Vec<_> = table(values).lines().skip(2).map(str::to_owned).collect();
        assert_eq!(
            rows,
            [
                "| `a.b` | `\"\"` | One \\| two. |",
                "| `a.c` | see [values.yaml](values.yaml) | A map. |",
                "| `a.d` | `5432` | A list. |",
                "| `e` | `{}` | Last. |",
            ]
        );
    }

    #[test]
    fn a_group_is_said_and_has_no_default() {
        let rows = table("# -- All of it.\na:\n  # -- One.\n  b: 1\n");
        assert!(rows.ends_with("| `a` |  | All of it. |\n| `a.b` | `1` | One. |\n"), "{rows}");
    }
}
