//! What the documents tell people to type must exist, and so must what they link to.

use clap::CommandFactory as _;

use super::{Finding, TextFile};

/// Where the subcommands of the binary are declared.
const WAYBILL_CLI: &str = "crates/waybill/src/cli/mod.rs";

/// Checks the documents.
pub(crate) fn check(files: &[TextFile]) -> Vec<Finding> {
    let xtask: Vec<String> = crate::Cli::command().get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    let waybill = files
        .iter()
        .find(|file| file.path == WAYBILL_CLI)
        .map(|file| variants(&file.text, "enum Command"))
        .unwrap_or_default();
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.path.ends_with(".md")) {
        findings.extend(commands(file, &xtask, &waybill));
        findings.extend(links(file, files));
    }
    findings
}

/// Checks the commands in a document's code blocks.
fn commands(file: &TextFile, xtask: &[String], waybill: &[String]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut is_code = false;
    for (index, line) in file.text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
            continue;
        }
        if !is_code {
            continue;
        }
        let line = line.trim_start().trim_start_matches("$ ");
        for (prefix, known) in [("cargo xtask ", xtask), ("waybill ", waybill)] {
            // Two spaces are a drawing, or columns.
            let rest = line.strip_prefix(prefix);
            let Some(word) = rest.and_then(|rest| rest.split(' ').next()) else {
                continue;
            };
            if word.starts_with(|first: char| first.is_ascii_lowercase())
                && !known.is_empty()
                && !known.iter().any(|name| name == word)
            {
                findings.push(Finding::new(
                    &file.path,
                    index + 1,
                    "documented commands exist",
                    format!("there is no `{prefix}{word}`"),
                    format!("it is one of {}", known.join(", ")),
                ));
            }
        }
    }
    findings
}

/// Checks links to files of the repository.
fn links(file: &TextFile, files: &[TextFile]) -> Vec<Finding> {
    let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut findings = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        for (at, _) in line.match_indices("](") {
            let target = line.get(at + 2..).and_then(|rest| rest.split(')').next()).unwrap_or_default();
            let target = target.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let path = resolve(folder, target);
            let is_there = files.iter().any(|other| other.path == path || other.path.starts_with(&format!("{path}/")));
            if !is_there {
                findings.push(Finding::new(
                    &file.path,
                    index + 1,
                    "links lead somewhere",
                    format!("there is no {path}"),
                    "correct the link",
                ));
            }
        }
    }
    findings
}

fn resolve(folder: &str, target: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Returns the names of an enum's variants as clap shows them.
fn variants(source: &str, name: &str) -> Vec<String> {
    let Some(at) = source.find(&format!("{name} {{")) else {
        return Vec::new();
    };
    let body = source.get(at..).unwrap_or_default();
    let body = body.lines().skip(1).take_while(|line| !line.starts_with('}'));
    body.filter_map(|line| line.strip_prefix("    "))
        .filter(|line| line.starts_with(|first: char| first.is_ascii_uppercase()))
        .map(|line| {
            let word: String = line.chars().take_while(char::is_ascii_alphanumeric).collect();
            kebab(&word)
        })
        .collect()
}

fn kebab(word: &str) -> String {
    let mut name = String::new();
    for character in word.chars() {
        if character.is_ascii_uppercase() && !name.is_empty() {
            name.push('-');
        }
        name.push(character.to_ascii_lowercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &str) -> TextFile {
        TextFile { path: "docs/a.md".to_owned(), text: text.to_owned() }
    }

    #[test]
    fn commands_must_exist() {
        let known = ["demo".to_owned()];
        let text = "cargo xtask nothing\n```\n$ cargo xtask demo --keep\ncargo xtask wrong\ncargo xtask <command>\nwaybill   the binary\n```\n";
        let findings = commands(&document(text), &known, &known);
        assert_eq!(findings.iter().map(|finding| finding.line).collect::<Vec<_>>(), [4]);
    }

    #[test]
    fn links_must_lead_somewhere() {
        let there = TextFile { path: "deploy/README.md".to_owned(), text: String::new() };
        let text = "[a](../deploy/README.md) [b](../deploy) [c](https://x/y)\n[d](missing.md#part)";
        let findings = links(&document(text), &[there]);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings.first().map(|finding| finding.line), Some(2));
    }

    #[test]
    fn subcommands_are_read_from_the_source() {
        let source = "enum Command {\n    /// Doc\n    Up(UpArgs),\n    #[command(subcommand)]\n    FetchIt(X),\n    Config {\n        Not: u8,\n    },\n}\nenum Other {\n    No,\n}\n";
        assert_eq!(variants(source, "enum Command"), ["up", "fetch-it", "config"]);
    }
}
