//! Puts the services on a listener and takes them off again.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use qdrant_client::qdrant::collections_server::CollectionsServer;
use qdrant_client::qdrant::points_server::PointsServer;
use qdrant_client::qdrant::qdrant_server::{Qdrant, QdrantServer};
use qdrant_client::qdrant::snapshots_server::{Snapshots, SnapshotsServer};
use qdrant_client::qdrant::{
    CreateFullSnapshotRequest, CreateSnapshotRequest, CreateSnapshotResponse, DeleteFullSnapshotRequest,
    DeleteSnapshotRequest, DeleteSnapshotResponse, HealthCheckReply, HealthCheckRequest, ListFullSnapshotsRequest,
    ListSnapshotsRequest, ListSnapshotsResponse,
};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::catalog::Catalog;
use crate::collections::CollectionsService;
use crate::error::StartError;
use crate::points::PointsService;
use crate::unimplemented::unimplemented_rpcs;

/// Version of the API. `qdrant-client` warns when it is more than one minor
/// version away from its own.
const API_VERSION: &str = "1.20.0";

/// Largest request and answer, in bytes. Twice a real server's default, for
/// batches of vectors of many dimensions.
const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// Requests one connection may have under way; more wait. Writers share a
/// flush, so a few dozen are useful; beyond that they only hold memory.
const REQUESTS_PER_CONNECTION: usize = 128;

/// Time that requests under way get to finish after a stop is asked for. A
/// request takes milliseconds; a client that streams on is cut off.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

/// The Qdrant API over one data directory.
#[derive(Debug)]
pub struct Server;

/// A running server.
#[derive(Debug)]
pub struct Handle {
    addr: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    /// Opens `data_dir` (made if missing) and serves it on `listener` until
    /// `shutdown` is cancelled.
    ///
    /// When this returns, requests are answered. Must be called inside a Tokio
    /// runtime; opening runs on a blocking thread.
    ///
    /// # Errors
    ///
    /// If another process (or another server of this one) holds the directory,
    /// if its manifest or a collection can't be read, or on I/O errors.
    pub async fn start(
        data_dir: &Path,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> Result<Handle, StartError> {
        let addr = listener.local_addr().map_err(StartError::io("read the listener's address"))?;
        let data_dir = data_dir.to_owned();
        let catalog = spawn_blocking(move || Catalog::open(&data_dir))
            .await
            .map_err(std::io::Error::other)
            .map_err(StartError::io("open the data directory"))??;
        let catalog = Arc::new(catalog);

        let task = tokio::spawn(async move {
            serve(&catalog, listener, shutdown).await;
            // A panic in here has been contained and logged already.
            let _ = spawn_blocking(move || catalog.close()).await;
        });
        Ok(Handle { addr, task })
    }
}

impl Handle {
    /// Returns the address the server listens on.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Waits until the server has stopped: everything is flushed and the data
    /// directory is free for another.
    pub async fn stopped(self) {
        if let Err(error) = self.task.await {
            tracing::error!(%error, "server task");
        }
    }
}

async fn serve(catalog: &Arc<Catalog>, listener: TcpListener, shutdown: CancellationToken) {
    let points = PointsServer::new(PointsService::new(Arc::clone(catalog)));
    let collections = CollectionsServer::new(CollectionsService { catalog: Arc::clone(catalog) });
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<PointsServer<PointsService>>().await;
    health.set_serving::<CollectionsServer<CollectionsService>>().await;

    let serving = tonic::transport::Server::builder()
        .concurrency_limit_per_connection(REQUESTS_PER_CONNECTION)
        .add_service(points.max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(collections)
        .add_service(SnapshotsServer::new(NoSnapshots))
        .add_service(QdrantServer::new(HealthService))
        .add_service(health_service)
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            shutdown.clone().cancelled_owned(),
        );
    tokio::select! {
        result = serving => {
            if let Err(error) = result {
                tracing::error!(%error, "serve");
            }
        }
        () = grace(shutdown) => tracing::warn!("cut off requests that did not finish in time"),
    }
}

async fn grace(shutdown: CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(SHUTDOWN_GRACE).await;
}

/// Says who is there.
#[derive(Debug, Clone)]
struct HealthService;

#[tonic::async_trait]
impl Qdrant for HealthService {
    async fn health_check(&self, _request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckReply>, Status> {
        Ok(Response::new(HealthCheckReply {
            title: "qdrant-local, the Qdrant API over qdrant-edge".to_owned(),
            version: API_VERSION.to_owned(),
            commit: None,
        }))
    }
}

/// Refuses snapshots by name.
#[derive(Debug, Clone)]
struct NoSnapshots;

#[tonic::async_trait]
impl Snapshots for NoSnapshots {
    unimplemented_rpcs! { "qdrant.Snapshots":
        create "Create" (CreateSnapshotRequest) -> CreateSnapshotResponse;
        list "List" (ListSnapshotsRequest) -> ListSnapshotsResponse;
        delete "Delete" (DeleteSnapshotRequest) -> DeleteSnapshotResponse;
        create_full "CreateFull" (CreateFullSnapshotRequest) -> CreateSnapshotResponse;
        list_full "ListFull" (ListFullSnapshotsRequest) -> ListSnapshotsResponse;
        delete_full "DeleteFull" (DeleteFullSnapshotRequest) -> DeleteSnapshotResponse;
    }
}
