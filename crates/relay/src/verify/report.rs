//! What a comparison found, counted and by example.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use waybill_api::relay::v1 as proto;
use waybill_domain::{Kind, ProjectId};

/// Findings that a report lists one by one.
const EXAMPLES_MAX: usize = 100;

/// How a sink differs from Postgres.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FindingKind {
    Missing,
    Stale,
    Ahead,
    Orphan,
    WrongPayload,
    Unconfirmed,
    FalseClaim,
    MissingInQueue,
}

impl FindingKind {
    /// Names each kind, as it is counted.
    pub(crate) const NAMES: [&'static str; 8] =
        ["missing", "stale", "ahead", "orphan", "wrong_payload", "unconfirmed", "false_claim", "missing_in_queue"];
}

impl From<FindingKind> for proto::FindingKind {
    fn from(kind: FindingKind) -> Self {
        match kind {
            FindingKind::Missing => Self::Missing,
            FindingKind::Stale => Self::Stale,
            FindingKind::Ahead => Self::Ahead,
            FindingKind::Orphan => Self::Orphan,
            FindingKind::WrongPayload => Self::WrongPayload,
            FindingKind::Unconfirmed => Self::Unconfirmed,
            FindingKind::FalseClaim => Self::FalseClaim,
            FindingKind::MissingInQueue => Self::MissingInQueue,
        }
    }
}

/// A key that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) kind: FindingKind,
    pub(crate) key_kind: Kind,
    pub(crate) id: Uuid,
    pub(crate) project_id: Option<ProjectId>,
    pub(crate) row_version: Option<i64>,
    pub(crate) point_version: Option<i64>,
}

/// What was counted. Kept with a pass in the background, so that another relay can go on with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Tally {
    pub(crate) points: u64,
    pub(crate) rows: u64,
    pub(crate) requests: u64,
    pub(crate) undelivered: u64,
    pub(crate) repaired: u64,
    pub(crate) findings: BTreeMap<FindingKind, u64>,
}

impl Tally {
    /// Counts all findings.
    pub(crate) fn found(&self) -> u64 {
        self.findings.values().sum()
    }

    pub(crate) fn counts(&self) -> proto::VerifyCounts {
        proto::VerifyCounts {
            points: wire(self.points),
            rows: wire(self.rows),
            requests: wire(self.requests),
            undelivered: wire(self.undelivered),
            findings: wire(self.found()),
            repaired: wire(self.repaired),
        }
    }

    pub(crate) fn by_kind(&self) -> Vec<proto::FindingCount> {
        let count = |(kind, count): (&FindingKind, &u64)| proto::FindingCount {
            kind: proto::FindingKind::from(*kind).into(),
            count: wire(*count),
        };
        self.findings.iter().map(count).collect()
    }
}

/// Counts and examples.
#[derive(Debug, Clone, Default)]
pub(crate) struct Report {
    pub(crate) tally: Tally,
    pub(crate) examples: Vec<Finding>,
}

impl Report {
    pub(crate) fn add(&mut self, finding: &Finding) {
        *self.tally.findings.entry(finding.kind).or_default() += 1;
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(finding.clone());
        }
    }

    pub(crate) fn to_proto(&self, took: Duration) -> proto::VerifyReport {
        let finding = |finding: &Finding| proto::Finding {
            kind: proto::FindingKind::from(finding.kind).into(),
            key_kind: finding.key_kind.as_str().to_owned(),
            id: finding.id.to_string(),
            project_id: finding.project_id.map(|id| id.to_string()).unwrap_or_default(),
            row_version: finding.row_version,
            point_version: finding.point_version,
        };
        proto::VerifyReport {
            counts: Some(self.tally.counts()),
            by_kind: self.tally.by_kind(),
            findings: self.examples.iter().map(finding).collect(),
            took: prost_types::Duration::try_from(took).ok(),
        }
    }
}

fn wire(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
