//! `waybill verify` and `waybill recover`.

use std::fmt::Write as _;

use console::style;
use serde_json::{Value, json};
use tonic::Streaming;
use waybill_api::relay::v1::{
    Finding, FindingCount, FindingKind, RecoverRequest, VerifyConsistencyRequest, VerifyConsistencyResponse,
    VerifyCounts, VerifyReport, verify_consistency_response::Step,
};

use super::gauge::Gauge;
use crate::cli::{EndpointArgs, RecoverArgs, VerifyArgs};
use crate::client::{self, Target};
use crate::exit::{self, NoVerdict};
use crate::out::{Out, ReaderGone};
use crate::text;

/// Ids that the table shows of each kind.
const EXAMPLES: usize = 3;

/// Runs `waybill verify`. Returns the exit code.
pub(crate) async fn verify(args: VerifyArgs) -> anyhow::Result<u8> {
    let request = Ask::Verify(VerifyConsistencyRequest {
        project: args.project.clone().unwrap_or_default(),
        repair: args.repair,
    });
    conclude(run(request, &args.endpoint, args.json).await)
}

/// Runs `waybill recover`. Returns the exit code.
pub(crate) async fn recover(args: RecoverArgs) -> anyhow::Result<u8> {
    let request = Ask::Recover(RecoverRequest { project: args.project.clone() });
    conclude(run(request, &args.endpoint, args.json).await)
}

/// Keeps 1 for drift.
fn conclude(code: anyhow::Result<u8>) -> anyhow::Result<u8> {
    code.map_err(|error| if error.is::<ReaderGone>() { error } else { error.context(NoVerdict) })
}

enum Ask {
    Verify(VerifyConsistencyRequest),
    Recover(RecoverRequest),
}

async fn run(ask: Ask, endpoint: &EndpointArgs, as_json: bool) -> anyhow::Result<u8> {
    let (mut client, target) = client::relay(endpoint.endpoint.as_deref(), endpoint)?;
    let answers = match ask {
        Ask::Verify(request) => client.verify_consistency(request).await,
        Ask::Recover(request) => client.recover(request).await,
    };
    let answers = answers.map_err(|status| target.explain(&status))?.into_inner();
    let report = follow(answers, &target).await?;
    let mut out = Out::new();
    if as_json {
        out.json(&as_value(&report))?;
    } else {
        out.text(&table(&report))?;
    }
    out.flush()?;
    let counts = report.counts.unwrap_or_default();
    Ok(if counts.findings > counts.repaired { exit::FAILED } else { 0 })
}

async fn follow(mut answers: Streaming<VerifyConsistencyResponse>, target: &Target) -> anyhow::Result<VerifyReport> {
    let mut gauge = Gauge::new();
    loop {
        let answer = answers.message().await.map_err(|status| target.explain(&status))?;
        match answer.and_then(|answer| answer.step) {
            Some(Step::Progress(progress)) => {
                let counts = progress.counts.unwrap_or_default();
                let rows = text::count((counts.rows + counts.requests).unsigned_abs());
                let found = text::count(counts.findings.unsigned_abs());
                gauge.see(progress.share, &format!("{rows} rows compared, {found} differ"));
            }
            Some(Step::Report(report)) => return Ok(report),
            None => anyhow::bail!("the relay ended the comparison without a report"),
        }
    }
}

fn table(report: &VerifyReport) -> String {
    let counts = report.counts.unwrap_or_default();
    let mut table = String::new();
    if !report.by_kind.is_empty() {
        let heading = format!("{:<16} {:>10}  EXAMPLES", "DIFFERENCE", "KEYS");
        // Writing to a String can't fail.
        let _ = writeln!(table, "{}", style(heading).bold());
    }
    for counted in &report.by_kind {
        let examples = report.findings.iter().filter(|finding| finding.kind == counted.kind);
        let count = text::count(counted.count.unsigned_abs());
        for (index, finding) in examples.take(EXAMPLES).enumerate() {
            let (name, count) = if index == 0 { (name(counted.kind()), count.as_str()) } else { ("", "") };
            let _ = writeln!(table, "{name:<16} {count:>10}  {}", example(finding));
        }
        if !report.findings.iter().any(|finding| finding.kind == counted.kind) {
            let _ = writeln!(table, "{:<16} {count:>10}  -", name(counted.kind()));
        }
    }
    let _ = writeln!(table, "{}", verdict(&counts));
    let took = report.took.as_ref().map(super::status::duration).unwrap_or_default();
    let _ = write!(
        table,
        "{} rows, {} points and {} open requests compared in {}",
        text::count(counts.rows.unsigned_abs()),
        text::count(counts.points.unsigned_abs()),
        text::count(counts.requests.unsigned_abs()),
        text::span(took),
    );
    if counts.undelivered > 0 {
        let _ = write!(table, "; {} still on their way, not compared", text::count(counts.undelivered.unsigned_abs()));
    }
    table.push('\n');
    table
}

