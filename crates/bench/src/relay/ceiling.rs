//! The same points, sent straight.

use std::time::Duration;

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use qdrant_client::Qdrant;
use qdrant_client::qdrant::{
    GetPointsBuilder, NamedVectors, PointId, PointStruct, RetrievedPoint, UpsertPointsBuilder, Vector, VectorOutput,
    Vectors as PointVectors, vector, vector_output, vectors::VectorsOptions, vectors_output,
};
use tokio::time::Instant;
use waybill_vectors::{CollectionSpec, QdrantConfig, Vectors};

use super::rows::Round;

/// An alias of our own, so that nobody's search moves.
const ALIAS: &str = "waybill-bench-ceiling";

/// Points read back in one call: a few megabytes.
const READ_BATCH: usize = 1_000;

/// A loaded machine may take this long for a batch.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A way of sending.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// Points in a request.
    pub(super) batch: usize,
    /// Requests under way at once.
    pub(super) streams: usize,
}

impl Shape {
    /// Those that are tried; the best of them is the ceiling.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        [256, 512, 1_024].into_iter().flat_map(|batch| [1, 2, 3].map(|streams| Self { batch, streams }))
    }
}

/// A Qdrant without a relay before it.
pub(super) struct Ceiling {
    client: Qdrant,
    vectors: Vectors,
}

impl Ceiling {
    /// Makes clients of the server at `url`.
    pub(super) fn connect(url: &str) -> anyhow::Result<Self> {
        let client = Qdrant::from_url(url).timeout(TIMEOUT).skip_compatibility_check().build()?;
        Ok(Self { client, vectors: Vectors::connect(&QdrantConfig::new(url))? })
    }

    /// Deletes a collection; the relay makes it again when it finds it missing.
    pub(super) async fn clear(&self, collection: &str) -> anyhow::Result<()> {
        Ok(self.vectors.delete_collection(collection).await?)
    }

    /// Reads the points that the relay has just written, as they can be sent again.
    pub(super) async fn read_back(&self, collection: &str, round: &Round<'_>) -> anyhow::Result<Vec<PointStruct>> {
        let ids: Vec<PointId> = round.ids().map(|id| id.to_string().into()).collect();
        let mut points = Vec::with_capacity(ids.len());
        for ids in ids.chunks(READ_BATCH) {
            let request = GetPointsBuilder::new(collection, ids).with_payload(true).with_vectors(true);
            let found = self.client.get_points(request).await.context("read the points back")?;
            points.extend(found.result.into_iter().map(as_sent));
        }
        Ok(points)
    }

    /// Sends the points into an empty collection and returns the time that took.
    pub(super) async fn send(
        &self,
        points: &[PointStruct],
        shape: Shape,
        dimensions: usize,
    ) -> anyhow::Result<Duration> {
        let spec = CollectionSpec { name: ALIAS.to_owned() + "-points", dimensions };
        self.vectors.delete_collection(&spec.name).await?;
        self.vectors.ensure_collection(&spec, ALIAS).await?;
        let batches: Vec<Vec<PointStruct>> = points.chunks(shape.batch).map(<[_]>::to_vec).collect();
        let began = Instant::now();
        stream::iter(batches)
            .map(|batch| {
                let request = UpsertPointsBuilder::new(spec.name.clone(), batch).wait(true);
                self.client.upsert_points(request)
            })
            .buffer_unordered(shape.streams)
            .try_for_each(|_| std::future::ready(Ok(())))
            .await
            .context("send the points")?;
        let took = began.elapsed();
        self.vectors.delete_collection(&spec.name).await?;
        Ok(took)
    }
}

/// Turns what is read into what is written.
fn as_sent(point: RetrievedPoint) -> PointStruct {
    let vectors = match point.vectors.and_then(|vectors| vectors.vectors_options) {
        Some(vectors_output::VectorsOptions::Vectors(named)) => named.vectors,
        // Ours are named, always.
        Some(vectors_output::VectorsOptions::Vector(_)) | None => return PointStruct::default(),
    };
    let vectors = vectors.into_iter().map(|(name, vector)| (name, vector_as_sent(vector))).collect();
    PointStruct {
        id: point.id,
        payload: point.payload,
        vectors: Some(PointVectors { vectors_options: Some(VectorsOptions::Vectors(NamedVectors { vectors })) }),
    }
}

fn vector_as_sent(output: VectorOutput) -> Vector {
    let vector = output.vector.map(|vector| match vector {
        vector_output::Vector::Dense(dense) => vector::Vector::Dense(dense),
        vector_output::Vector::Sparse(sparse) => vector::Vector::Sparse(sparse),
        vector_output::Vector::MultiDense(dense) => vector::Vector::MultiDense(dense),
    });
    Vector { vector, ..Vector::default() }
}
