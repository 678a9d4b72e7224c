use qdrant_client::qdrant::vector_output::Vector as Stored;
use qdrant_client::qdrant::{
    Condition, DeletePointsBuilder, Filter, NamedVectors, PointId, PointStruct, PointsUpdateOperation,
    ScrollPointsBuilder, UpdateBatchPointsBuilder, UpsertPointsBuilder,
    points_update_operation::{DeletePoints, Operation, PointStructList},
};
use serde_json::json;
use tonic::Code;

use crate::support::{DENSE, Fixture, SPARSE, assert_status, integer, number, older_than, point, unique};

const ORIGIN: [f32; 4] = [1.0, 2.0, 3.0, 4.0];

#[tokio::test]
async fn a_point_comes_back_as_it_was_stored() {
    let fixture = Fixture::new().await;
    let name = fixture.collection().await;
    let uuid = "0195a4c4-1b9e-7c3a-9c57-0a2f6d3b1e11";
    let payload = json!({
        "text": "grüß dich", "version": 3, "weight": 0.25, "draft": true, "none": null,
        "tags": ["a", "b"], "meta": {"page": 7, "deep": {"list": [1, 2.5]}},
    });
    let stored = point(uuid, ORIGIN, &[(5, 0.5), (2, 0.25)], payload.clone());
    fixture.upsert(&name, vec![stored]).await;

    let found = fixture.get(&name, uuid).await.unwrap();
    let expected: std::collections::HashMap<_, _> = crate::support::object(payload).into();
    assert_eq!(found.payload, expected);
    let vectors = found.vectors.unwrap();
    let Some(Stored::Dense(dense)) = vectors.get_vector_by_name(DENSE) else {
        panic!("dense vector expected");
    };
    assert_eq!(dense.data, ORIGIN);
    let Some(Stored::Sparse(sparse)) = vectors.get_vector_by_name(SPARSE) else {
        panic!("sparse vector expected");
    };
    let mut pairs: Vec<_> = sparse.indices.into_iter().zip(sparse.values).collect();
    pairs.sort_by_key(|(index, _)| *index);
    assert_eq!(pairs, [(2, 0.25), (5, 0.5)]);

    assert_eq!(fixture.get(&name, 404).await, None);
}

#[tokio::test]
async fn a_conditional_upsert_inserts_new_points_and_replaces_matching_ones() {
    let fixture = Fixture::new().await;
    let name = fixture.collection().await;
    for indexed in [false, true] {
        if indexed {
            let request = qdrant_client::qdrant::CreateFieldIndexCollectionBuilder::new(
                &name,
                "version",
                qdrant_client::qdrant::FieldType::Integer,
            );
            let request = request.wait(true);
            fixture.client.create_field_index(request).await.unwrap();
        }
        let base = if indexed { 10 } else { 0 };
        let upsert = |version: i64, ids: [u64; 2]| {
            let ids = ids.into_iter();
            let points = ids.map(|id| {
                let payload = json!({"version": version});
                point(base + id, ORIGIN, &[(1, version as f32)], payload)
            });
            let request = UpsertPointsBuilder::new(&name, points.collect::<Vec<_>>())
                .update_filter(older_than(version))
                .wait(true);
            fixture.client.upsert_points(request)
        };
        upsert(5, [1, 2]).await.unwrap();
        upsert(7, [2, 3]).await.unwrap();
        upsert(6, [1, 2]).await.unwrap();
        upsert(7, [2, 3]).await.unwrap();

        for (id, version) in [(1, 6), (2, 7), (3, 7)] {
            let found = fixture.get(&name, base + id).await.unwrap();
            assert_eq!(integer(&found, "version"), version, "point {id}");
            let vectors = found.vectors.unwrap();
            let Some(Stored::Sparse(sparse)) = vectors.get_vector_by_name(SPARSE) else {
                panic!("sparse vector expected");
            };
            assert_eq!(sparse.values, [version as f32], "point {id}");
        }
    }
}

#[tokio::test]
async fn an_upsert_replaces_payload_and_vectors() {
    let fixture = Fixture::new().await;
    let name = fixture.collection().await;
    let first = point(1, ORIGIN, &[(1, 1.0)], json!({"a": 1, "b": 2}));
    fixture.upsert(&name, vec![first]).await;
    let only_dense = NamedVectors::default().add_vector(DENSE, vec![9.0; 4]);
    let second = PointStruct::new(1, only_dense, [("c", 3_i64.into())]);
    fixture.upsert(&name, vec![second]).await;

    let found = fixture.get(&name, 1).await.unwrap();
    assert_eq!(found.payload.keys().collect::<Vec<_>>(), ["c"]);
    let vectors = found.vectors.unwrap();
    assert_eq!(vectors.get_vector_by_name(SPARSE), None);
}

