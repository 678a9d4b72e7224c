//! The port for those who run the process: metrics and health. It tells no content, so it asks
//! nobody who they are, unless it is told to ask for certificates.

use std::net::SocketAddr;

use anyhow::Context;
use axum::Router;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{FromRequestParts, RawQuery, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::IncomingStream;
use futures::stream::{BoxStream, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use waybill_tls::{ServerTls, ServerTlsConfig};

use crate::Components;
use crate::components::{Report, Status};
use crate::connection::{Connection, Vouched, incoming};
use crate::metrics::Scrape;

/// Where the port is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// Whether there is one.
    pub enabled: bool,
    /// Where it listens. Left out: on the loopback, at a port of the service's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Its TLS. If callers are asked for certificates, those without one are told nothing but
    /// whether the process is live and ready: whoever asks for no more, such as a kubelet, has none.
    pub tls: ServerTlsConfig,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { enabled: true, listen: None, tls: ServerTlsConfig::default() }
    }
}

#[derive(Clone)]
struct Admin {
    scrape: Scrape,
    components: Components,
    asks_callers: bool,
}

/// Serves `/metrics`, `/livez`, `/readyz` and `/healthz` on `listener` until `stop`, over TLS if
/// there is a certificate.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    tls: Option<ServerTls>,
    scrape: Scrape,
    components: Components,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/healthz", get(health))
        .with_state(Admin { scrape, components, asks_callers: tls.as_ref().is_some_and(ServerTls::asks_callers) })
        .into_make_service_with_connect_info::<Vouched>();
    let address = listener.local_addr().context("read the listener's address")?;
    // However this ends, a scraper's open connection ends with it.
    let cut = stop.child_token();
    let _cut = cut.clone().drop_guard();
    let incoming = Incoming { connections: Box::pin(incoming(listener, tls, cut)), address };
    tokio::select! {
        served = axum::serve(incoming, routes) => served.context("serve the admin port"),
        () = stop.cancelled_owned() => Ok(()),
    }
}

/// The connections of the port, limited and with their handshakes as those of gRPC.
struct Incoming {
    connections: BoxStream<'static, std::io::Result<Connection>>,
    address: SocketAddr,
}

impl axum::serve::Listener for Incoming {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            match self.connections.next().await {
                Some(Ok(connection)) => return (connection, self.address),
                Some(Err(error)) => tracing::warn!(%error, "connection not accepted"),
                // It never ends by itself.
                None => std::future::pending().await,
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        Ok(self.address)
    }
}

impl Connected<IncomingStream<'_, Incoming>> for Vouched {
    fn connect_info(stream: IncomingStream<'_, Incoming>) -> Self {
        stream.io().vouched()
    }
}

/// Whether a caller may be told what there is to read.
struct IsKnown(bool);

impl FromRequestParts<Admin> for IsKnown {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, admin: &Admin) -> Result<Self, Self::Rejection> {
        let vouched = parts.extensions.get::<ConnectInfo<Vouched>>();
        Ok(Self(!admin.asks_callers || vouched.is_some_and(|vouched| vouched.0.is_vouched())))
    }
}

/// A caller who may be told what there is to read.
struct Known;

impl FromRequestParts<Admin> for Known {
    type Rejection = (StatusCode, &'static str);

    async fn from_request_parts(parts: &mut Parts, admin: &Admin) -> Result<Self, Self::Rejection> {
        match IsKnown::from_request_parts(parts, admin).await {
            Ok(IsKnown(true)) => Ok(Self),
            _ => Err((StatusCode::FORBIDDEN, "show a certificate that admin.tls.client_ca_file has signed\n")),
        }
    }
}

async fn metrics(_: Known, State(admin): State<Admin>) -> Response {
    match admin.scrape.render() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response(),
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "metrics not written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// That this answers is all there is to it: no store can make the process be killed.
async fn live() -> &'static str {
    "live\n"
}

async fn ready(IsKnown(is_known): IsKnown, State(admin): State<Admin>) -> Response {
    let report = admin.components.report();
    let ready = report.status != Status::NotReady;
    let (code, text) = if ready { (StatusCode::OK, "ready") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready") };
    let mut body = format!("{text}\n");
    // A reason may hold the last error of a store.
    for reason in report.reasons.iter().filter(|_| is_known) {
        body.push_str(reason);
        body.push('\n');
    }
    (code, body).into_response()
}

async fn health(_: Known, State(admin): State<Admin>, RawQuery(query): RawQuery) -> Response {
    let mut report = admin.components.report();
    if !is_verbose(query.as_deref().unwrap_or_default()) {
        report.components.clear();
    }
    let code = match report.status {
        Status::Ok | Status::Degraded => StatusCode::OK,
        Status::NotReady => StatusCode::SERVICE_UNAVAILABLE,
    };
    (code, [(header::CONTENT_TYPE, "application/json")], json(&report)).into_response()
}

fn json(report: &Report) -> String {
    // Nothing in it can't be written.
    let mut text = serde_json::to_string_pretty(report).unwrap_or_default();
    text.push('\n');
    text
}

fn is_verbose(query: &str) -> bool {
    query.split('&').any(|pair| matches!(pair, "verbose" | "verbose=1" | "verbose=true"))
}
