//! Whether a key is as it should be. Pure.

use serde_json::{Map, Value};
use waybill_storage::verify::{Claim, KeyState, MirroredRow};
use waybill_vectors::StoredPoint;

use super::report::FindingKind;

/// What is to be said of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Equal,
    /// It has changes that are still to be delivered.
    Undelivered,
    Drift(FindingKind),
}

/// Says whether the three sides agree at first sight. They are read at different times: where
/// they don't, [`judge`] has the word.
pub(crate) fn agree(point: Option<&StoredPoint>, row: Option<&MirroredRow>, claim: Option<&Claim>) -> bool {
    match (point, row) {
        (Some(point), Some(row)) => {
            let is_confirmed = claim.is_some_and(|claim| {
                !claim.deleted && !claim.void && claim.kind == row.kind && claim.version == row.version
            });
            is_confirmed && point.version == row.version && shows(point, row)
        }
        (None, None) => claim.is_none_or(|claim| claim.deleted),
        _ => false,
    }
}

/// Judges a key by what Postgres said of it in one snapshot, and by its point as it was after
/// that. Holds if Postgres says the same after the point was read.
pub(crate) fn judge(state: &KeyState, point: Option<&StoredPoint>) -> Verdict {
    match &state.row {
        Some(row) => judge_row(state, row, point),
        None => judge_gone(state, point),
    }
}

fn judge_gone(state: &KeyState, point: Option<&StoredPoint>) -> Verdict {
    match (point, state.claim) {
        (Some(point), claim) => {
            // Its last life is over, and the tombstone knew of it. A later one may have been
            // delivered and not been settled yet.
            let is_known = claim.is_some_and(|claim| claim.deleted && point.version <= claim.version);
            if state.pending && !is_known { Verdict::Undelivered } else { Verdict::Drift(FindingKind::Orphan) }
        }
        (None, Some(claim)) if !claim.deleted => {
            if state.pending {
                Verdict::Undelivered
            } else {
                Verdict::Drift(FindingKind::FalseClaim)
            }
        }
        (None, _) => Verdict::Equal,
    }
}

fn judge_row(state: &KeyState, row: &MirroredRow, point: Option<&StoredPoint>) -> Verdict {
    if state.pending {
        return Verdict::Undelivered;
    }
    let is_confirmed = state.is_confirmed();
    let kind = match point {
        Some(point) if point.version > row.version => FindingKind::Ahead,
        Some(point) if point.version < row.version => FindingKind::Stale,
        Some(point) if !shows(point, row) => FindingKind::WrongPayload,
        // One of a collection that was lost is as good as none.
        Some(_) if is_confirmed && !state.claim.is_some_and(|claim| claim.void) => return Verdict::Equal,
        Some(_) if is_confirmed => FindingKind::Unconfirmed,
        None if is_confirmed => FindingKind::Missing,
        // The point is right, or there is none. A tombstone of an earlier life is older than the
        // row; one that isn't, lies.
        _ if state.claim.is_some_and(|claim| claim.version >= row.version) => FindingKind::FalseClaim,
        _ => FindingKind::Unconfirmed,
    };
    Verdict::Drift(kind)
}

/// Says whether a point carries what the sink would write. The text is not in it.
fn shows(point: &StoredPoint, row: &MirroredRow) -> bool {
    point.project_id == Some(row.project_id)
        && point.kind == Some(row.kind)
        && point.source_id == row.source_id
        && same_object(&point.metadata, &row.metadata)
}

/// Compares JSON as a store may give it back: numbers by value, and nothing where there was null.
fn same_object(one: &Map<String, Value>, other: &Map<String, Value>) -> bool {
    let covers = |one: &Map<String, Value>, other: &Map<String, Value>| {
        one.iter().all(|(name, value)| same(value, other.get(name).unwrap_or(&Value::Null)))
    };
    covers(one, other) && covers(other, one)
}

fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => {
            one == other || (one.as_i64().is_none() || other.as_i64().is_none()) && one.as_f64() == other.as_f64()
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => same_object(one, other),
        _ => one == other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;
    use waybill_domain::{Kind, ProjectId, SourceId};

    use super::*;

    const ID: Uuid = Uuid::from_u128(1);

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap_or_default()
    }

    fn row(version: i64) -> MirroredRow {
        MirroredRow {
            kind: Kind::Chunk,
            id: ID,
            project_id: ProjectId::from_uuid(Uuid::from_u128(2)),
            source_id: Some(SourceId::from_uuid(Uuid::from_u128(3))),
            version,
            metadata: object(json!({"lang": "en"})),
        }
    }

    fn point(version: i64) -> StoredPoint {
        let row = row(version);
        StoredPoint {
            id: ID,
            project_id: Some(row.project_id),
            kind: Some(row.kind),
            source_id: row.source_id,
            version,
            metadata: row.metadata,
        }
    }

    fn claim(version: i64) -> Claim {
        Claim { kind: Kind::Chunk, key: ID, version, deleted: false, void: false }
    }

    fn tombstone(version: i64) -> Claim {
        Claim { deleted: true, ..claim(version) }
    }

    fn verdict(row_version: Option<i64>, said: Option<Claim>, pending: bool, shown: Option<&StoredPoint>) -> Verdict {
        judge(&KeyState { id: ID, row: row_version.map(row), claim: said, pending }, shown)
    }

    #[test]
    fn a_confirmed_row_has_its_point() {
        let confirmed = |shown: Option<&StoredPoint>| verdict(Some(5), Some(claim(5)), false, shown);
        assert_eq!(confirmed(Some(&point(5))), Verdict::Equal);
        assert_eq!(confirmed(None), Verdict::Drift(FindingKind::Missing));
        assert_eq!(confirmed(Some(&point(4))), Verdict::Drift(FindingKind::Stale));
        assert_eq!(confirmed(Some(&point(6))), Verdict::Drift(FindingKind::Ahead));
        for wrong in [
            StoredPoint { project_id: None, ..point(5) },
            StoredPoint { kind: Some(Kind::Entity), ..point(5) },
            StoredPoint { source_id: None, ..point(5) },
            StoredPoint { metadata: object(json!({"lang": "de"})), ..point(5) },
            StoredPoint { metadata: object(json!({"lang": "en", "more": 1})), ..point(5) },
        ] {
            assert_eq!(confirmed(Some(&wrong)), Verdict::Drift(FindingKind::WrongPayload), "{wrong:?}");
            assert!(!agree(Some(&wrong), Some(&row(5)), Some(&claim(5))));
        }
        assert!(agree(Some(&point(5)), Some(&row(5)), Some(&claim(5))));
    }

    #[test]
    fn what_is_still_to_be_delivered_is_no_drift() {
        for shown in [None, Some(point(3)), Some(point(5)), Some(point(9))] {
            assert_eq!(verdict(Some(5), Some(claim(3)), true, shown.as_ref()), Verdict::Undelivered);
            assert_eq!(verdict(Some(5), None, true, shown.as_ref()), Verdict::Undelivered);
        }
        assert_eq!(verdict(None, Some(claim(5)), true, Some(&point(5))), Verdict::Undelivered);
        assert_eq!(verdict(None, None, true, Some(&point(5))), Verdict::Undelivered);
        assert_eq!(verdict(None, Some(claim(5)), true, None), Verdict::Undelivered);
        // It came back after the tombstone, was delivered, and is gone again.
        assert_eq!(verdict(None, Some(tombstone(5)), true, Some(&point(7))), Verdict::Undelivered);
    }

    #[test]
    fn what_nobody_will_deliver_is_drift() {
        let lost = |said, shown: Option<&StoredPoint>| verdict(Some(5), said, false, shown);
        for said in [None, Some(claim(3)), Some(tombstone(3))] {
            assert_eq!(lost(said, None), Verdict::Drift(FindingKind::Unconfirmed));
            assert_eq!(lost(said, Some(&point(5))), Verdict::Drift(FindingKind::Unconfirmed));
            assert_eq!(lost(said, Some(&point(3))), Verdict::Drift(FindingKind::Stale));
        }
        for said in [claim(9), tombstone(5)] {
            assert_eq!(lost(Some(said), Some(&point(5))), Verdict::Drift(FindingKind::FalseClaim));
        }
    }

    #[test]
    fn what_was_claimed_of_a_lost_collection_is_void() {
        let void = Some(Claim { void: true, ..claim(5) });
        assert_eq!(verdict(Some(5), void, false, Some(&point(5))), Verdict::Drift(FindingKind::Unconfirmed));
        assert_eq!(verdict(Some(5), void, false, None), Verdict::Drift(FindingKind::Missing));
        assert!(!agree(Some(&point(5)), Some(&row(5)), void.as_ref()));
    }

    #[test]
    fn what_is_gone_is_shown_nowhere() {
        assert_eq!(verdict(None, None, false, None), Verdict::Equal);
        assert_eq!(verdict(None, Some(tombstone(5)), false, None), Verdict::Equal);
        assert_eq!(verdict(None, Some(claim(5)), false, None), Verdict::Drift(FindingKind::FalseClaim));
        for (said, pending) in [(None, false), (Some(tombstone(5)), false), (Some(tombstone(5)), true)] {
            assert_eq!(verdict(None, said, pending, Some(&point(5))), Verdict::Drift(FindingKind::Orphan));
        }
        assert!(!agree(Some(&point(5)), None, None) && !agree(None, None, Some(&claim(5))));
        assert!(agree(None, None, Some(&tombstone(5))));
    }

    #[test]
    fn metadata_is_compared_by_value() {
        let same = |one: Value, other: Value| same_object(&object(one), &object(other));
        assert!(same(json!({"a": 1.0, "b": null}), json!({"a": 1})));
        assert!(same(json!({"a": [1, {"x": null}]}), json!({"a": [1.0, {}]})));
        assert!(!same(json!({"a": 9_007_199_254_740_993_i64}), json!({"a": 9_007_199_254_740_992_i64})));
        assert!(!same(json!({"a": [1, 2]}), json!({"a": [1]})));
        assert!(!same(json!({"a": "1"}), json!({"a": 1})));
    }
}