#[tokio::test]
async fn points_are_deleted_by_id_and_by_filter() {
    let fixture = Fixture::new().await;
    let name = fixture.collection().await;
    let points = (1..=6).map(|id| {
        let payload = json!({"version": id});
        point(id, ORIGIN, &[(1, 1.0)], payload)
    });
    fixture.upsert(&name, points.collect()).await;

    let by_id = DeletePointsBuilder::new(&name).points(vec![1_u64, 404]).wait(true);
    fixture.client.delete_points(by_id).await.unwrap();
    assert_eq!(ids(&fixture, &name).await, [2, 3, 4, 5, 6]);

    let mut filter = older_than(4);
    filter.must.push(Condition::has_id([2, 3, 4, 5_u64]));
    let by_filter = DeletePointsBuilder::new(&name).points(filter).wait(true);
    fixture.client.delete_points(by_filter).await.unwrap();
    assert_eq!(ids(&fixture, &name).await, [4, 5, 6]);

    let again = point(2, ORIGIN, &[(1, 1.0)], json!({"version": 9}));
    fixture.upsert(&name, vec![again]).await;
    assert_eq!(ids(&fixture, &name).await, [2, 4, 5, 6]);
}

#[tokio::test]
async fn scrolling_goes_by_id_in_pages() {
    let fixture = Fixture::new().await;
    let name = fixture.collection().await;
    let points = (0..25_u64).rev().map(|id| {
        let payload = json!({"even": id % 2 == 0});
        point(id, ORIGIN, &[(1, 1.0)], payload)
    });
    fixture.upsert(&name, points.collect()).await;

    let mut seen = Vec::new();
    let mut offset = None;
    loop {
        let mut request =
            ScrollPointsBuilder::new(&name).filter(Filter::must([Condition::matches("even", true)])).limit(5);
        if let Some(offset) = offset {
            request = request.offset::<PointId>(offset);
        }
        let page = fixture.client.scroll(request).await.unwrap();
        assert!(page.result.len() <= 5);
        seen.extend(page.result.into_iter().map(|point| number(point.id)));
        offset = page.next_page_offset;
        if offset.is_none() {
            break;
        }
    }
    let expected: Vec<u64> = (0..25).step_by(2).collect();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_batch_applies_its_operations_in_order() {
    let fixture = Fixture::new().await;
    let name = fixture.collection().await;
    let upsert = |id: u64| {
        let points = vec![point(id, ORIGIN, &[(1, 1.0)], json!({"version": 1}))];
        PointsUpdateOperation {
            operation: Some(Operation::Upsert(PointStructList { points, ..PointStructList::default() })),
        }
    };
    let delete = |id: u64| PointsUpdateOperation {
        operation: Some(Operation::DeletePoints(DeletePoints {
            points: Some(vec![PointId::from(id)].into()),
            shard_key_selector: None,
        })),
    };
    let operations = vec![upsert(1), upsert(2), delete(1), upsert(3), delete(2), upsert(1)];
    let request = UpdateBatchPointsBuilder::new(&name, operations).wait(true);
    let answer = fixture.client.update_points_batch(request).await.unwrap();
    assert_eq!(answer.result.len(), 6);
    assert_eq!(ids(&fixture, &name).await, [1, 3]);
}

#[tokio::test]
async fn wrong_points_are_refused() {
    let fixture = Fixture::new().await;
    let name = fixture.collection().await;
    let good = || point(1, ORIGIN, &[(1, 1.0)], json!({}));
    let with = |vectors: NamedVectors| PointStruct::new(2, vectors, qdrant_client::Payload::new());

    let short = with(NamedVectors::default().add_vector(DENSE, vec![1.0, 2.0]));
    let request = UpsertPointsBuilder::new(&name, vec![good(), short]).wait(true);
    assert_status(fixture.client.upsert_points(request).await, Code::InvalidArgument, "expected dim: 4, got 2");

    let unknown = with(NamedVectors::default().add_vector("other", vec![1.0; 4]));
    let request = UpsertPointsBuilder::new(&name, vec![good(), unknown]).wait(true);
    assert_status(
        fixture.client.upsert_points(request).await,
        Code::InvalidArgument,
        "Not existing vector name error: other",
    );

    let missing = unique("missing");
    let request = UpsertPointsBuilder::new(&missing, vec![good()]).wait(true);
    assert_status(
        fixture.client.upsert_points(request).await,
        Code::NotFound,
        &format!("Collection `{missing}` doesn't exist!"),
    );
}

#[tokio::test]
async fn writers_at_once_all_get_their_points_in() {
    let fixture = Fixture::new().await;
    let name = fixture.collection().await;
    let writers = (0..8_u64).map(|writer| {
        let points = (0..50).map(|seq| {
            let payload = json!({"version": 1});
            point(writer * 100 + seq, ORIGIN, &[(1, 1.0)], payload)
        });
        fixture.upsert(&name, points.collect())
    });
    futures::future::join_all(writers).await;
    assert_eq!(fixture.count(&name, Filter::default()).await, 400);
}

async fn ids(fixture: &Fixture, name: &str) -> Vec<u64> {
    let request = ScrollPointsBuilder::new(name).limit(100);
    let page = fixture.client.scroll(request).await.unwrap();
    page.result.into_iter().map(|point| number(point.id)).collect()
}
