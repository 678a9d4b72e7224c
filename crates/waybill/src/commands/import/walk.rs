//! Which files of a folder are documents, in an order that is the same every time.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::report::Refusal;
use crate::cli::Format;

/// Deeper folders are a loop of mounts or links, not documents.
const MAX_DEPTH: usize = 64;

/// What is to be read, and what was left out.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) files: Vec<Found>,
    pub(super) skipped: Vec<Refusal>,
}

/// A file to be read.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    /// Its path below the folder that was named, with `/` between the parts.
    pub(super) name: String,
    pub(super) format: Format,
    pub(super) bytes: u64,
}

/// How files are chosen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// [`Format::Auto`] goes by the end of the name.
    pub(super) format: Format,
    /// Larger files are left out; JSON lines have this limit for each line.
    pub(super) max_bytes: u64,
}

/// Lists the documents at `path`, a folder or a file.
pub(super) fn plan(path: &Path, rules: Rules) -> anyhow::Result<Plan> {
    let metadata = fs::metadata(path).with_context(|| format!("look at {}", path.display()))?;
    let mut plan = Plan::default();
    if metadata.is_dir() {
        plan.folder(path, "", 0, rules).with_context(|| format!("list {}", path.display()))?;
    } else {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = name.unwrap_or_else(|| path.display().to_string());
        // Named by a person, so neither a dot nor an odd ending keeps it out.
        let rules = match by_name(&name) {
            None if rules.format == Format::Auto => Rules { format: Format::Text, ..rules },
            _ => rules,
        };
        plan.file(path.to_owned(), name, metadata.len(), rules);
    }
    Ok(plan)
}

impl Plan {
    /// Returns the size of everything to be read.
    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    fn folder(&mut self, dir: &Path, above: &str, depth: usize, rules: Rules) -> io::Result<()> {
        let mut entries = fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let Ok(file_name) = entry.file_name().into_string() else {
                let name = format!("{above}{}", entry.file_name().to_string_lossy());
                self.skip(name, "its name is not UTF-8");
                continue;
            };
            let name = format!("{above}{file_name}");
            if file_name.starts_with('.') {
                self.skip(name, "hidden");
                continue;
            }
            let is_link = entry.file_type()?.is_symlink();
            match fs::metadata(entry.path()) {
                Err(error) => self.skip(name, &format!("can't be read: {error}")),
                Ok(meta) if meta.is_dir() && is_link => self.skip(name, "a link to a folder"),
                Ok(meta) if meta.is_dir() && depth == MAX_DEPTH => self.skip(name, "too deep"),
                Ok(meta) if meta.is_dir() => {
                    let below = format!("{name}/");
                    if let Err(error) = self.folder(&entry.path(), &below, depth + 1, rules) {
                        self.skip(name, &format!("can't be listed: {error}"));
                    }
                }
                Ok(meta) if meta.is_file() => self.file(entry.path(), name, meta.len(), rules),
                Ok(_) => self.skip(name, "neither a file nor a folder"),
            }
        }
        Ok(())
    }

    fn file(&mut self, path: PathBuf, name: String, bytes: u64, rules: Rules) {
        let format = match rules.format {
            Format::Auto => by_name(&name),
            named => Some(named),
        };
        match format {
            None => self.skip(name, "not a text, markdown, HTML or JSONL file by its name"),
            Some(_) if bytes == 0 => self.skip(name, "empty"),
            Some(format) if format != Format::Jsonl && bytes > rules.max_bytes => {
                let mib = rules.max_bytes / (1024 * 1024);
                self.skip(name, &format!("larger than {mib} MiB (--max-size)"));
            }
            Some(format) => self.files.push(Found { path, name, format, bytes }),
        }
    }

    fn skip(&mut self, uri: String, reason: &str) {
        self.skipped.push(Refusal { uri, reason: reason.to_owned() });
    }
}

fn by_name(name: &str) -> Option<Format> {
    let extension = Path::new(name).extension()?.to_str()?.to_ascii_lowercase();
    match extension.as_str() {
        "txt" | "text" | "rst" | "adoc" | "org" => Some(Format::Text),
        "md" | "markdown" | "mdown" => Some(Format::Markdown),
        "html" | "htm" | "xhtml" => Some(Format::Html),
        "jsonl" | "ndjson" => Some(Format::Jsonl),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules { format: Format::Auto, max_bytes: 1024 * 1024 };

    fn names(plan: &Plan) -> Vec<&str> {
        plan.files.iter().map(|file| file.name.as_str()).collect()
    }

    fn write(dir: &Path, name: &str, body: &[u8]) {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, body).unwrap();
    }

    #[test]
    fn a_folder_is_listed_in_order_with_reasons_for_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.md", "a.txt", "sub/c.HTML", ".git/x.md", "image.png"] {
            write(dir.path(), name, b"x");
        }
        write(dir.path(), "empty.md", b"");
        write(dir.path(), "large.md", &vec![b'x'; 1024 * 1024 + 1]);
        std::os::unix::fs::symlink(dir.path(), dir.path().join("loop")).unwrap();

        let plan = plan(dir.path(), RULES).unwrap();
        assert_eq!(names(&plan), ["a.txt", "b.md", "sub/c.HTML"]);
        let skipped: Vec<_> = plan.skipped.iter().map(|skipped| skipped.uri.as_str()).collect();
        assert_eq!(skipped, [".git", "empty.md", "image.png", "large.md", "loop"]);
    }

    #[test]
    fn a_file_that_is_named_is_taken_whatever_its_name() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), ".notes", b"x");
        let plan = plan(&dir.path().join(".notes"), RULES).unwrap();
        assert_eq!(names(&plan), [".notes"]);
        assert_eq!(plan.files[0].format, Format::Text);
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error_that_names_it() {
        let error = plan(Path::new("/no/such/folder"), RULES).unwrap_err();
        assert!(format!("{error:#}").contains("/no/such/folder"), "{error:#}");
    }
}
