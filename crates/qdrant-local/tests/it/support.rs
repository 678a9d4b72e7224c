//! A server to test, and the collection most tests use.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use qdrant_client::qdrant::collections_client::CollectionsClient;
use qdrant_client::qdrant::point_id::PointIdOptions;
use qdrant_client::qdrant::points_client::PointsClient;
use qdrant_client::qdrant::value::Kind;
use qdrant_client::qdrant::{
    Condition, CountPointsBuilder, CreateCollectionBuilder, Distance, Filter, GetPointsBuilder, ListValue, Modifier,
    NamedVectors, PointId, PointStruct, Range, RetrievedPoint, SparseVectorParamsBuilder, SparseVectorsConfigBuilder,
    Struct, UpsertPointsBuilder, Value, Vector, VectorParamsBuilder, VectorsConfigBuilder,
};
use qdrant_client::{Payload, Qdrant, QdrantError};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Code;
use tonic::transport::Channel;
use waybill_qdrant_local::{Handle, Server, StartError};

/// Names the dense vector of [`Fixture::collection`].
pub(crate) const DENSE: &str = "dense";
/// Names the sparse vector of [`Fixture::collection`].
pub(crate) const SPARSE: &str = "bm25";

/// Limit for one answer; generous, for machines that do ten other things.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server and a client of it.
pub(crate) struct Fixture {
    pub(crate) client: Qdrant,
    url: String,
    /// In-process servers stop and lose their data when the test ends.
    _server: Option<(DropGuard, TempDir)>,
}

impl Fixture {
    /// Connects to the server under test.
    pub(crate) async fn new() -> Self {
        if let Ok(url) = std::env::var("WAYBILL_TEST_QDRANT_URL") {
            return Self { client: connect(&url), url, _server: None };
        }
        let dir = TempDir::new().unwrap();
        let stop = CancellationToken::new();
        let handle = start(&dir, stop.clone()).await.unwrap();
        let url = format!("http://{}", handle.addr());
        Self { client: connect(&url), url, _server: Some((stop.drop_guard(), dir)) }
    }

    /// Makes the generated client, for requests `Qdrant` has no method for.
    pub(crate) async fn raw_collections(&self) -> CollectionsClient<Channel> {
        CollectionsClient::connect(self.url.clone()).await.unwrap()
    }

    /// Makes the generated client, for requests `Qdrant` has no method for.
    pub(crate) async fn raw_points(&self) -> PointsClient<Channel> {
        PointsClient::connect(self.url.clone()).await.unwrap()
    }

    /// Creates a collection with a dense vector of 4 dimensions (dot product)
    /// and a BM25 one; returns its name.
    pub(crate) async fn collection(&self) -> String {
        let name = unique("collection");
        create_collection(&self.client, &name).await;
        name
    }

    /// Stores points unconditionally.
    pub(crate) async fn upsert(&self, collection: &str, points: Vec<PointStruct>) {
        self.client.upsert_points(UpsertPointsBuilder::new(collection, points).wait(true)).await.unwrap();
    }

    /// Fetches one point with payload and vectors.
    pub(crate) async fn get(&self, collection: &str, id: impl Into<PointId>) -> Option<RetrievedPoint> {
        let request = GetPointsBuilder::new(collection, vec![id.into()]).with_payload(true).with_vectors(true);
        self.client.get_points(request).await.unwrap().result.pop()
    }

    /// Counts the points that match.
    pub(crate) async fn count(&self, collection: &str, filter: Filter) -> u64 {
        let request = CountPointsBuilder::new(collection).filter(filter).exact(true);
        self.client.count(request).await.unwrap().result.unwrap().count
    }
}

/// Starts a server in this process.
pub(crate) async fn start(dir: &TempDir, stop: CancellationToken) -> Result<Handle, StartError> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Server::start(dir.path(), listener, stop).await
}

/// Makes a client. It doesn't compare versions: doing so blocks the thread that
/// an in-process server runs on.
pub(crate) fn connect(url: &str) -> Qdrant {
    Qdrant::from_url(url).timeout(PATIENCE).skip_compatibility_check().build().unwrap()
}

/// Creates the collection that [`Fixture::collection`] describes.
pub(crate) async fn create_collection(client: &Qdrant, name: &str) {
    let mut dense = VectorsConfigBuilder::default();
    dense.add_named_vector_params(DENSE, VectorParamsBuilder::new(4, Distance::Dot));
    let mut sparse = SparseVectorsConfigBuilder::default();
    sparse.add_named_vector_params(SPARSE, SparseVectorParamsBuilder::default().modifier(Modifier::Idf));
    let request = CreateCollectionBuilder::new(name).vectors_config(dense).sparse_vectors_config(sparse);
    client.create_collection(request).await.unwrap();
}

/// Makes a name no other test uses, also on a server that outlives this run.
pub(crate) fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("waybill-test-{what}-{}-{number}", std::process::id())
}

/// Makes a point with both vectors.
pub(crate) fn point(
    id: impl Into<PointId>,
    dense: [f32; 4],
    sparse: &[(u32, f32)],
    payload: serde_json::Value,
) -> PointStruct {
    let vectors = NamedVectors::default().add_vector(DENSE, dense.to_vec()).add_vector(SPARSE, Vector::from(sparse));
    PointStruct::new(id, vectors, object(payload))
}

/// Makes a payload of a JSON object.
pub(crate) fn object(json: serde_json::Value) -> Payload {
    Payload::from(fields(json))
}

fn fields(json: serde_json::Value) -> HashMap<String, Value> {
    let serde_json::Value::Object(fields) = json else {
        panic!("not an object: {json}");
    };
    let fields = fields.into_iter();
    fields.map(|(key, json)| (key, value(json))).collect()
}

fn value(json: serde_json::Value) -> Value {
    let kind = match json {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(value) => Kind::BoolValue(value),
        serde_json::Value::Number(value) => match value.as_i64() {
            Some(integer) => Kind::IntegerValue(integer),
            None => Kind::DoubleValue(value.as_f64().unwrap()),
        },
        serde_json::Value::String(value) => Kind::StringValue(value),
        serde_json::Value::Array(values) => {
            Kind::ListValue(ListValue { values: values.into_iter().map(value).collect() })
        }
        object @ serde_json::Value::Object(_) => Kind::StructValue(Struct { fields: fields(object) }),
    };
    Value { kind: Some(kind) }
}

/// Matches points whose `version` is below `version`.
pub(crate) fn older_than(version: i64) -> Filter {
    Filter::must([Condition::range("version", Range { lt: Some(version as f64), ..Range::default() })])
}

/// Returns the integer a point holds under `key`.
pub(crate) fn integer(point: &RetrievedPoint, key: &str) -> i64 {
    point.payload[key].as_integer().unwrap()
}

/// Returns the numeric id of a point.
pub(crate) fn number(id: Option<PointId>) -> u64 {
    match id.unwrap().point_id_options.unwrap() {
        PointIdOptions::Num(number) => number,
        PointIdOptions::Uuid(uuid) => panic!("not a number: {uuid}"),
    }
}

/// Checks that a call failed with `code` and that its message holds `text`.
#[track_caller]
pub(crate) fn assert_status<T>(result: Result<T, QdrantError>, code: Code, text: &str) {
    match result {
        Ok(_) => panic!("expected {code:?}, got an answer"),
        Err(QdrantError::ResponseError { status }) => {
            assert_eq!(status.code(), code, "{}", status.message());
            let message = status.message().to_lowercase();
            assert!(message.contains(&text.to_lowercase()), "{message}");
        }
        Err(other) => panic!("expected {code:?}, got {other}"),
    }
}
