//! Rules of this project that neither the compiler nor clippy holds.
//!
//! Every finding says where, which rule, and what to do about it.

mod arrows;
mod lexer;
mod manifest;
mod offline;
mod readme;
mod source;

use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::sh;

/// A place where a rule is broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Path from the workspace's folder.
    file: String,
    /// Line from 1; 0 if it is about the file as a whole.
    line: usize,
    rule: &'static str,
    /// What was found there.
    what: String,
    fix: String,
}

impl Finding {
    fn new(file: &str, line: usize, rule: &'static str, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line, rule, what: what.into(), fix: fix.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.file)?;
        if self.line > 0 {
            write!(formatter, ":{}", self.line)?;
        }
        write!(formatter, ": {}: {}\n    fix: {}", self.rule, self.what, self.fix)
    }
}

/// A text file of the repository.
#[derive(Debug)]
pub(crate) struct TextFile {
    /// Path from the workspace's folder, with `/`.
    path: String,
    text: String,
}

/// Checks the whole repository.
///
/// # Errors
/// If a rule is broken; each finding has been printed.
pub(crate) fn run() -> anyhow::Result<()> {
    let root = sh::root();
    let files = read_files(&root)?;
    let metadata = sh::output(sh::cargo().args(["metadata", "--format-version", "1", "--no-deps", "--offline"]))?;

    let mut findings = arrows::check(&arrows::read(&metadata)?);
    for file in &files {
        findings.extend(source::check(file));
        findings.extend(manifest::check(file));
    }
    findings.extend(offline::check(&files));
    findings.extend(readme::check(&files));

    findings.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
    for finding in &findings {
        sh::print(&format!("{finding}\n"))?;
    }
    if !findings.is_empty() {
        bail!("{} places to tidy in {} files", findings.len(), files.len());
    }
    sh::print(&format!("tidy: {} files, nothing to do\n", files.len()))
}

/// Reads what git knows or would take up, so that build products are never looked at.
fn read_files(root: &Path) -> anyhow::Result<Vec<TextFile>> {
    let mut git = Command::new("git");
    git.current_dir(root).args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"]);
    let listed = sh::output(&mut git).context("list the repository's files")?;
    let mut files = Vec::new();
    for path in listed.split('\0').filter(|path| !path.is_empty()) {
        // One that is deleted but still listed, or is not text, has nothing to say.
        if let Ok(text) = std::fs::read_to_string(root.join(path)) {
            files.push(TextFile { path: path.to_owned(), text });
        }
    }
    Ok(files)
}
