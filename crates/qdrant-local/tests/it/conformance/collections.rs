use std::collections::HashMap;

use qdrant_client::qdrant::alias_operations::Action;
use qdrant_client::qdrant::payload_index_params::IndexParams;
use qdrant_client::qdrant::vectors_config::Config;
use qdrant_client::qdrant::{
    ChangeAliases, CreateAlias, CreateAliasBuilder, CreateCollectionBuilder, CreateFieldIndexCollectionBuilder,
    DeleteAlias, DeleteFieldIndexCollectionBuilder, Distance, FieldType, Filter, IntegerIndexParamsBuilder,
    KeywordIndexParamsBuilder, Modifier, PayloadSchemaInfo, PayloadSchemaType, RenameAliasBuilder, VectorParamsBuilder,
};
use serde_json::json;
use tonic::Code;

use crate::support::{DENSE, Fixture, SPARSE, assert_status, point, unique};

#[tokio::test]
async fn a_collection_is_created_described_listed_and_deleted() {
    let fixture = Fixture::new().await;
    let name = fixture.collection().await;
    let client = &fixture.client;

    assert!(client.collection_exists(&name).await.unwrap());
    let listed = client.list_collections().await.unwrap().collections;
    assert!(listed.iter().any(|collection| collection.name == name));

    let info = client.collection_info(&name).await.unwrap().result.unwrap();
    assert_eq!(info.points_count, Some(0));
    let params = info.config.unwrap().params.unwrap();
    let Some(Config::ParamsMap(dense)) = params.vectors_config.unwrap().config else {
        panic!("named vectors expected");
    };
    assert_eq!(dense.map[DENSE].size, 4);
    assert_eq!(dense.map[DENSE].distance(), Distance::Dot);
    let sparse = params.sparse_vectors_config.unwrap().map;
    assert_eq!(sparse[SPARSE].modifier(), Modifier::Idf);

    assert!(client.delete_collection(&name).await.unwrap().result);
    assert!(!client.collection_exists(&name).await.unwrap());
    assert!(!client.delete_collection(&name).await.unwrap().result);
}

#[tokio::test]
async fn a_collection_with_an_unnamed_vector_works() {
    let fixture = Fixture::new().await;
    let name = unique("unnamed");
    let request = CreateCollectionBuilder::new(&name).vectors_config(VectorParamsBuilder::new(2, Distance::Cosine));
    fixture.client.create_collection(request).await.unwrap();

    let point = qdrant_client::qdrant::PointStruct::new(1, vec![3.0, 4.0], [("a", 1_i64.into())]);
    fixture.upsert(&name, vec![point]).await;

    let stored = fixture.get(&name, 1).await.unwrap();
    let vector = stored.vectors.unwrap().get_vector().unwrap();
    let qdrant_client::qdrant::vector_output::Vector::Dense(dense) = vector else {
        panic!("dense vector expected");
    };
    // Cosine collections store unit vectors.
    assert!((dense.data[0] - 0.6).abs() < 1e-6 && (dense.data[1] - 0.8).abs() < 1e-6);
}

#[tokio::test]
async fn creating_twice_and_missing_collections_are_errors() {
    let fixture = Fixture::new().await;
    let name = fixture.collection().await;
    let client = &fixture.client;

    let again = client
        .create_collection(
            CreateCollectionBuilder::new(&name).vectors_config(VectorParamsBuilder::new(2, Distance::Dot)),
        )
        .await;
    assert_status(again, Code::AlreadyExists, "already exists");

    let missing = unique("missing");
    assert_status(
        client.collection_info(&missing).await,
        Code::NotFound,
        &format!("Not found: Collection `{missing}` doesn't exist!"),
    );
}

#[tokio::test]
async fn aliases_resolve_move_and_disappear_with_their_collection() {
    let fixture = Fixture::new().await;
    let (old, new) = (fixture.collection().await, fixture.collection().await);
    let (alias, renamed) = (unique("alias"), unique("alias"));
    let client = &fixture.client;
    let stored = point(1, [1.0, 0.0, 0.0, 0.0], &[(1, 1.0)], json!({}));
    fixture.upsert(&new, vec![stored]).await;

    client.create_alias(CreateAliasBuilder::new(&old, &alias)).await.unwrap();
    assert_eq!(fixture.count(&alias, Filter::default()).await, 0);
    assert!(client.collection_exists(&alias).await.unwrap());

    client.create_alias(CreateAliasBuilder::new(&new, &alias)).await.unwrap();
    assert_eq!(fixture.count(&alias, Filter::default()).await, 1);

    client.rename_alias(RenameAliasBuilder::new(&alias, &renamed)).await.unwrap();
    let of_collection = client.list_collection_aliases(&new).await.unwrap().aliases;
    assert_eq!(of_collection.len(), 1);
    assert_eq!(of_collection[0].alias_name, renamed);
    let all = client.list_aliases().await.unwrap().aliases;
    let found = all.iter().find(|found| found.alias_name == renamed);
    assert_eq!(found.unwrap().collection_name, new);
    assert!(!client.collection_exists(&alias).await.unwrap());

    client.delete_collection(&new).await.unwrap();
    assert!(!client.collection_exists(&renamed).await.unwrap());
}

