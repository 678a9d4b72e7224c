//! Rules about single files.

use super::lexer::Code;
use super::{Finding, TextFile};

/// A file longer than this is two rooms.
const MAX_LINES: usize = 600;

/// Checks one file.
pub(crate) fn check(file: &TextFile) -> Vec<Finding> {
    let mut findings = machine_paths(file);
    let is_code = [".rs", ".sql", ".proto"].iter().any(|end| file.path.ends_with(end));
    let count = file.text.lines().count();
    if is_code && count > MAX_LINES {
        findings.push(Finding::new(
            &file.path,
            0,
            "file length",
            format!("{count} lines, more than {MAX_LINES}"),
            "split it by what changes together",
        ));
    }
    if file.path.ends_with(".rs") {
        findings.extend(rust(file));
    }
    findings
}

fn rust(file: &TextFile) -> Vec<Finding> {
    let code = Code::parse(&file.text);
    let in_tests = is_test_file(&file.path);
    let in_domain = file.path.starts_with("crates/domain/src/");
    let mut findings = Vec::new();
    let mut function = "";
    for (number, line, is_test_item) in code.lines() {
        let is_test = in_tests || is_test_item;
        function = function_name(line).unwrap_or(function);
        let mut add = |rule, what: String, fix: &str| {
            findings.push(Finding::new(&file.path, number, rule, what, fix));
        };
        for unfinished in ["todo!", "unimplemented!"] {
            if has_word(line, unfinished) {
                add(
                    "unfinished code",
                    unfinished.to_owned(),
                    "finish it, or open an issue and refuse the case with an error",
                );
            }
        }
        if line.contains("#[ignore") {
            add("no ignored tests", line.trim().to_owned(), "make it pass, or delete it");
        }
        if line.contains("#[allow(") || line.contains("#![allow(") {
            add("expect, not allow", line.trim().to_owned(), "write #[expect(lint, reason = \"...\")]");
        }
        if !is_test {
            for (call, name) in [(".unwrap()", "unwrap"), (".expect(", "expect")] {
                // A method of ours may be called `expect` on a parser: it has no message.
                if line.contains(call) && !line.contains("#[expect(") {
                    add(
                        "no panics outside tests",
                        name.to_owned(),
                        "return the error, or write the case so that it can't arise",
                    );
                }
            }
        }
        // A bounded wait for a condition has to sleep somewhere: in one function of that name.
        if is_test && function != "eventually" && (has_word(line, "sleep(") || line.contains("::sleep(")) {
            add(
                "no sleeps in tests",
                line.trim().to_owned(),
                "wait for the event: a barrier, a channel, or testkit's `eventually`",
            );
        }
        if in_domain && !is_test {
            for io in ["tokio::", "sqlx::", "reqwest::", "std::fs", "std::net", "std::process", "std::env"] {
                if line.contains(io) {
                    add(
                        "domain without IO",
                        io.trim_end_matches(':').to_owned(),
                        "move it to a crate above; domain computes and nothing else",
                    );
                }
            }
        }
    }
    findings
}

/// Returns whether all of a file is test code.
fn is_test_file(path: &str) -> bool {
    let is_module = path.ends_with("/tests.rs") || path.ends_with("_tests.rs");
    is_module || path.contains("/tests/") || path.contains("/benches/")
}

/// Paths of one machine, which say nothing on another.
fn machine_paths(file: &TextFile) -> Vec<Finding> {
    // Put together here, so that this file does not find itself.
    let roots = ["home", "root", "work", "Users"].map(|folder| format!("/{folder}/"));
    let mut findings = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        for root in &roots {
            if let Some(path) = machine_path(line, root) {
                findings.push(Finding::new(
                    &file.path,
                    index + 1,
                    "no machine's paths",
                    path,
                    "use a path from the workspace's folder, or a variable",
                ));
            }
        }
    }
    findings
}

fn machine_path(line: &str, root: &str) -> Option<String> {
    let at = line.find(root)?;
    // Part of a longer path or of a URL.
    let before = line.get(..at)?.chars().next_back();
    if before.is_some_and(|before| before.is_alphanumeric() || "._-}/$*~".contains(before)) {
        return None;
    }
    let path: String = line
        .get(at..)?
        .chars()
        .take_while(|character| character.is_alphanumeric() || "/._-".contains(*character))
        .collect();
    // Where Homebrew lives on every Linux machine that has it, and nobody's name.
    let is_everywhere = ["/linuxbrew", "/me/"].iter().any(|known| path.contains(known));
    (path.len() > root.len() && !is_everywhere).then_some(path)
}

/// Returns the name of the function that is declared in `line`.
fn function_name(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("fn ")?;
    let is_declared = before.is_empty() || before.ends_with(' ');
    let name = after.split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
    (is_declared && !name.is_empty()).then_some(name)
}

/// Returns whether `word` stands in `line` and is not the end of a longer name.
fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line.get(..at).and_then(|text| text.chars().next_back());
        !before.is_some_and(|before| before.is_alphanumeric() || before == '_')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(path: &str, text: &str) -> Vec<(usize, &'static str)> {
        let file = TextFile { path: path.to_owned(), text: text.to_owned() };
        check(&file).into_iter().map(|finding| (finding.line, finding.rule)).collect()
    }

    #[test]
    fn panics_are_for_tests() {
        let text = "fn a() { b().unwrap(); }\n#[cfg(test)]\nmod tests {\n fn c() { d().unwrap(); }\n}\n";
        assert_eq!(rules("crates/a/src/lib.rs", text), [(1, "no panics outside tests")]);
        assert!(rules("crates/a/tests/it/main.rs", text).is_empty());
    }

    #[test]
    fn sleeps_are_not_for_tests() {
        let text = "async fn a() { tokio::time::sleep(SECOND).await; pg_sleep(1); }";
        assert!(rules("crates/a/src/lib.rs", text).is_empty());
        assert_eq!(rules("crates/a/tests/it/a.rs", text), [(1, "no sleeps in tests")]);
    }

    #[test]
    fn what_is_in_strings_and_comments_is_not_code() {
        let text = "// todo!()\nconst A: &str = \"x.unwrap() todo!()\";";
        assert!(rules("crates/a/src/lib.rs", text).is_empty());
        assert_eq!(rules("crates/a/src/lib.rs", "fn a() { todo!() }"), [(1, "unfinished code")]);
    }

    #[test]
    fn ignored_and_allowed_are_found() {
        assert_eq!(rules("a.rs", "#[ignore = \"slow\"]"), [(1, "no ignored tests")]);
        assert_eq!(rules("a.rs", "#![allow(dead_code)]"), [(1, "expect, not allow")]);
    }

    #[test]
    fn domain_does_no_io() {
        let text = "use std::fs;";
        assert_eq!(rules("crates/domain/src/a.rs", text), [(1, "domain without IO")]);
        assert!(rules("crates/storage/src/a.rs", text).is_empty());
    }

    #[test]
    fn long_files_are_found() {
        let text = "\n".repeat(MAX_LINES + 1);
        assert_eq!(rules("a.sql", &text), [(0, "file length")]);
        assert!(rules("a.md", &text).is_empty());
    }

    #[test]
    fn paths_of_one_machine_are_found() {
        let home = format!("/{}/", "home");
        assert_eq!(rules("a.md", &format!("see {home}somebody/x")), [(1, "no machine's paths")]);
        assert!(rules("a.md", &format!("https://a.b{home}page")).is_empty());
        assert!(rules("a.rs", &format!("const A: &str = \"{home}linuxbrew/.linuxbrew/bin\";")).is_empty());
    }
}
