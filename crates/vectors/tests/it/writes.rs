use serde_json::json;
use uuid::Uuid;
use waybill_domain::Kind;
use waybill_vectors::{PLAUSIBLE_LEAD, StoredPoint};

use crate::store::{TestStore, id, object, point, project, source};

#[tokio::test]
async fn a_point_is_kept_from_an_older_version() {
    let store = TestStore::new().await;
    store.upsert(vec![point(0, 5)]).await;
    for (written, expected) in [(4, 5), (5, 5), (6, 6), (3, 6)] {
        store.upsert(vec![point(0, written)]).await;
        assert_eq!(store.versions().await, [(id(0), expected)], "after writing version {written}");
    }
}

#[tokio::test]
async fn a_point_that_somebody_changed_is_made_right_by_its_own_version() {
    let store = TestStore::new().await;
    let mut changed = point(0, 5);
    changed.project_id = project(1);
    store.upsert(vec![changed, point(1, 5)]).await;
    store.upsert(vec![point(0, 5), point(1, 5)]).await;
    let page = store.vectors.scroll_points(&store.spec.name, Some(project(0)), Uuid::nil(), 10).await.unwrap();
    assert_eq!(page.points.iter().map(|point| (point.id, point.version)).collect::<Vec<_>>(), [(id(0), 5), (id(1), 5)]);
}

#[tokio::test]
async fn a_version_that_no_row_can_have_protects_nothing() {
    let store = TestStore::new().await;
    let (near, far) = (7 + PLAUSIBLE_LEAD, 7 + PLAUSIBLE_LEAD + 1);
    store.upsert(vec![point(0, near), point(1, far), point(2, near), point(3, far), point(4, i64::MAX)]).await;
    store.upsert(vec![point(0, 7), point(1, 7), point(4, 7)]).await;
    store.delete(&[id(2), id(3)], 7).await;
    assert_eq!(store.versions().await, [(id(0), near), (id(1), 7), (id(2), near), (id(4), 7)]);
}

#[tokio::test]
async fn each_point_of_a_batch_is_judged_by_its_own_version() {
    let store = TestStore::new().await;
    // Every size up to a few groups, and stored versions on all sides of the batch's.
    for count in [1_u128, 2, 3, 4, 5, 16, 17, 100] {
        let ids = (count * 1_000)..(count * 1_000 + count);
        let stored = |n: u128| ((n * 7) % 40) as i64 + 1;
        let written = |n: u128| ((n * 11) % 40) as i64 + 1;
        // Every third doesn't exist yet.
        let existing: Vec<_> = ids.clone().filter(|n| n % 3 != 0).map(|n| point(n, stored(n))).collect();
        store.upsert(existing).await;
        store.upsert(ids.clone().map(|n| point(n, written(n))).collect()).await;

        let now = store.versions().await;
        for n in ids {
            let expected = if n % 3 == 0 { written(n) } else { stored(n).max(written(n)) };
            let found = now.iter().find(|(found, _)| *found == id(n)).map(|(_, version)| *version);
            assert_eq!(found, Some(expected), "point {n} of a batch of {count}");
        }
    }
}

#[tokio::test]
async fn a_late_delete_spares_a_newer_life() {
    let store = TestStore::new().await;
    store.upsert((0..4).map(|n| point(n, 10 + n as i64)).collect()).await;
    store.delete(&[id(0), id(1), id(2), id(99)], 11).await;
    assert_eq!(store.versions().await, [(id(2), 12), (id(3), 13)]);
    store.delete(&[id(2)], 12).await;
    assert_eq!(store.versions().await, [(id(3), 13)]);
}

#[tokio::test]
async fn nothing_to_write_asks_nobody() {
    let store = TestStore::empty().await;
    // There is no collection that could answer.
    store.upsert(vec![]).await;
    store.delete(&[], 1).await;
}

#[tokio::test]
async fn a_text_without_terms_is_stored_without_a_sparse_vector() {
    let store = TestStore::new().await;
    let mut bare = point(0, 1);
    bare.sparse = (vec![], vec![]);
    store.upsert(vec![bare]).await;
    assert_eq!(store.versions().await, [(id(0), 1)]);
}

#[tokio::test]
async fn pages_cover_everything_once_in_order() {
    let store = TestStore::new().await;
    let mut points: Vec<_> = (0..25).map(|n| point(n, 1 + n as i64)).collect();
    points[3].project_id = project(1);
    store.upsert(points).await;

    let mut seen = Vec::new();
    let mut from = None;
    loop {
        let page = store.vectors.scroll_versions(&store.spec.name, Some(project(0)), from, 7).await.unwrap();
        seen.extend(page.points);
        from = page.next;
        if from.is_none() {
            break;
        }
    }
    let expected: Vec<_> = (0..25).filter(|n| *n != 3).map(|n| (id(n), 1 + n as i64)).collect();
    assert_eq!(seen, expected);
    assert_eq!(store.vectors.count(&store.spec.name, None).await.unwrap(), 25);
    assert_eq!(store.vectors.count(&store.alias, Some(project(1))).await.unwrap(), 1);
}

#[tokio::test]
async fn what_was_written_is_read_back() {
    let store = TestStore::new().await;
    let metadata = json!({"n": 3, "x": 0.5, "whole": 1.0, "list": [1, "a", null, {"deep": true}], "none": null});
    let mut written = point(7, 9);
    written.metadata = object(metadata.clone());
    let mut bare = point(8, 1);
    (bare.kind, bare.source_id) = (Kind::Entity, None);
    store.upsert(vec![written, bare]).await;

    let expected = StoredPoint {
        id: id(7),
        project_id: Some(project(0)),
        kind: Some(Kind::Chunk),
        source_id: Some(source(0)),
        version: 9,
        metadata: object(metadata),
    };
    let found = store.vectors.get_points(&store.spec.name, &[id(7), id(9)]).await.unwrap();
    assert_eq!(found.first(), Some(&expected));
    assert_eq!(found.len(), 1);
    let page = store.vectors.scroll_points(&store.spec.name, None, Uuid::nil(), 1).await.unwrap();
    assert_eq!((page.points, page.next), (vec![expected], Some(id(8))));
    let page = store.vectors.scroll_points(&store.spec.name, None, id(8), 1).await.unwrap();
    assert_eq!(page.next, None);
    assert_eq!((page.points[0].kind, page.points[0].source_id), (Some(Kind::Entity), None));
}