#[tokio::test]
async fn an_alias_change_happens_as_a_whole_or_not_at_all() {
    let fixture = Fixture::new().await;
    let (old, new) = (fixture.collection().await, fixture.collection().await);
    let alias = unique("alias");
    fixture.client.create_alias(CreateAliasBuilder::new(&old, &alias)).await.unwrap();

    let move_to = |collection: String| ChangeAliases {
        actions: vec![
            Action::DeleteAlias(DeleteAlias { alias_name: alias.clone() }).into(),
            Action::CreateAlias(CreateAlias { collection_name: collection, alias_name: alias.clone() }).into(),
        ],
        timeout: None,
    };
    let mut raw = fixture.raw_collections().await;
    let failed = raw.update_aliases(move_to(unique("missing"))).await;
    assert_eq!(failed.unwrap_err().code(), Code::NotFound);
    assert_eq!(target(&fixture, &alias).await, Some(old));

    raw.update_aliases(move_to(new.clone())).await.unwrap();
    assert_eq!(target(&fixture, &alias).await, Some(new));
}

async fn target(fixture: &Fixture, alias: &str) -> Option<String> {
    let aliases = fixture.client.list_aliases().await.unwrap().aliases;
    let found = aliases.into_iter().find(|found| found.alias_name == alias);
    found.map(|found| found.collection_name)
}

#[tokio::test]
async fn an_alias_may_not_be_called_like_a_collection() {
    let fixture = Fixture::new().await;
    let (one, other) = (fixture.collection().await, fixture.collection().await);
    let result = fixture.client.create_alias(CreateAliasBuilder::new(&one, &other)).await;
    assert_status(result, Code::AlreadyExists, "already exists");
}

#[tokio::test]
async fn payload_indexes_are_created_described_and_deleted() {
    let fixture = Fixture::new().await;
    let name = fixture.collection().await;
    let client = &fixture.client;
    let payload = json!({"project": "p1", "version": 7, "draft": false, "weight": 0.5});
    let stored = point(1, [1.0, 0.0, 0.0, 0.0], &[(1, 1.0)], payload);
    fixture.upsert(&name, vec![stored]).await;

    let keyword = KeywordIndexParamsBuilder::default().is_tenant(true);
    let integer = IntegerIndexParamsBuilder::new(true, true);
    for request in [
        CreateFieldIndexCollectionBuilder::new(&name, "project", FieldType::Keyword).field_index_params(keyword),
        CreateFieldIndexCollectionBuilder::new(&name, "version", FieldType::Integer).field_index_params(integer),
        CreateFieldIndexCollectionBuilder::new(&name, "draft", FieldType::Bool),
        CreateFieldIndexCollectionBuilder::new(&name, "weight", FieldType::Float),
    ] {
        client.create_field_index(request.wait(true)).await.unwrap();
    }

    let schema = payload_schema(&fixture, &name).await;
    assert_eq!(schema.len(), 4);
    assert_eq!(schema["project"].data_type(), PayloadSchemaType::Keyword);
    assert_eq!(schema["project"].points, Some(1));
    let Some(IndexParams::KeywordIndexParams(params)) = schema["project"].params.clone().unwrap().index_params else {
        panic!("keyword parameters expected");
    };
    assert_eq!(params.is_tenant, Some(true));
    assert_eq!(schema["version"].data_type(), PayloadSchemaType::Integer);
    assert_eq!(schema["draft"].data_type(), PayloadSchemaType::Bool);
    assert_eq!(schema["weight"].data_type(), PayloadSchemaType::Float);

    client.delete_field_index(DeleteFieldIndexCollectionBuilder::new(&name, "draft").wait(true)).await.unwrap();
    assert!(!payload_schema(&fixture, &name).await.contains_key("draft"));
}

async fn payload_schema(fixture: &Fixture, name: &str) -> HashMap<String, PayloadSchemaInfo> {
    let info = fixture.client.collection_info(name).await.unwrap();
    info.result.unwrap().payload_schema
}

#[tokio::test]
async fn the_version_suits_the_client() {
    let fixture = Fixture::new().await;
    let reply = fixture.client.health_check().await.unwrap();
    let mut parts = reply.version.split('.').map(str::parse::<u32>);
    assert_eq!(parts.next(), Some(Ok(1)), "{}", reply.version);
    let minor = parts.next().unwrap().unwrap();
    assert!(minor >= 16, "{}", reply.version);
}
