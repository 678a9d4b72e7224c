//! Rules about manifests: one place for versions and lints.

use super::{Finding, TextFile};

/// Checks one file; anything but a crate's manifest passes.
pub(crate) fn check(file: &TextFile) -> Vec<Finding> {
    if file.path == "Cargo.toml" {
        return crash_points(file);
    }
    if !file.path.ends_with("/Cargo.toml") {
        return Vec::new();
    }
    let mut findings = crash_points(file);
    let mut section = "";
    // Brackets of a value that goes on over several lines.
    let mut open = 0_i32;
    for (index, line) in file.text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let is_continued = open > 0;
        open += count(line, &['[', '{']) - count(line, &[']', '}']);
        if line.is_empty() || is_continued {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
            continue;
        }
        if is_dependencies(section) && !line.contains("workspace = true") {
            findings.push(Finding::new(
                &file.path,
                index + 1,
                "one place for versions",
                line,
                "name it in [workspace.dependencies] of the root Cargo.toml and write `x.workspace = true`",
            ));
        }
    }
    if !has_workspace_lints(&file.text) {
        findings.push(Finding::new(
            &file.path,
            0,
            "workspace lints",
            "no [lints] with workspace = true",
            "add `[lints]` and `workspace = true`",
        ));
    }
    findings
}

/// A program that ships must not have points at which it can be told to die.
fn crash_points(file: &TextFile) -> Vec<Finding> {
    let mut section = "";
    let mut findings = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.starts_with('[') {
            section = line;
        }
        let is_definition = line == "failpoints = []";
        if line.contains("failpoints") && !is_definition && section != "[dev-dependencies]" {
            findings.push(Finding::new(
                &file.path,
                index + 1,
                "crash points in tests alone",
                line,
                "switch `failpoints` on in [dev-dependencies] and nowhere else",
            ));
        }
    }
    findings
}

fn is_dependencies(section: &str) -> bool {
    ["dependencies", "dev-dependencies", "build-dependencies"]
        .iter()
        .any(|kind| section == *kind || section.ends_with(&format!(".{kind}")))
}

fn has_workspace_lints(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim).skip_while(|line| *line != "[lints]").skip(1);
    lines.find(|line| !line.is_empty()) == Some("workspace = true")
}

fn count(line: &str, brackets: &[char]) -> i32 {
    i32::try_from(line.matches(brackets).count()).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<usize> {
        let file = TextFile { path: "crates/a/Cargo.toml".to_owned(), text: text.to_owned() };
        check(&file).into_iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn versions_stand_in_the_workspace() {
        let text = "[package]\nname = \"a\"\n[lints]\nworkspace = true\n[dependencies]\na.workspace = true\nb = { workspace = true, features = [\n  \"x\",\n] }\nc = \"1\"\n[target.'cfg(unix)'.dev-dependencies]\nd = { version = \"1\" }\n";
        assert_eq!(lines(text), [10, 12]);
    }

    #[test]
    fn crash_points_are_for_tests() {
        let with = |section: &str| {
            format!("[lints]\nworkspace = true\n[{section}]\nd = {{ workspace = true, features = [\"failpoints\"] }}\n")
        };
        assert_eq!(lines(&with("dev-dependencies")), Vec::<usize>::new());
        assert_eq!(lines(&with("dependencies")), [4]);
        assert_eq!(lines("[lints]\nworkspace = true\n[features]\ndefault = [\"d/failpoints\"]\n"), [4]);
        let root = TextFile { path: "Cargo.toml".to_owned(), text: with("workspace.dependencies") };
        assert_eq!(check(&root).len(), 1);
    }

    #[test]
    fn lints_are_the_workspaces() {
        assert_eq!(lines("[package]\nname = \"a\"\n"), [0]);
    }
}
