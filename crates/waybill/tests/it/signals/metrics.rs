//! docs/metrics.md and the endpoint of a running system say the same.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use waybill_testkit::eventually;

use super::http;
use crate::place::{Place, UP_LIMIT};

/// Words that the names of areas are made of.
const AREAS: [&str; 13] = [
    "auth",
    "build",
    "component",
    "embedding",
    "grpc",
    "ingestion",
    "job",
    "jobs",
    "llm",
    "postgres",
    "process",
    "qdrant",
    "redis",
];

/// A metric as it is documented, or as it is told.
#[derive(Debug, Default, PartialEq, Eq)]
struct Metric {
    kind: String,
    labels: BTreeSet<String>,
}

type Metrics = BTreeMap<String, Metric>;

/// Reads the rows of docs/metrics.md that are about metrics.
fn documented() -> Metrics {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let text = std::fs::read_to_string(workspace.join("docs/metrics.md")).unwrap();
    let ticked = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let rows = text.lines().filter(|line| line.starts_with("| `waybill_"));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        assert!(cells.len() == 6 && !cells[4].is_empty(), "metric, type, labels and meaning: {row}");
        let labels = ticked(cells[3]).into_iter().collect();
        (ticked(cells[1]).remove(0), Metric { kind: cells[2].to_owned(), labels })
    })
    .collect()
}

/// Reads what a scrape returns.
fn told(scrape: &str) -> Metrics {
    let mut metrics = Metrics::new();
    for line in scrape.lines() {
        if let Some(line) = line.strip_prefix("# TYPE ") {
            let (name, kind) = line.split_once(' ').unwrap();
            metrics.insert(name.to_owned(), Metric { kind: kind.to_owned(), ..Metric::default() });
        } else if !line.starts_with('#') {
            let (series, value) = line.rsplit_once(' ').unwrap();
            value.parse::<f64>().unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| {
                name.strip_suffix(suffix).filter(|family| metrics.get(*family).is_some_and(|m| m.kind == "histogram"))
            });
            let labels = labels.trim_end_matches('}').split(',').filter_map(|pair| Some(pair.split_once('=')?.0));
            let metric = metrics.get_mut(family.unwrap_or(name)).unwrap();
            metric.labels.extend(labels.filter(|label| *label != "le").map(str::to_owned));
        }
    }
    metrics
}

/// How many series a metric has, buckets left out.
fn series(scrape: &str, name: &str) -> usize {
    let begins = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
    scrape.lines().filter(begins).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_endpoint_tells_what_is_documented_and_nothing_else() {
    let documented = documented();
    let place = Place::new();
    let _up = place.up().await;
    let admin = place.endpoints()["admin"].as_str().unwrap().to_owned();
    let docs = place.dir().join("docs");
    std::fs::create_dir_all(&docs).unwrap();
    for (name, text) in [("a.txt", "A cat sleeps most of the day."), ("b.txt", "A train runs on rails.")] {
        std::fs::write(docs.join(name), text).unwrap();
    }
    place.run(&["import", docs.to_str().unwrap(), "--project", "p", "--wait"]).await.expect_code(0);
    place.run(&["extract", "--project", "p"]).await.expect_code(0);
    place.run(&["search", "cat", "--project", "p"]).await.expect_code(0);
    // A caller who makes names up makes no series.
    place.run(&["search", "cat", "--project", "p", "--endpoint", &admin]).await;

    let mut scrape = String::new();
    eventually("everything that is documented is told", UP_LIMIT, async || {
        scrape = http::get(&admin, "/metrics").await.1;
        let told = told(&scrape);
        documented.keys().all(|name| told.contains_key(name))
    })
    .await;

    let told = told(&scrape);
    for (name, metric) in &told {
        let row = documented.get(name).unwrap_or_else(|| panic!("{name} is not in docs/metrics.md"));
        assert_eq!(metric, row, "{name}");
    }
    for (name, metric) in &documented {
        let area = name.split('_').nth(1).unwrap();
        assert!(AREAS.contains(&area) || ["relay", "search"].contains(&area), "{name}");
        assert_eq!(name.ends_with("_total"), metric.kind == "counter", "{name}");
        assert!(metric.kind != "histogram" || has_unit(name), "{name} names no unit");
        // Sinks, states, operations: whatever the label, this system has few of them.
        assert!(series(&scrape, name) <= 64, "{name} has too many series");
    }
    // Every description says something.
    for name in told.keys() {
        let help = scrape.lines().find_map(|line| line.strip_prefix(&format!("# HELP {name} ")));
        assert!(help.is_some_and(|help| help.len() > 10), "{name}");
    }
}

fn has_unit(name: &str) -> bool {
    ["_seconds", "_keys", "_texts", "_ratio"].iter().any(|unit| name.ends_with(unit))
}
