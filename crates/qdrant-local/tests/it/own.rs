//! What only this server does: refuse by name, lock its directory, restart.

use qdrant_client::Payload;
use qdrant_client::qdrant::{
    CollectionParamsDiff, CreateAliasBuilder, CreateFieldIndexCollectionBuilder, FieldType, Filter, NamedVectors,
    PointStruct, Query, QueryPointsBuilder, ScrollPointsBuilder, SetPayloadPoints, UpdateCollection,
    UpsertPointsBuilder,
};
use serde_json::json;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use waybill_qdrant_local::StartError;

use crate::support::{DENSE, Fixture, assert_status, connect, create_collection, point, start};

#[tokio::test]
async fn what_is_not_here_is_refused_by_name() {
    if std::env::var_os("WAYBILL_TEST_QDRANT_URL").is_some() {
        return;
    }
    let fixture = Fixture::new().await;
    let name = fixture.collection().await;

    let mut points = fixture.raw_points().await;
    let request = SetPayloadPoints { collection_name: name.clone(), ..SetPayloadPoints::default() };
    let refused = points.set_payload(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    assert!(refused.message().contains("qdrant.Points/SetPayload"));

    let mut collections = fixture.raw_collections().await;
    let params = Some(CollectionParamsDiff::default());
    let request = UpdateCollection { collection_name: name.clone(), params, ..UpdateCollection::default() };
    let refused = collections.update(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    assert!(refused.message().contains("UpdateCollection.params"), "{}", refused.message());
    let gone = collections.update(UpdateCollection::default()).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);

    let by_id = QueryPointsBuilder::new(&name).query(Query::new_nearest(1_u64)).using(DENSE);
    assert_status(fixture.client.query(by_id).await, Code::Unimplemented, "VectorInput.id");
    assert_status(fixture.client.create_snapshot(&name).await, Code::Unimplemented, "qdrant.Snapshots/Create");
    let too_many = ScrollPointsBuilder::new(&name).limit(1_000_000);
    assert_status(fixture.client.scroll(too_many).await, Code::InvalidArgument, "limit 1000000");
}

#[tokio::test]
async fn a_directory_serves_one_server_at_a_time() {
    let dir = TempDir::new().unwrap();
    let stop = CancellationToken::new();
    let first = start(&dir, stop.clone()).await.unwrap();

    let second = start(&dir, CancellationToken::new()).await.unwrap_err();
    let StartError::InUse { pid, .. } = &second else {
        panic!("expected a lock, got {second}");
    };
    assert_eq!(*pid, std::process::id().to_string());

    stop.cancel();
    first.stopped().await;
    let stop = CancellationToken::new();
    let third = start(&dir, stop.clone()).await.unwrap();
    stop.cancel();
    third.stopped().await;
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let dir = TempDir::new().unwrap();
    let stop = CancellationToken::new();
    let handle = start(&dir, stop.clone()).await.unwrap();
    let client = connect(&format!("http://{}", handle.addr()));
    for name in ["kept", "gone"] {
        create_collection(&client, name).await;
    }
    client.create_alias(CreateAliasBuilder::new("kept", "live")).await.unwrap();
    let index = CreateFieldIndexCollectionBuilder::new("kept", "version", FieldType::Integer);
    client.create_field_index(index).await.unwrap();
    let stored = point(1, [1.0; 4], &[(1, 1.0)], json!({"version": 1}));
    let upsert = UpsertPointsBuilder::new("live", vec![stored]);
    client.upsert_points(upsert).await.unwrap();
    client.delete_collection("gone").await.unwrap();
    drop(client);
    stop.cancel();
    handle.stopped().await;

    let stop = CancellationToken::new();
    let handle = start(&dir, stop.clone()).await.unwrap();
    let client = connect(&format!("http://{}", handle.addr()));
    let collections = client.list_collections().await.unwrap().collections;
    assert_eq!(collections.len(), 1);
    let info = client.collection_info("live").await.unwrap().result.unwrap();
    assert_eq!(info.points_count, Some(1));
    assert!(info.payload_schema.contains_key("version"));
    let count = qdrant_client::qdrant::CountPointsBuilder::new("live").filter(Filter::default());
    let count = client.count(count).await.unwrap().result.unwrap().count;
    assert_eq!(count, 1);
    stop.cancel();
    handle.stopped().await;
}

#[tokio::test]
async fn a_wrong_point_keeps_its_whole_batch_out() {
    if std::env::var_os("WAYBILL_TEST_QDRANT_URL").is_some() {
        return;
    }
    let fixture = Fixture::new().await;
    let name = fixture.collection().await;
    let good = point(1, [1.0; 4], &[(1, 1.0)], json!({}));
    let short = NamedVectors::default().add_vector(DENSE, vec![1.0, 2.0]);
    let short = PointStruct::new(2, short, Payload::new());
    let request = UpsertPointsBuilder::new(&name, vec![good, short]);
    assert_status(fixture.client.upsert_points(request).await, Code::InvalidArgument, "expected dim: 4, got 2");
    assert_eq!(fixture.count(&name, Filter::default()).await, 0);
}
