//! Lines three stores up by id, a page of each at a time. Pure.
//!
//! A step takes a page from each side, all from the same id on, and covers the ids that all of
//! them reach: up to the end of the shortest reach. What a page holds beyond that is read again
//! with the next step, so no more than a page of each is ever held.

use std::collections::BTreeMap;

use uuid::Uuid;

/// Something with an id that its side is ordered by.
pub(crate) trait Keyed {
    fn id(&self) -> Uuid;
}

/// What one side holds from some id on.
#[derive(Debug, Clone)]
pub(crate) struct Page<T> {
    pub(crate) entries: Vec<T>,
    /// The first id that the page does not cover; `None` if it covers all to the end.
    pub(crate) next: Option<Uuid>,
}

impl<T> Default for Page<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), next: None }
    }
}

impl<T: Keyed> Page<T> {
    /// Makes a page of what came when `limit` entries were asked for.
    pub(crate) fn limited(entries: Vec<T>, limit: usize) -> Self {
        let next = if entries.len() < limit { None } else { entries.last().and_then(|last| successor(last.id())) };
        Self { entries, next }
    }
}

/// What the sides hold of one id.
#[derive(Debug)]
pub(crate) struct Lined<P, R, C> {
    pub(crate) point: Option<P>,
    pub(crate) row: Option<R>,
    pub(crate) claim: Option<C>,
}

/// The ids of one step, ascending, and where the next begins; `None` at the end.
pub(crate) type Step<P, R, C> = (BTreeMap<Uuid, Lined<P, R, C>>, Option<Uuid>);

/// Lines up what the pages hold of the ids that all of them cover. Should a side have an id
/// twice, one of the two is taken.
pub(crate) fn line_up<P: Keyed, R: Keyed, C: Keyed>(points: Page<P>, rows: Page<R>, claims: Page<C>) -> Step<P, R, C> {
    let next = [points.next, rows.next, claims.next].into_iter().flatten().min();
    let is_covered = |id: Uuid| next.is_none_or(|next| id < next);
    let mut keys: BTreeMap<Uuid, Lined<P, R, C>> = BTreeMap::new();
    let empty = || Lined { point: None, row: None, claim: None };
    for point in points.entries.into_iter().filter(|entry| is_covered(entry.id())) {
        let lined = keys.entry(point.id()).or_insert_with(empty);
        lined.point = Some(point);
    }
    for row in rows.entries.into_iter().filter(|entry| is_covered(entry.id())) {
        let lined = keys.entry(row.id()).or_insert_with(empty);
        lined.row = Some(row);
    }
    for claim in claims.entries.into_iter().filter(|entry| is_covered(entry.id())) {
        let lined = keys.entry(claim.id()).or_insert_with(empty);
        lined.claim = Some(claim);
    }
    (keys, next)
}

/// Returns the id after this one, if there is one.
pub(crate) fn successor(id: Uuid) -> Option<Uuid> {
    id.as_u128().checked_add(1).map(Uuid::from_u128)
}

/// Says how much of all ids lies below `id`: they are hashes, spread evenly.
pub(crate) fn share(id: Uuid) -> f64 {
    (id.as_u128() >> 96) as f64 / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection::btree_set, prelude::*};

    use super::*;

    #[derive(Debug, Clone, Copy)]
    struct Entry(Uuid);

    impl Keyed for Entry {
        fn id(&self) -> Uuid {
            self.0
        }
    }

    fn page(side: &BTreeSet<u128>, from: Uuid, limit: usize) -> Page<Entry> {
        let ids = side.range(from.as_u128()..).take(limit).map(|id| Entry(Uuid::from_u128(*id)));
        Page::limited(ids.collect(), limit)
    }

    /// Few values, so that sides meet; the ends of the range among them.
    fn ids() -> impl Strategy<Value = BTreeSet<u128>> {
        btree_set(prop_oneof![0..60_u128, Just(u128::MAX), Just(u128::MAX - 1)], 0..50)
    }

    proptest! {
        #[test]
        fn every_key_is_seen_once_with_all_its_sides(
            (points, rows, claims) in (ids(), ids(), ids()),
            limits in (1..9_usize, 1..9_usize, 1..9_usize),
        ) {
            let mut seen = Vec::new();
            let mut from = Some(Uuid::nil());
            while let Some(begin) = from {
                let pages = (page(&points, begin, limits.0), page(&rows, begin, limits.1), page(&claims, begin, limits.2));
                let (keys, next) = line_up(pages.0, pages.1, pages.2);
                prop_assert!(keys.len() <= limits.0 + limits.1 + limits.2, "no more is held than a page of each");
                prop_assert!(next.is_none_or(|next| next > begin), "each step gets on");
                seen.extend(keys.into_iter().map(|(id, lined)| {
                    (id.as_u128(), lined.point.is_some(), lined.row.is_some(), lined.claim.is_some())
                }));
                from = next;
            }
            let all: BTreeSet<u128> = points.union(&rows).copied().chain(claims.iter().copied()).collect();
            let expected: Vec<_> = all
                .into_iter()
                .map(|id| (id, points.contains(&id), rows.contains(&id), claims.contains(&id)))
                .collect();
            prop_assert_eq!(seen, expected);
        }
    }

    #[test]
    fn a_share_goes_from_nothing_to_all() {
        assert!(share(Uuid::nil()) < f64::EPSILON);
        assert!((share(Uuid::max()) - 1.0).abs() < f64::EPSILON);
        assert!((share(Uuid::from_u128(1 << 127)) - 0.5).abs() < 0.001);
    }
}
