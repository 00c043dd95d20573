//! What etcd answers to plain HTTP beside its calls: `GET /health`, for who keeps watch over members, and `GET /version`. What is
//! nowhere is not found.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, http::StatusCode};
use tonic::Status;

use crate::shared::SharedNodeState;

/// The paths.
pub const HEALTH: &str = "/health";
/// See [`HEALTH`].
pub const VERSION: &str = "/version";

/// The version of etcd whose interface this is, for clients that ask what they may use.
pub const ETCD_VERSION: &str = "3.4.31";

/// How long a majority may take to confirm that this member is healthy (etcd's value, too).
const PATIENCE: Duration = Duration::from_secs(1);

const JSON: [(axum::http::HeaderName, &str); 1] = [(CONTENT_TYPE, "application/json")];

/// The routes of a member that keeps the state.
pub fn routes(node: Arc<SharedNodeState>) -> Router {
    Router::new().route(HEALTH, get(health)).route(VERSION, get(version)).with_state(node)
}

/// A member is healthy while no alarm is raised and it can read.
async fn health(State(node): State<Arc<SharedNodeState>>) -> Response {
    let alarmed = node.reader.view().map_or(true, |(head, _)| head.alarms_no_space + head.alarms_corrupt > 0);
    let deadline = node.io.clock.now() + PATIENCE;
    match !alarmed && node.read_barrier(deadline).await.is_ok() {
        true => (JSON, r#"{"health":"true"}"#).into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, JSON, r#"{"health":"false"}"#).into_response(),
    }
}

async fn version() -> Response {
    let minor = ETCD_VERSION.rsplit_once('.').map_or(ETCD_VERSION, |(minor, _)| minor);
    (JSON, format!(r#"{{"etcdserver":"{ETCD_VERSION}","etcdcluster":"{minor}.0"}}"#)).into_response()
}

/// Whether a request is a call of gRPC.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let grpc = |value: &HeaderValue| value.as_bytes().starts_with(b"application/grpc");
    headers.get(CONTENT_TYPE).is_some_and(grpc)
}

/// The answer to what nothing here answers.
pub async fn nowhere(request: Request) -> Response {
    let path = request.uri().path();
    match is_grpc(request.headers()) {
        true => Status::unimplemented(format!("unknown service {path}")).into_http(),
        false => (
            StatusCode::NOT_FOUND,
            format!("{path}: there is nothing here but gRPC, {HEALTH}, {VERSION} and /metrics\n"),
        )
            .into_response(),
    }
}
