//! The port for those who run the process: metrics and health, over plain HTTP. It tells no
//! content, so it asks nobody who they are.

use std::net::SocketAddr;

use anyhow::Context;
use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::Components;
use crate::components::{Report, Status};
use crate::metrics::Scrape;

/// Where the port is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// Whether there is one.
    pub enabled: bool,
    /// Where it listens. Left out: on the loopback, at a port of the service's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { enabled: true, listen: None }
    }
}

#[derive(Clone)]
struct Admin {
    scrape: Scrape,
    components: Components,
}

/// Serves `/metrics`, `/livez`, `/readyz` and `/healthz` on `listener` until `stop`.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    scrape: Scrape,
    components: Components,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/healthz", get(health))
        .with_state(Admin { scrape, components });
    // Not graceful: a scraper's open connection must not hold the stop up.
    tokio::select! {
        served = axum::serve(listener, routes) => served.context("serve the admin port"),
        () = stop.cancelled_owned() => Ok(()),
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
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

async fn ready(State(admin): State<Admin>) -> Response {
    let report = admin.components.report();
    let ready = report.status != Status::NotReady;
    let (code, text) = if ready { (StatusCode::OK, "ready") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready") };
    let mut body = format!("{text}\n");
    for reason in &report.reasons {
        body.push_str(reason);
        body.push('\n');
    }
    (code, body).into_response()
}

async fn health(State(admin): State<Admin>, RawQuery(query): RawQuery) -> Response {
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
