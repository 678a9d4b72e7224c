//! What the tests here share.

use std::time::Duration;

use prost_types::{Struct, Value, value::Kind};
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::transport::Channel;
use waybill_api::ingestion::v1::{
    CreateProjectRequest, MediaType, PutOutcome, PutSourceRequest, PutSourceResponse, PutSourcesRequest,
    ingestion_service_client::IngestionServiceClient,
};
use waybill_ingestion::{Config, Deps, run};
use waybill_runtime::{Shutdown, Signals};
use waybill_storage::{Db, DbConfig};
use waybill_testkit::{TestDb, psql};

pub(crate) type Client = IngestionServiceClient<Channel>;

/// A running service on a database of its own, and the project "p".
pub(crate) struct Fixture {
    pub(crate) client: Client,
    pub(crate) channel: Channel,
    pub(crate) shutdown: Shutdown,
    database: TestDb,
    server: JoinHandle<anyhow::Result<()>>,
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        Self::with(Config::default()).await
    }

    pub(crate) async fn with(config: Config) -> Self {
        let database = TestDb::create().await.unwrap();
        let db = Db::connect(&DbConfig {
            url: database.url.clone(),
            max_connections: 8,
            acquire_timeout: Duration::from_secs(20),
            application_name: "test".to_owned(),
        })
        .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = Shutdown::manual(Duration::from_secs(20));
        let server = tokio::spawn(run(config, Deps { db, signals: Signals::default() }, listener, shutdown.clone()));
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        let mut client = IngestionServiceClient::new(channel.clone()).max_decoding_message_size(64 << 20);
        client.create_project(CreateProjectRequest { name: "p".to_owned() }).await.unwrap();
        Self { client, channel, shutdown, database, server }
    }

    /// Runs SQL past the service.
    pub(crate) async fn sql(&self, sql: &str) -> String {
        psql(&self.database.url, sql).await.unwrap()
    }

    /// Counts all rows that a put writes.
    pub(crate) async fn rows(&self) -> String {
        self.sql(
            "SELECT (SELECT count(*) FROM project), (SELECT count(*) FROM source), (SELECT count(*) FROM chunk),
                    (SELECT count(*) FROM put_request), (SELECT count(*) FROM outbox)",
        )
        .await
    }

    pub(crate) async fn put(&self, request: PutSourceRequest) -> PutSourceResponse {
        self.client.clone().put_source(request).await.unwrap().into_inner()
    }

    /// Stops the service and waits for its end.
    pub(crate) async fn stop(self) {
        self.shutdown.trigger();
        self.server.await.unwrap().unwrap();
    }
}

/// A put of a text.
pub(crate) fn text(uri: &str, body: &str) -> PutSourceRequest {
    PutSourceRequest {
        project: "p".to_owned(),
        uri: uri.to_owned(),
        media_type: MediaType::Text.into(),
        body: body.as_bytes().to_vec(),
        ..PutSourceRequest::default()
    }
}

/// An item of a stream.
pub(crate) fn item(sequence: i64, source: PutSourceRequest) -> PutSourcesRequest {
    PutSourcesRequest { sequence, source: Some(source) }
}

pub(crate) fn outcome(response: &PutSourceResponse) -> PutOutcome {
    PutOutcome::try_from(response.outcome).unwrap()
}

pub(crate) fn metadata(fields: &[(&str, Kind)]) -> Struct {
    Struct {
        fields: fields.iter().map(|(key, kind)| ((*key).to_owned(), Value { kind: Some(kind.clone()) })).collect(),
    }
}

pub(crate) fn string(value: &str) -> Kind {
    Kind::StringValue(value.to_owned())
}
