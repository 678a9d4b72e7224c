use std::time::Duration;

use waybill_domain::ErrorClass;
use waybill_vectors::{QdrantConfig, VectorError, Vectors};

use crate::store::{DEADLINE, TestStore, id, point};

#[tokio::test]
async fn a_missing_collection_is_told_apart() {
    let store = TestStore::empty().await;
    let name = &store.spec.name;
    let upsert = store.vectors.upsert(name, vec![point(0, 1)], DEADLINE).await.unwrap_err();
    let delete = store.vectors.delete(name, &[id(0)], 1, DEADLINE).await.unwrap_err();
    let scroll = store.vectors.scroll_versions(name, None, None, 1).await.unwrap_err();
    for error in [upsert, delete, scroll] {
        assert!(matches!(&error, VectorError::CollectionMissing(missing) if missing == name), "{error}");
        assert_eq!(error.class(), ErrorClass::Transient);
        assert!(error.is_store_wide());
    }
}

#[tokio::test]
async fn a_point_that_does_not_fit_is_permanent() {
    let store = TestStore::new().await;
    let mut wrong = point(0, 1);
    wrong.dense.push(1.0);
    let error = store.vectors.upsert(&store.spec.name, vec![wrong], DEADLINE).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Permanent, "{error}");
    assert!(!error.is_store_wide());
}

#[tokio::test]
async fn a_server_that_is_down_is_transient() {
    // Bound, then closed: nobody listens there.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let vectors = Vectors::connect(&QdrantConfig::new(url)).unwrap();
    let error = vectors.health().await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Transient, "{error}");
}

#[tokio::test]
async fn a_silent_server_leaves_the_outcome_unknown() {
    // Accepts connections by its backlog, and never says a word.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let vectors = Vectors::connect(&QdrantConfig::new(url)).unwrap();
    let deadline = Duration::from_millis(200);
    let error = vectors.upsert("any", vec![point(0, 1)], deadline).await.unwrap_err();
    assert!(matches!(error, VectorError::Timeout(limit) if limit == deadline), "{error}");
    assert_eq!(error.class(), ErrorClass::Unknown);
}

#[tokio::test]
async fn the_server_tells_its_version() {
    let store = TestStore::empty().await;
    assert!(store.vectors.health().await.unwrap().contains('.'));
}

#[tokio::test]
async fn a_bad_configuration_is_refused_before_any_call() {
    for url in ["", "localhost:6334", "ftp://host", "http://"] {
        let error = Vectors::connect(&QdrantConfig::new(url)).unwrap_err();
        assert!(matches!(error, VectorError::Config(_)), "{url:?}: {error}");
    }
    let config = QdrantConfig::new("http://host:1").with_api_key(Some("line\nbreak".to_owned()));
    let error = Vectors::connect(&config).unwrap_err();
    assert!(!error.to_string().contains("break"), "{error}");
    let config = QdrantConfig::new("http://host:1").with_api_key(Some("hidden".to_owned()));
    assert!(!format!("{config:?} {:?}", Vectors::connect(&config).unwrap()).contains("hidden"));
}
