use serde_json::{Map, json};
use waybill_domain::Kind;
use waybill_vectors::{Mode, QuerySpec, SearchFilter, SparseVector, VectorError};

use crate::store::{TestStore, id, object, point, project, source};

fn spec(mode: Mode) -> QuerySpec {
    QuerySpec {
        mode,
        dense: vec![0.1, 1.0, 0.1, 0.1],
        sparse: SparseVector { indices: vec![102], values: vec![1.0] },
        filter: SearchFilter { project_id: project(0), kinds: vec![], source_ids: vec![], metadata: Map::new() },
        limit: 10,
        score_threshold: None,
    }
}

async fn found(store: &TestStore, spec: QuerySpec) -> Vec<u128> {
    let points = store.vectors.query(&store.alias, spec).await.unwrap();
    points.iter().map(|point| point.id.as_u128() - 1).collect()
}

#[tokio::test]
async fn each_mode_ranks_by_its_own() {
    let store = TestStore::new().await;
    store.upsert((0..4).map(|n| point(n, 10 + n as i64)).collect()).await;

    let dense = store.vectors.query(&store.alias, spec(Mode::Dense)).await.unwrap();
    assert_eq!(dense.len(), 4);
    assert_eq!((dense[0].id, dense[0].version), (id(1), 11));
    assert_eq!((dense[0].kind, dense[0].source_id), (Some(Kind::Chunk), Some(source(0))));
    assert!(dense[0].score > 0.99 && dense[1].score < 0.9);

    assert_eq!(found(&store, spec(Mode::Lexical)).await, [2], "the only point with the term");

    let hybrid = found(&store, spec(Mode::Hybrid)).await;
    assert_eq!(hybrid.len(), 4);
    assert!(hybrid[..2].contains(&1) && hybrid[..2].contains(&2), "the best of both come first: {hybrid:?}");
}

#[tokio::test]
async fn limit_and_threshold_cut() {
    let store = TestStore::new().await;
    store.upsert((0..4).map(|n| point(n, 1)).collect()).await;
    assert_eq!(found(&store, QuerySpec { limit: 2, ..spec(Mode::Hybrid) }).await.len(), 2);
    assert_eq!(found(&store, QuerySpec { score_threshold: Some(0.95), ..spec(Mode::Dense) }).await, [1]);
}

#[tokio::test]
async fn a_query_without_terms() {
    let store = TestStore::new().await;
    store.upsert((0..4).map(|n| point(n, 1)).collect()).await;
    let without = |mode| QuerySpec { sparse: SparseVector::default(), ..spec(mode) };
    assert_eq!(found(&store, without(Mode::Lexical)).await, [0_u128; 0]);
    assert_eq!(found(&store, without(Mode::Hybrid)).await[0], 1);
}

#[tokio::test]
async fn filters_keep_tenants_and_sources_apart() {
    let store = TestStore::new().await;
    let mut points: Vec<_> = (0..6).map(|n| point(n, 1)).collect();
    points[1].project_id = project(1);
    points[4].source_id = Some(source(1));
    points[5].source_id = Some(source(2));
    store.upsert(points).await;
    for mode in [Mode::Dense, Mode::Hybrid] {
        let mut all = found(&store, spec(mode)).await;
        all.sort_unstable();
        assert_eq!(all, [0, 2, 3, 4, 5], "{mode:?}");

        let mut some = spec(mode);
        some.filter.source_ids = vec![source(1), source(2)];
        some.filter.kinds = vec![Kind::Chunk];
        let mut some = found(&store, some).await;
        some.sort_unstable();
        assert_eq!(some, [4, 5], "{mode:?}");
    }
}

#[tokio::test]
async fn metadata_filters() {
    let store = TestStore::new().await;
    let metadata = [
        json!({"lang": "en", "year": 2024, "draft": false, "tags": ["a", "b"], "a.b": "dot", "x[0]": "bracket"}),
        json!({"lang": "de", "year": 2024.0, "draft": true, "tags": ["b"], "a": {"b": "nested"}}),
        json!({"lang": "en", "year": 2025.5, "with space": "yes", "größe": "groß"}),
        json!({}),
    ];
    let points = metadata.into_iter().enumerate().map(|(n, metadata)| {
        let mut point = point(n as u128, 1);
        point.metadata = object(metadata);
        point
    });
    store.upsert(points.collect()).await;

    let cases = [
        (json!({}), vec![0, 1, 2, 3]),
        (json!({"lang": "en"}), vec![0, 2]),
        (json!({"lang": "en", "year": 2024}), vec![0]),
        (json!({"year": 2024}), vec![0, 1]),
        (json!({"year": 2025.5}), vec![2]),
        (json!({"draft": true}), vec![1]),
        (json!({"tags": "b"}), vec![0, 1]),
        (json!({"a.b": "dot"}), vec![0]),
        (json!({"a.b": "nested"}), vec![]),
        (json!({"x[0]": "bracket"}), vec![0]),
        (json!({"with space": "yes", "größe": "groß"}), vec![2]),
        (json!({"lang": "EN"}), vec![]),
        (json!({"missing": false}), vec![]),
    ];
    for (filter, expected) in cases {
        let mut spec = spec(Mode::Dense);
        spec.filter.metadata = object(filter.clone());
        let mut ids = found(&store, spec).await;
        ids.sort_unstable();
        assert_eq!(ids, expected, "{filter}");
    }
}

#[tokio::test]
async fn metadata_that_no_filter_can_express_is_refused() {
    let store = TestStore::new().await;
    for key in ["", "with\"quote"] {
        let mut spec = spec(Mode::Dense);
        spec.filter.metadata.insert(key.to_owned(), json!("x"));
        let error = store.vectors.query(&store.alias, spec).await.unwrap_err();
        assert!(matches!(error, VectorError::MetadataKey(found) if found == key));
    }
    let mut spec = spec(Mode::Dense);
    spec.filter.metadata.insert("key".to_owned(), json!([1]));
    let error = store.vectors.query(&store.alias, spec).await.unwrap_err();
    assert!(matches!(error, VectorError::Rejected { .. }), "{error}");
}
