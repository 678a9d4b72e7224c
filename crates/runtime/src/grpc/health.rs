use std::sync::Arc;

use tokio::sync::Mutex;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

/// Tells callers of `grpc.health.v1` whether services take calls. Clones share the state.
#[derive(Debug, Clone)]
pub struct Health(Arc<State>);

#[derive(Debug)]
struct State {
    reporter: HealthReporter,
    services: &'static [&'static str],
    /// Set when the process stops: nothing may say SERVING after that. A lock over the
    /// write, not an atomic beside it, or a late `set` could slip in between.
    stopped: Mutex<bool>,
}

impl Health {
    pub(super) fn new(services: &'static [&'static str]) -> Self {
        Self(Arc::new(State { reporter: HealthReporter::new(), services, stopped: Mutex::new(false) }))
    }

    /// Says whether `service` (its full gRPC name) takes calls. Has no effect once the
    /// process is stopping.
    pub async fn set(&self, service: &str, serving: bool) {
        let stopped = self.0.stopped.lock().await;
        if !*stopped {
            self.write(service, serving).await;
        }
    }

    pub(super) async fn start(&self) {
        for service in self.0.services {
            self.set(service, true).await;
        }
    }

    /// Says NOT_SERVING for everything, for good.
    pub(super) async fn stop(&self) {
        let mut stopped = self.0.stopped.lock().await;
        *stopped = true;
        for service in self.0.services.iter().copied().chain([""]) {
            self.write(service, false).await;
        }
    }

    pub(super) fn server(&self) -> HealthServer<HealthService> {
        HealthServer::new(HealthService::from_health_reporter(self.0.reporter.clone()))
    }

    async fn write(&self, service: &str, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        self.0.reporter.set_service_status(service, status).await;
    }
}
