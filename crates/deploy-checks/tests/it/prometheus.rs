//! Alerts: valid, tried in both directions, about metrics that exist, and each with its runbook.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use waybill_deploy_checks::metrics::{Documented, series, wanted_values};
use waybill_deploy_checks::tools::Tool;
use waybill_deploy_checks::{read, workspace, yaml};

const RULES: &str = "deploy/prometheus/waybill.rules.yaml";
const CASES: &str = "deploy/prometheus/waybill.rules.test.yaml";

/// What a runbook has to say.
const SECTIONS: [&str; 5] =
    ["## What it says", "## What it costs", "## Find out why", "## What to do", "## When it is over"];

fn alerts() -> Vec<Value> {
    let rules = yaml::document(&read(RULES).unwrap()).unwrap();
    let groups = yaml::list(&rules, "/groups").iter();
    groups.flat_map(|group| yaml::list(group, "/rules").to_vec()).collect()
}

fn cases() -> Vec<Value> {
    let cases = yaml::document(&read(CASES).unwrap()).unwrap();
    yaml::list(&cases, "/tests").to_vec()
}

fn name(alert: &Value) -> &str {
    yaml::text(alert, "/alert")
}

/// `WaybillNoRelay` is described in `waybill-no-relay.md`.
fn kebab(name: &str) -> String {
    let mut kebab = String::new();
    for character in name.chars() {
        if character.is_ascii_uppercase() && !kebab.is_empty() {
            kebab.push('-');
        }
        kebab.push(character.to_ascii_lowercase());
    }
    kebab
}

#[test]
fn promtool_accepts_the_rules() {
    Tool::Promtool.run(["check", "rules", "--lint-fatal", RULES]).unwrap().stdout().unwrap();
}

#[test]
fn promtool_finds_each_case_as_it_should_be() {
    Tool::Promtool.run(["test", "rules", CASES]).unwrap().stdout().unwrap();
}

#[test]
fn prometheus_of_the_compose_file_is_configured() {
    let args = ["check", "config", "--syntax-only", "deploy/prometheus/prometheus.yml"];
    Tool::Promtool.run(args).unwrap().stdout().unwrap();
}

/// The moments at which a case looks at an alert.
fn moments<'a>(case: &'a Value, alert: &str) -> Vec<&'a Value> {
    yaml::list(case, "/alert_rule_test").iter().filter(|one| yaml::text(one, "/alertname") == alert).collect()
}

fn is_silent(moment: &&Value) -> bool {
    yaml::list(moment, "/exp_alerts").is_empty()
}

#[test]
fn each_alert_has_a_case_that_fires_and_one_that_is_silent() {
    for alert in alerts() {
        let name = name(&alert);
        let all: Vec<_> = cases().into_iter().filter(|case| !moments(case, name).is_empty()).collect();
        let silent = all.iter().filter(|case| moments(case, name).iter().all(is_silent)).count();
        assert!(silent > 0, "{name} has no case in which it is silent all the time");
        assert!(silent < all.len(), "{name} has no case in which it fires");
    }
    let names: Vec<_> = alerts().iter().map(|alert| name(alert).to_owned()).collect();
    for case in cases() {
        for moment in yaml::list(&case, "/alert_rule_test") {
            let name = yaml::text(moment, "/alertname");
            assert!(names.iter().any(|known| known == name), "there is no alert {name}");
        }
    }
}

