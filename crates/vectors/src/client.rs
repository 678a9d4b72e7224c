use std::{
    future::Future,
    sync::{Arc, OnceLock},
    time::Duration,
};

use opentelemetry::metrics::Meter;
use qdrant_client::qdrant::{
    HealthCheckRequest, collections_client::CollectionsClient, points_client::PointsClient, qdrant_client::QdrantClient,
};
use tokio::time::{Instant, timeout};
use tonic::{
    Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};

use tracing::{Instrument, Span};

use crate::{QdrantConfig, Result, VectorError, meter::CallMeter};

/// The operation that only asks whether the server answers.
const HEALTH_CHECK: &str = "health_check";

/// A client of one Qdrant. Clones share the connection.
///
/// It stands on the generated clients of `qdrant-client`, not on its `Qdrant` type: that
/// one sends a failed call a second time by itself, which a lease can't allow, copies each
/// request to be able to, and has one timeout for all.
#[derive(Debug, Clone)]
pub struct Vectors {
    channel: Transport,
    timeout: Duration,
    meter: Arc<OnceLock<CallMeter>>,
}

pub(crate) type Transport = InterceptedService<Channel, ApiKey>;

/// Adds the key to every call.
#[derive(Clone)]
pub(crate) struct ApiKey(Option<MetadataValue<Ascii>>);

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "ApiKey([redacted])" } else { "ApiKey(none)" })
    }
}

impl Interceptor for ApiKey {
    fn call(&mut self, mut request: Request<()>) -> std::result::Result<Request<()>, Status> {
        if let Some(key) = &self.0 {
            request.metadata_mut().insert("api-key", key.clone());
        }
        Ok(request)
    }
}

impl Vectors {
    /// Makes a client. Connects at the first call, so a server that is down is no error here.
    ///
    /// # Errors
    /// [`VectorError::Config`] if the URL, the key or a certificate can't be used.
    pub fn connect(config: &QdrantConfig) -> Result<Self> {
        let key = config.api_key.as_deref().map(|key| {
            let mut value: MetadataValue<Ascii> = key
                .parse()
                .map_err(|_| VectorError::Config("the api key holds characters that no header can carry".to_owned()))?;
            value.set_sensitive(true);
            Ok::<_, VectorError>(value)
        });
        let channel = waybill_tls::channel(&config.url, &config.tls, config.connect_timeout)
            .map_err(|error| VectorError::Config(error.to_string()))?;
        Ok(Self {
            channel: InterceptedService::new(channel, ApiKey(key.transpose()?)),
            timeout: config.timeout,
            meter: Arc::default(),
        })
    }

    /// Has calls measured from now on, those of clones too.
    pub fn measure(&self, meter: &Meter) {
        let _ = self.meter.set(CallMeter::new(meter));
    }

    /// Asks whether the server answers, and returns its version.
    ///
    /// # Errors
    /// If it doesn't.
    pub async fn health(&self) -> Result<String> {
        let mut client = QdrantClient::new(self.channel.clone());
        let reply = self.call(HEALTH_CHECK, "", self.timeout, client.health_check(HealthCheckRequest {})).await?;
        Ok(reply.version)
    }

    pub(crate) fn points(&self) -> PointsClient<Transport> {
        PointsClient::new(self.channel.clone())
    }

    pub(crate) fn collections(&self) -> CollectionsClient<Transport> {
        CollectionsClient::new(self.channel.clone())
    }

    /// How long a call without a deadline of its own may take.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Waits for a call's answer, at most `limit`. Large calls come boxed: their futures hold the
    /// request in several places.
    pub(crate) async fn call<T>(
        &self,
        operation: &'static str,
        collection: &str,
        limit: Duration,
        answer: impl Future<Output = std::result::Result<Response<T>, Status>>,
    ) -> Result<T> {
        let span = if operation == HEALTH_CHECK {
            // Asked every few seconds: no trace is made of it.
            Span::none()
        } else {
            tracing::info_span!(
                "qdrant",
                otel.name = %format_args!("qdrant {operation}"),
                otel.kind = "client",
                otel.status_code = tracing::field::Empty,
                db.system = "qdrant",
                db.operation = operation,
                db.collection = collection,
            )
        };
        let begun = Instant::now();
        let meter = self.meter.get();
        let in_flight = meter.map(CallMeter::begin);
        let result = match timeout(limit, answer.instrument(span.clone())).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(VectorError::from_status(&status, collection, limit)),
            Err(_) => Err(VectorError::Timeout(limit)),
        };
        drop(in_flight);
        if result.is_err() {
            span.record("otel.status_code", "ERROR");
        }
        if let Some(meter) = meter {
            meter.ended(operation, begun.elapsed(), &result);
        }
        result
    }
}
