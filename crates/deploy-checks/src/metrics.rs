//! Which metrics there are: docs/metrics.md lists them, and what exposes them is tested against it.

use std::collections::{BTreeMap, BTreeSet};

/// What a histogram is exposed as.
const PARTS: [&str; 3] = ["_bucket", "_count", "_sum"];

/// The metrics that are documented.
#[derive(Debug)]
pub struct Documented {
    plain: BTreeSet<String>,
    histograms: BTreeSet<String>,
    /// What stands in backticks in the section of each: the values of its labels among it.
    said: BTreeMap<String, BTreeSet<String>>,
}

impl Documented {
    /// Reads docs/metrics.md: tables with the name in backticks first, then the type.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn read() -> anyhow::Result<Self> {
        Ok(Self::parse(&crate::read("docs/metrics.md")?))
    }

    fn parse(text: &str) -> Self {
        let mut documented = Self { plain: BTreeSet::new(), histograms: BTreeSet::new(), said: BTreeMap::new() };
        for section in text.split("\n## ") {
            let said: BTreeSet<_> = section.split('`').skip(1).step_by(2).map(str::to_owned).collect();
            for line in section.lines().filter(|line| line.starts_with("| `waybill_")) {
                let mut cells = line.split('|').map(str::trim).skip(1);
                let name = cells.next().unwrap_or_default().trim_matches('`').to_owned();
                let is_histogram = cells.next().is_some_and(|kind| kind.contains("histogram"));
                let set = if is_histogram { &mut documented.histograms } else { &mut documented.plain };
                set.insert(name.clone());
                documented.said.insert(name, said.clone());
            }
        }
        documented
    }

    /// Tells whether a series of this name is exposed. A histogram is not, but its parts are.
    #[must_use]
    pub fn has(&self, series: &str) -> bool {
        let is_part =
            || PARTS.iter().filter_map(|part| series.strip_suffix(part)).any(|name| self.histograms.contains(name));
        self.plain.contains(series) || is_part()
    }

    /// Tells whether the section of a series names a value of a label.
    #[must_use]
    pub fn names_value(&self, series: &str, value: &str) -> bool {
        let metric =
            PARTS.iter().find_map(|part| series.strip_suffix(part)).filter(|name| self.histograms.contains(*name));
        self.said.get(metric.unwrap_or(series)).is_some_and(|said| said.contains(value))
    }

    /// Lists what is documented, as it stands there.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.plain.iter().chain(&self.histograms).map(String::as_str)
    }
}

/// Finds the series of ours that an expression names.
#[must_use]
pub fn series(expression: &str) -> BTreeSet<&str> {
    expression
        .split(|character: char| !character.is_ascii_alphanumeric() && character != '_')
        .filter(|word| word.starts_with("waybill_"))
        .collect()
}

/// Finds the labels that an expression asks to have one value: series, label and value.
#[must_use]
pub fn wanted_values(expression: &str) -> Vec<(&str, &str, &str)> {
    let mut found = Vec::new();
    for (at, _) in expression.match_indices("waybill_") {
        let rest = expression.get(at..).unwrap_or_default();
        let end = rest.find(|character: char| !character.is_ascii_alphanumeric() && character != '_');
        let (series, rest) = rest.split_at(end.unwrap_or(rest.len()));
        let Some(inside) = rest.strip_prefix('{').and_then(|rest| rest.split('}').next()) else { continue };
        for matcher in inside.split(',') {
            // `!=` wants another value, `=~` has a pattern.
            let pair = matcher.split_once("!=").or_else(|| matcher.split_once('='));
            if let Some((label, value)) = pair.filter(|(_, value)| value.starts_with('"')) {
                found.push((series, label.trim(), value.trim_matches('"')));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_is_known_by_its_parts() {
        let text = "| metric | type |\n| `waybill_a` | gauge | x |\n| `waybill_b_seconds` | histogram | |\n";
        let documented = Documented::parse(text);
        assert!(documented.has("waybill_a") && documented.has("waybill_b_seconds_bucket"));
        assert!(!documented.has("waybill_b_seconds") && !documented.has("waybill_a_sum"));
    }

    #[test]
    fn values_are_found_and_known() {
        let wanted = wanted_values("rate(waybill_a{x=\"1\", y=~\"a|b\",z!=\"3\"}[5m]) + waybill_b");
        assert_eq!(wanted, [("waybill_a", "x", "1"), ("waybill_a", "z", "3")]);
        let documented = Documented::parse("| `waybill_b_seconds` | histogram | x | `one` |\n");
        assert!(documented.names_value("waybill_b_seconds_count", "one"));
        assert!(!documented.names_value("waybill_b_seconds_count", "two"));
    }

    #[test]
    fn series_are_found_in_expressions() {
        let found = series("sum by (sink) (rate(waybill_a_total{sink=\"x\"}[5m])) / other_b > waybill_c");
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["waybill_a_total", "waybill_c"]);
    }
}
