//! The committed answers of the database to the queries that are checked at compile time.
//!
//! `sqlx` finds them by the SHA-256 of the SQL, so whether they are all there can be told
//! from the source alone, without a database and without a build.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use super::{Finding, TextFile};

const RULE: &str = "offline query data";

const FIX: &str = "run `cargo xtask prepare` and commit crates/storage/.sqlx";

const FOLDER: &str = "crates/storage/.sqlx/";

/// Checks that each query has its file and each file its query.
pub(crate) fn check(files: &[TextFile]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut stored: BTreeMap<&str, &TextFile> = BTreeMap::new();
    for file in files {
        let name = file.path.strip_prefix(FOLDER).and_then(|name| name.strip_prefix("query-"));
        if let Some(hash) = name.and_then(|name| name.strip_suffix(".json")) {
            stored.insert(hash, file);
        }
    }
    let mut wanted = BTreeMap::new();
    for file in files {
        if file.path.starts_with("crates/storage/") && file.path.ends_with(".rs") {
            for query in queries(&file.text) {
                match query.sql {
                    Some(sql) => {
                        wanted.insert(hex::encode(Sha256::digest(sql.as_bytes())), (file, query.line));
                    }
                    None => findings.push(Finding::new(
                        &file.path,
                        query.line,
                        RULE,
                        "the SQL of this macro is not a plain string",
                        "write it as one string literal, so that its offline data can be found",
                    )),
                }
            }
        }
    }
    for (hash, (file, line)) in &wanted {
        if !stored.contains_key(hash.as_str()) {
            findings.push(Finding::new(&file.path, *line, RULE, "no data for this query", FIX));
        }
    }
    for (hash, file) in stored {
        if !wanted.contains_key(hash) {
            findings.push(Finding::new(&file.path, 0, RULE, "no query has this hash", FIX));
        }
    }
    findings
}

struct Query {
    line: usize,
    /// `None` if it is something else than one string literal.
    sql: Option<String>,
}

/// The macros of sqlx that check SQL, and whether the SQL is their second argument.
const MACROS: &[(&str, bool)] = &[("query!(", false), ("query_scalar!(", false), ("query_as!(", true)];

fn queries(text: &str) -> Vec<Query> {
    let mut found = Vec::new();
    for (name, is_second) in MACROS {
        for (at, _) in text.match_indices(name) {
            let line_start = text.get(..at).and_then(|before| before.rfind('\n')).map_or(0, |n| n + 1);
            let before = text.get(line_start..at).unwrap_or_default();
            let is_longer_name = before.ends_with(|last: char| last.is_alphanumeric() || last == '_');
            if is_longer_name || before.trim_start().starts_with("//") {
                continue;
            }
            let arguments = text.get(at + name.len()..).unwrap_or_default();
            let sql = if *is_second { after_comma(arguments) } else { Some(arguments) };
            let line = text.get(..at).unwrap_or_default().matches('\n').count() + 1;
            found.push(Query { line, sql: sql.and_then(literal) });
        }
    }
    found
}

/// Returns what follows the first argument, which is a type.
fn after_comma(arguments: &str) -> Option<&str> {
    let mut depth = 0_i32;
    for (at, character) in arguments.char_indices() {
        match character {
            '<' | '(' | '[' => depth += 1,
            '>' | ')' | ']' => depth -= 1,
            ',' if depth == 0 => return arguments.get(at + 1..),
            _ => {}
        }
    }
    None
}

/// Returns the value of the string literal that `text` begins with.
fn literal(text: &str) -> Option<String> {
    let text = text.trim_start();
    let (value, rest) = if let Some(raw) = text.strip_prefix('r') {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        let body = raw.get(hashes..)?.strip_prefix('"')?;
        let closing = format!("\"{}", "#".repeat(hashes));
        let end = body.find(&closing)?;
        (body.get(..end)?.to_owned(), body.get(end + closing.len()..)?)
    } else {
        unescape(text.strip_prefix('"')?)?
    };
    // `"a" + "b"` is one query to sqlx.
    match rest.trim_start().strip_prefix('+') {
        Some(more) => literal(more).map(|more| value + &more),
        None => Some(value),
    }
}

/// Returns the value of a string literal after its opening quote, and what follows it.
fn unescape(body: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = body.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, body.get(at + 1..)?)),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                't' => value.push('\t'),
                // A line that goes on: its indentation is left out.
                '\n' => {
                    let rest = characters.as_str().trim_start();
                    let (tail, after) = unescape(rest)?;
                    return Some((value + &tail, after));
                }
                plain @ ('"' | '\\' | '\'') => value.push(plain),
                _ => return None,
            },
            _ => value.push(character),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sql(text: &str) -> Vec<Option<String>> {
        queries(text).into_iter().map(|query| query.sql).collect()
    }

    #[test]
    fn queries_are_read_as_the_compiler_reads_them() {
        assert_eq!(sql("sqlx::query!(\"SELECT \\\"a\\\"\", x)"), [Some("SELECT \"a\"".to_owned())]);
        assert_eq!(sql("query_scalar!(\n  r#\"SELECT 1 AS \"x!\"\"#)"), [Some("SELECT 1 AS \"x!\"".to_owned())]);
        assert_eq!(sql("query_as!(Row::<A, B>, \"a \\\n   b\" + \"c\")"), [Some("a bc".to_owned())]);
        assert_eq!(sql("query!(SQL)"), [None]);
        assert_eq!(sql("// query!(SQL)\nmy_query!(SQL)"), []);
    }

    #[test]
    fn missing_and_stale_data_are_found() {
        let file = |path: &str, text: &str| TextFile { path: path.to_owned(), text: text.to_owned() };
        let hash = hex::encode(Sha256::digest(b"SELECT 1"));
        let source = file("crates/storage/src/a.rs", "sqlx::query!(\"SELECT 1\")");
        let data = file(&format!("{FOLDER}query-{hash}.json"), "{}");
        let stale = file(&format!("{FOLDER}query-00.json"), "{}");
        assert_eq!(check(&[source, data]), []);
        let source = file("crates/storage/src/a.rs", "\nsqlx::query!(\"SELECT 1\")");
        let places: Vec<_> = check(&[source, stale]).into_iter().map(|f| (f.line, f.what)).collect();
        assert_eq!(places, [(2, "no data for this query".to_owned()), (0, "no query has this hash".to_owned())]);
    }
}
