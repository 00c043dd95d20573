//! `GET /metrics`, over HTTP/1.1 and HTTP/2: what this member counts, as Prometheus reads it.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, http::StatusCode, http::header::CONTENT_TYPE};

use crate::metrics::Metrics;
use crate::shared::SharedNodeState;

/// The path.
pub const METRICS: &str = "/metrics";

/// The route of a member.
pub fn route(node: Arc<SharedNodeState>) -> Router {
    Router::new().route(METRICS, get(show)).with_state(node)
}

/// The route of a worker without state: what concerns log and state stays at zero.
pub fn plain_route(metrics: Arc<Metrics>) -> Router {
    Router::new().route(METRICS, get(async |State(metrics): State<Arc<Metrics>>| text(&metrics))).with_state(metrics)
}

fn text(metrics: &Metrics) -> Response {
    ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], metrics.text()).into_response()
}

async fn show(State(node): State<Arc<SharedNodeState>>) -> Response {
    let head = match node.reader.view() {
        Ok((head, _)) => head,
        Err(fault) => return (StatusCode::INTERNAL_SERVER_ERROR, fault.to_string()).into_response(),
    };
    let metrics = &node.metrics;
    for (level, value) in [
        (&metrics.tasks_pending, head.tasks_pending),
        (&metrics.workers_live, head.workers_live),
        (&metrics.sessions_live, head.sessions_live),
        (&metrics.alarms, head.alarms_no_space + head.alarms_corrupt),
        (&metrics.keys_bytes, node.reader.keys_bytes()),
    ] {
        level.set(value as i64);
    }
    text(metrics)
}
