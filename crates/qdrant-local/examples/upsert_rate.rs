//! Measures how many points per second the server takes, from one and from two
//! streams at once, each waiting for an answer before it sends the next batch.
//!
//! `cargo run --release -p waybill-qdrant-local --example upsert_rate`

use std::time::{Duration, Instant};

use anyhow::Context;
use qdrant_client::qdrant::{
    Condition, CreateCollectionBuilder, CreateFieldIndexCollectionBuilder, Distance, FieldType, Filter, Modifier,
    NamedVectors, PointStruct, Query, QueryPointsBuilder, Range, SparseVectorParamsBuilder, SparseVectorsConfigBuilder,
    UpsertPointsBuilder, Vector, VectorParamsBuilder, VectorsConfigBuilder,
};
use qdrant_client::{Payload, Qdrant};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use waybill_qdrant_local::Server;

/// Dimensions of a common small sentence model.
const DIMENSIONS: u64 = 384;
/// Points of one request.
const BATCH: u64 = 256;
/// Requests of one measurement.
const BATCHES: u64 = 120;
/// Terms of a short text.
const TERMS: u32 = 24;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_env_filter("info,qdrant_edge=error").with_target(false).without_time().init();
    let dir = tempfile::tempdir().context("make a directory")?;
    let listener = TcpListener::bind("127.0.0.1:0").await.context("listen")?;
    let stop = CancellationToken::new();
    let handle = Server::start(dir.path(), listener, stop.clone()).await?;
    let client = Qdrant::from_url(&format!("http://{}", handle.addr())).timeout(Duration::from_secs(60)).build()?;

    for (name, streams, conditional, sparse) in [
        ("dense, 1 stream", 1, false, false),
        ("dense, 2 streams", 2, false, false),
        ("dense + sparse + indexes, conditional, 1 stream", 1, true, true),
        ("dense + sparse + indexes, conditional, 2 streams", 2, true, true),
    ] {
        let collection = format!("{streams}-{conditional}");
        create(&client, &collection, sparse).await?;
        let start = Instant::now();
        let writers = (0..streams).map(|stream| {
            let share = BATCHES / streams;
            write(&client, &collection, stream * share, share, conditional, sparse)
        });
        futures::future::try_join_all(writers).await?;
        let rate = (BATCH * BATCHES) as f64 / start.elapsed().as_secs_f64();
        tracing::info!("{name}: {rate:.0} points/s");

        let start = Instant::now();
        let nearest = Query::new_nearest(vector(7));
        let query = QueryPointsBuilder::new(&collection).query(nearest).using("dense");
        client.query(query.limit(10)).await?;
        let points = BATCH * BATCHES;
        tracing::info!("one dense query over {points} points: {:.1?}", start.elapsed());
    }
    stop.cancel();
    handle.stopped().await;
    Ok(())
}

async fn create(client: &Qdrant, collection: &str, sparse: bool) -> anyhow::Result<()> {
    let mut dense = VectorsConfigBuilder::default();
    dense.add_named_vector_params("dense", VectorParamsBuilder::new(DIMENSIONS, Distance::Cosine));
    let mut request = CreateCollectionBuilder::new(collection).vectors_config(dense);
    if sparse {
        let params = SparseVectorParamsBuilder::default().modifier(Modifier::Idf);
        let mut config = SparseVectorsConfigBuilder::default();
        config.add_named_vector_params("bm25", params);
        request = request.sparse_vectors_config(config);
    }
    client.create_collection(request).await?;
    if sparse {
        for (key, kind) in [("project_id", FieldType::Keyword), ("version", FieldType::Integer)] {
            let request = CreateFieldIndexCollectionBuilder::new(collection, key, kind);
            client.create_field_index(request).await?;
        }
    }
    Ok(())
}

async fn write(
    client: &Qdrant,
    collection: &str,
    first: u64,
    batches: u64,
    conditional: bool,
    sparse: bool,
) -> anyhow::Result<()> {
    for batch in first..first + batches {
        let ids = batch * BATCH..(batch + 1) * BATCH;
        let points: Vec<_> = ids.map(|id| point(id, sparse)).collect();
        let mut request = UpsertPointsBuilder::new(collection, points).wait(true);
        if conditional {
            let older = Range { lt: Some(2.0), ..Range::default() };
            request = request.update_filter(Filter::must([Condition::range("version", older)]));
        }
        client.upsert_points(request).await?;
    }
    Ok(())
}

fn point(id: u64, sparse: bool) -> PointStruct {
    let mut vectors = NamedVectors::default().add_vector("dense", vector(id));
    if sparse {
        let terms = (0..TERMS).map(|term| (term * 977 + (id % 977) as u32, 1.0));
        let terms: Vec<(u32, f32)> = terms.collect();
        vectors = vectors.add_vector("bm25", Vector::from(terms.as_slice()));
    }
    let mut payload = Payload::new();
    payload.insert("project_id", "0195a4c4-1b9e-7c3a-9c57-0a2f6d3b1e11");
    payload.insert("kind", "chunk");
    payload.insert("version", 1_i64);
    PointStruct::new(id, vectors, payload)
}

/// Makes a vector that differs from its neighbours'.
fn vector(seed: u64) -> Vec<f32> {
    let numbers = (0..DIMENSIONS).map(|i| (seed * 31 + i * 17) % 101);
    numbers.map(|number| number as f32 / 101.0 - 0.5).collect()
}
