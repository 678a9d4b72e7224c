//! The dashboard: queries that Prometheus can read, over metrics that are exposed, and all of them.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::Value;
use waybill_deploy_checks::metrics::{Documented, series, wanted_values};
use waybill_deploy_checks::tools::Tool;
use waybill_deploy_checks::{read, yaml};

const DASHBOARD: &str = "deploy/grafana/waybill.json";

/// Metrics that say nothing on a screen, each with its reason. None so far.
const NOT_SHOWN: [&str; 0] = [];

/// Grafana's grid.
const COLUMNS: i64 = 24;

fn dashboard() -> Value {
    serde_json::from_str(&read(DASHBOARD).unwrap()).unwrap()
}

fn panels() -> Vec<Value> {
    let all = yaml::list(&dashboard(), "/panels").to_vec();
    all.into_iter().filter(|panel| yaml::text(panel, "/type") != "row").collect()
}

/// Each query: the panel's title, the expression and the legend.
fn queries() -> Vec<(String, String, String)> {
    let mut queries = Vec::new();
    for panel in panels() {
        for target in yaml::list(&panel, "/targets") {
            let text = |path: &str| yaml::text(target, path).to_owned();
            queries.push((yaml::text(&panel, "/title").to_owned(), text("/expr"), text("/legendFormat")));
        }
    }
    for note in yaml::list(&dashboard(), "/annotations/list") {
        queries.push((yaml::text(note, "/name").to_owned(), yaml::text(note, "/expr").to_owned(), String::new()));
    }
    queries
}

#[test]
fn prometheus_can_read_each_query() {
    let mut rules = String::from("groups:\n  - name: dashboard\n    rules:\n");
    for (index, (_, expression, _)) in queries().iter().enumerate() {
        let filled = expression.replace("$__rate_interval", "5m").replace("$namespace", ".*").replace("$sink", ".*");
        assert!(!filled.contains('$'), "a variable that Grafana has not: {filled}");
        let quoted = Value::from(filled);
        write!(rules, "      - record: dashboard:query:{index}\n        expr: {quoted}\n").unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("queries.yaml");
    std::fs::write(&file, rules).unwrap();
    Tool::Promtool.run(["check".into(), "rules".into(), file.into_os_string()]).unwrap().stdout().unwrap();
}

#[test]
fn queries_are_over_metrics_that_are_exposed_and_all_of_them_are_shown() {
    let documented = Documented::read().unwrap();
    let mut shown = BTreeSet::new();
    for (title, expression, _) in queries() {
        let found = series(&expression);
        assert!(!found.is_empty() || expression.starts_with("ALERTS"), "{title}: no metric of ours");
        for series in found {
            assert!(documented.has(series), "{title}: {series} is not in docs/metrics.md");
            shown.insert(series.to_owned());
        }
        for (series, label, value) in wanted_values(&expression) {
            let is_known = label == "method" || documented.names_value(series, value);
            assert!(is_known, "{title}: docs/metrics.md does not say that {label} of {series} can be `{value}`");
        }
    }
    let is_shown = |name: &str| {
        shown.iter().any(|series| {
            series == name || ["_bucket", "_count", "_sum"].iter().any(|part| *series == format!("{name}{part}"))
        })
    };
    let missing: Vec<_> = documented.names().filter(|name| !is_shown(name) && !NOT_SHOWN.contains(name)).collect();
    assert!(missing.is_empty(), "docs/metrics.md has what no panel shows: {missing:?}");
}

/// A label that was summed away would leave a hole in the legend.
#[test]
fn legends_name_labels_that_are_there() {
    for (title, expression, legend) in queries() {
        let kept: BTreeSet<_> = expression
            .split("by (")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
            .flat_map(|labels| labels.split(',').map(str::trim))
            .collect();
        for label in legend.split("{{").skip(1).filter_map(|rest| rest.split("}}").next()) {
            assert!(kept.contains(label), "{title}: {{{{{label}}}}} is in no `by` of {expression}");
        }
    }
}

#[test]
fn panels_say_what_they_show_and_stand_side_by_side() {
    let dashboard = dashboard();
    assert_eq!(yaml::text(&dashboard, "/uid"), "waybill");
    let rows: Vec<_> =
        yaml::list(&dashboard, "/panels").iter().filter(|panel| yaml::text(panel, "/type") == "row").collect();
    let titles: Vec<_> = rows.iter().map(|row| yaml::text(row, "/title")).collect();
    assert_eq!(titles, ["Delivery", "Queue and workers", "Embedding and search", "API", "Stores"]);

    let mut ids = BTreeSet::new();
    let mut cells = BTreeSet::new();
    for panel in yaml::list(&dashboard, "/panels") {
        let title = yaml::text(panel, "/title");
        assert!(ids.insert(yaml::at(panel, "/id").as_i64()), "{title}: another has its id");
        let place = |name: &str| yaml::at(panel, &format!("/gridPos/{name}")).as_i64().unwrap();
        assert!(place("x") + place("w") <= COLUMNS, "{title}: sticks out");
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(cells.insert((x, y)), "{title}: lies on another");
            }
        }
    }
    let mut titles = BTreeSet::new();
    for panel in panels() {
        let title = yaml::text(&panel, "/title");
        assert!(titles.insert(title.to_owned()), "two panels are called {title:?}");
        assert!(yaml::text(&panel, "/description").len() > 10, "{title}: says not what it shows");
        assert!(!yaml::text(&panel, "/fieldConfig/defaults/unit").is_empty(), "{title}: no unit");
        assert_eq!(yaml::text(&panel, "/datasource/uid"), "${datasource}", "{title}: the data source of one machine");
        assert!(!yaml::list(&panel, "/targets").is_empty(), "{title}: no query");
        for target in yaml::list(&panel, "/targets") {
            assert_eq!(yaml::text(target, "/datasource/uid"), "${datasource}", "{title}");
            assert!(
                yaml::text(target, "/expr").contains("namespace=~\"$namespace\""),
                "{title}: shows every installation"
            );
        }
    }
}

/// Who is woken by an alert finds what it is about.
#[test]
fn what_alerts_are_about_is_shown() {
    let rules = yaml::document(&read("deploy/prometheus/waybill.rules.yaml").unwrap()).unwrap();
    let shown: BTreeSet<_> =
        queries().iter().flat_map(|(_, expression, _)| series(expression)).map(str::to_owned).collect();
    for alert in yaml::list(&rules, "/groups/0/rules") {
        for series in series(yaml::text(alert, "/expr")) {
            assert!(shown.contains(series), "{}: no panel shows {series}", yaml::text(alert, "/alert"));
        }
    }
}
