//! The Dockerfile, taken apart.

/// A stage: its base, and its instructions.
#[derive(Debug)]
pub struct Stage {
    /// The image that it begins with.
    pub base: String,
    /// Keyword and rest of each instruction.
    pub instructions: Vec<(String, String)>,
}

/// Reads the stages, with `ARG`s from before the first one filled in.
#[must_use]
pub fn stages(text: &str) -> Vec<Stage> {
    let mut arguments: Vec<(String, String)> = Vec::new();
    let mut stages: Vec<Stage> = Vec::new();
    for (keyword, rest) in instructions(text) {
        let rest = arguments.iter().fold(rest, |rest, (name, value)| rest.replace(&format!("${{{name}}}"), value));
        match (keyword.as_str(), stages.last_mut()) {
            ("FROM", _) => {
                let base = rest.split_whitespace().next().unwrap_or_default().to_owned();
                stages.push(Stage { base, instructions: Vec::new() });
            }
            (_, Some(stage)) => stage.instructions.push((keyword, rest)),
            ("ARG", None) => {
                let (name, value) = rest.split_once('=').unwrap_or((&rest, ""));
                arguments.push((name.to_owned(), value.to_owned()));
            }
            _ => {}
        }
    }
    stages
}

fn instructions(text: &str) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let mut open = String::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        open.push_str(line.trim_end_matches('\\'));
        if !line.ends_with('\\') {
            let whole = std::mem::take(&mut open);
            let (keyword, rest) = whole.split_once(' ').unwrap_or((&whole, ""));
            all.push((keyword.to_owned(), rest.trim().to_owned()));
        }
    }
    all
}

impl Stage {
    /// Returns the rest of each instruction of a keyword.
    pub fn of<'a>(&'a self, keyword: &'a str) -> impl Iterator<Item = &'a str> {
        self.instructions.iter().filter(move |(name, _)| name == keyword).map(|(_, rest)| rest.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_taken_apart() {
        let text = "ARG V=1\nFROM a:${V} AS build\n# x\nRUN one \\\n    && two\nFROM b\nUSER 1\n";
        let stages = stages(text);
        assert_eq!(stages.iter().map(|stage| stage.base.as_str()).collect::<Vec<_>>(), ["a:1", "b"]);
        assert_eq!(stages[0].of("RUN").collect::<Vec<_>>(), ["one && two"]);
        assert_eq!(stages[1].of("USER").collect::<Vec<_>>(), ["1"]);
    }
}
