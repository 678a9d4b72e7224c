use waybill_vectors::{CollectionInfo, CollectionSpec, VectorError};

use crate::store::TestStore;

#[tokio::test]
async fn ensuring_is_idempotent_and_safe_at_once() {
    let store = TestStore::empty().await;
    let ensure = || store.vectors.ensure_collection(&store.spec, &store.alias);
    let (a, b, c) = tokio::join!(ensure(), ensure(), ensure());
    a.and(b).and(c).unwrap();
    ensure().await.unwrap();

    let info = store.vectors.collection_info(&store.alias).await.unwrap();
    assert_eq!(
        info,
        CollectionInfo { points: 0, dimensions: Some(4), has_sparse: true, indexing_threshold: Some(10_000) }
    );
    assert_eq!(store.vectors.alias_target(&store.alias).await.unwrap(), Some(store.spec.name.clone()));
}

#[tokio::test]
async fn an_alias_stays_until_it_is_moved() {
    let store = TestStore::new().await;
    let next = CollectionSpec { name: format!("{}-next", store.spec.name), dimensions: 8 };
    store.vectors.ensure_collection(&next, &store.alias).await.unwrap();
    assert_eq!(store.vectors.alias_target(&store.alias).await.unwrap().as_ref(), Some(&store.spec.name));

    store.vectors.point_alias(&store.alias, &next.name).await.unwrap();
    assert_eq!(store.vectors.alias_target(&store.alias).await.unwrap().as_ref(), Some(&next.name));
}

#[tokio::test]
async fn a_collection_of_another_form_is_refused() {
    let store = TestStore::new().await;
    let other = CollectionSpec { dimensions: 5, ..store.spec.clone() };
    let error = store.vectors.ensure_collection(&other, &store.alias).await.unwrap_err();
    assert!(matches!(&error, VectorError::CollectionMismatch { .. }), "{error}");
    assert!(error.to_string().contains("dimensions 4, not 5"), "{error}");
}

#[tokio::test]
async fn a_wiped_collection_comes_back() {
    let store = TestStore::new().await;
    store.vectors.delete_collection(&store.spec.name).await.unwrap();
    store.vectors.delete_collection(&store.spec.name).await.unwrap();
    assert!(!store.vectors.collection_exists(&store.spec.name).await.unwrap());
    assert_eq!(store.vectors.alias_target(&store.alias).await.unwrap(), None);
    store.vectors.ensure_collection(&store.spec, &store.alias).await.unwrap();
    assert!(store.vectors.collection_exists(&store.spec.name).await.unwrap());
}

#[test]
fn models_have_collections_of_their_own() {
    let name = |model: &str| CollectionSpec::for_model(model, 384).name;
    assert_eq!(name("minilm-l6"), "waybill_minilm-l6_384");
    assert!(name("BAAI/bge-m3").starts_with("waybill_baai-bge-m3-"));
    // What a slug can't tell apart, the hash does.
    assert_ne!(name("a/b"), name("a-b"));
    assert_ne!(name("a/b"), name("a.b"));
    assert_ne!(name("A"), name("a"));
    assert_ne!(name(&"x".repeat(500)), name(&"x".repeat(501)));
    assert!(name(&"x".repeat(500)).len() < 128);
}

#[tokio::test]
async fn an_indexing_threshold_is_set_and_told() {
    let store = TestStore::empty().await;
    let told = async || store.vectors.collection_info(&store.alias).await.unwrap().indexing_threshold;
    store.vectors.ensure_collection(&store.spec, &store.alias).await.unwrap();
    for kib in [50_000_000, 7_000] {
        store.vectors.set_indexing_threshold(&store.spec.name, kib).await.unwrap();
        assert_eq!(told().await, Some(kib));
    }
    let error = store.vectors.set_indexing_threshold("nowhere", 1).await.unwrap_err();
    assert!(matches!(error, VectorError::CollectionMissing(_)), "{error}");
}

#[tokio::test]
async fn of_many_that_create_a_collection_one_does() {
    let store = TestStore::empty().await;
    let spec = &store.spec;
    let (one, other) = tokio::join!(store.vectors.create_collection(spec), store.vectors.create_collection(spec));
    assert_ne!(one.unwrap(), other.unwrap());
    assert!(!store.vectors.create_collection(spec).await.unwrap());
}