/// Each alert waits for as long as it says: if it did not, one of its cases would notice.
#[test]
fn cases_notice_an_alert_that_does_not_wait() {
    let folder = tempfile::tempdir().unwrap();
    let cases_path = folder.path().join("cases.yaml");
    for alert in alerts().iter().filter(|alert| alert.get("for").is_some()) {
        let mut hasty = alert.clone();
        hasty.as_object_mut().unwrap().remove("for");
        let rules = json!({"groups": [{"name": "one", "rules": [hasty]}]});
        std::fs::write(folder.path().join("rules.yaml"), rules.to_string()).unwrap();
        let own: Vec<_> = cases().into_iter().filter(|case| !moments(case, name(alert)).is_empty()).collect();
        let file = json!({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": own});
        std::fs::write(&cases_path, file.to_string()).unwrap();
        let ran = Tool::Promtool.run(["test".into(), "rules".into(), cases_path.clone().into_os_string()]).unwrap();
        assert!(!ran.is_success, "no case notices that {} does not wait", name(alert));
        assert!(format!("{}{}", ran.stdout, ran.stderr).contains("FAILED"), "{ran:?}");
    }
}

/// Without its metrics an alert is silent whatever it says.
#[test]
fn a_silent_case_has_the_metrics_of_its_alert() {
    let expressions: BTreeMap<_, _> =
        alerts().iter().map(|alert| (name(alert).to_owned(), yaml::text(alert, "/expr").to_owned())).collect();
    for alert in expressions.keys() {
        let mut given = BTreeSet::new();
        for case in cases() {
            let moments = moments(&case, alert);
            if !moments.is_empty() && moments.iter().all(is_silent) {
                for input in yaml::list(&case, "/input_series") {
                    given.extend(series(yaml::text(input, "/series")).into_iter().map(str::to_owned));
                }
            }
        }
        for wanted in series(&expressions[alert]) {
            assert!(given.contains(wanted), "no silent case of {alert} has {wanted}");
        }
    }
}

#[test]
fn alerts_are_about_metrics_that_are_exposed() {
    let documented = Documented::read().unwrap();
    assert!(documented.names().count() > 50, "docs/metrics.md lists few metrics: has its form changed?");
    for alert in alerts() {
        for series in series(yaml::text(&alert, "/expr")) {
            assert!(documented.has(series), "{}: {series} is not in docs/metrics.md", name(&alert));
        }
        for (series, label, value) in wanted_values(yaml::text(&alert, "/expr")) {
            // Methods are those of the protos.
            let is_known = label == "method" || documented.names_value(series, value);
            assert!(
                is_known,
                "{}: docs/metrics.md does not say that {label} of {series} can be `{value}`",
                name(&alert)
            );
        }
    }
    for case in cases() {
        for input in yaml::list(&case, "/input_series") {
            for series in series(yaml::text(input, "/series")) {
                assert!(documented.has(series), "{CASES}: {series} is not in docs/metrics.md");
            }
        }
    }
}

#[test]
fn each_alert_says_what_and_how_bad_and_has_its_runbook() {
    let index = read("docs/runbooks/README.md").unwrap();
    let mut pages = BTreeSet::new();
    for alert in alerts() {
        let name = name(&alert);
        let severity = yaml::text(&alert, "/labels/severity");
        assert!(["warning", "critical"].contains(&severity), "{name}: severity {severity:?}");
        for annotation in ["summary", "description"] {
            assert!(!yaml::text(&alert, &format!("/annotations/{annotation}")).is_empty(), "{name}: {annotation}");
        }
        let file = format!("{}.md", kebab(name));
        let path = format!("docs/runbooks/{file}");
        assert_eq!(yaml::text(&alert, "/annotations/runbook_url"), path, "{name}");
        let page = read(&path).unwrap();
        assert!(page.starts_with(&format!("# {name}\n")), "{path}: the title is another");
        let found: Vec<_> = page.lines().filter(|line| line.starts_with("## ")).collect();
        assert_eq!(found, SECTIONS, "{path}: its sections");
        let line = format!("| [{name}]({file}) | {severity} |");
        assert!(index.contains(&line), "docs/runbooks/README.md lacks {line}");
        pages.insert(file);
    }
    for entry in std::fs::read_dir(workspace().join("docs/runbooks")).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        assert!(file == "README.md" || pages.contains(&file), "docs/runbooks/{file} is of no alert");
    }
}

/// A runbook that names a metric which is not there sends somebody astray at night.
#[test]
fn runbooks_name_metrics_that_are_exposed() {
    let documented = Documented::read().unwrap();
    let names: BTreeSet<_> = documented.names().map(str::to_owned).collect();
    for entry in std::fs::read_dir(workspace().join("docs/runbooks")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        for series in series(&text) {
            let is_there = documented.has(series) || names.contains(series);
            assert!(is_there, "{}: {series} is not in docs/metrics.md", path.display());
        }
    }
}