fn verdict(counts: &VerifyCounts) -> String {
    let found = text::count(counts.findings.unsigned_abs());
    if counts.findings == 0 {
        style("equal").green().to_string()
    } else if counts.repaired >= counts.findings {
        style(format!("{found} differed and are delivered again")).yellow().to_string()
    } else {
        format!("{} (--repair has them delivered again)", style(format!("{found} differ")).red())
    }
}

fn example(finding: &Finding) -> String {
    let versions = match (finding.row_version, finding.point_version) {
        (Some(row), Some(point)) if row != point => format!("  row {row}, point {point}"),
        _ => String::new(),
    };
    format!("{} {}{versions}", text::one_line(&finding.key_kind), text::one_line(&finding.id))
}

const fn name(kind: FindingKind) -> &'static str {
    match kind {
        FindingKind::Unspecified => "unknown",
        FindingKind::Missing => "missing",
        FindingKind::Stale => "stale",
        FindingKind::Ahead => "ahead",
        FindingKind::Orphan => "orphan",
        FindingKind::WrongPayload => "wrong_payload",
        FindingKind::Unconfirmed => "unconfirmed",
        FindingKind::FalseClaim => "false_claim",
        FindingKind::MissingInQueue => "missing_in_queue",
    }
}

/// Findings counted by kind, as a JSON object.
pub(super) fn by_kind(counts: &[FindingCount]) -> Value {
    counts.iter().map(|counted| (name(counted.kind()).to_owned(), json!(counted.count))).collect()
}

fn as_value(report: &VerifyReport) -> Value {
    let counts = report.counts.unwrap_or_default();
    let findings = report.findings.iter().map(|finding| {
        json!({
            "kind": name(finding.kind()),
            "key_kind": finding.key_kind,
            "id": finding.id,
            "project_id": finding.project_id,
            "row_version": finding.row_version,
            "point_version": finding.point_version,
        })
    });
    json!({
        "equal": counts.findings == 0,
        "rows": counts.rows,
        "points": counts.points,
        "requests": counts.requests,
        "undelivered": counts.undelivered,
        "finding_count": counts.findings,
        "repaired_count": counts.repaired,
        "by_kind": by_kind(&report.by_kind),
        "findings": findings.collect::<Vec<_>>(),
        "took_s": report.took.as_ref().map(|took| super::status::duration(took).as_secs_f64()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(repaired: i64) -> VerifyReport {
        let finding = |n: i32| Finding {
            kind: FindingKind::Stale.into(),
            key_kind: "chunk".to_owned(),
            id: format!("id-{n}"),
            row_version: Some(9),
            point_version: Some(4),
            ..Finding::default()
        };
        VerifyReport {
            counts: Some(VerifyCounts {
                rows: 1_234,
                points: 1_230,
                findings: 5,
                repaired,
                undelivered: 7,
                requests: 0,
            }),
            by_kind: vec![FindingCount { kind: FindingKind::Stale.into(), count: 5 }],
            findings: (0..5).map(finding).collect(),
            took: None,
        }
    }

    #[test]
    fn the_table_says_what_differs_with_some_examples() {
        let table = table(&report(0));
        for part in ["stale", "id-0", "id-2", "row 9, point 4", "5 differ", "--repair", "1,234 rows", "7 still"] {
            assert!(table.contains(part), "{part} in {table}");
        }
        assert!(!table.contains("id-3"), "{table}");
        assert!(super::table(&report(5)).contains("delivered again"));
        assert!(super::table(&VerifyReport::default()).starts_with("equal"));
    }

    #[test]
    fn json_has_everything() {
        let value = as_value(&report(0));
        assert_eq!((&value["equal"], &value["by_kind"]["stale"]), (&json!(false), &json!(5)));
        assert_eq!(value["findings"][4]["id"], json!("id-4"));
    }
}
