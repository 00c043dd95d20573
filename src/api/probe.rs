//! What etcd answers to plain HTTP beside its calls: `GET /health`, for who keeps watch over members, and `GET /version`. What is
//! nowhere is not found.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, http::StatusCode};
use tonic::Status;

use super::Entered;
use crate::io::{HEALTH, VERSION, is_grpc};
use crate::shared::SharedNodeState;

/// The version of etcd whose interface this is, for clients that ask what they may use.
pub const ETCD_VERSION: &str = "3.4.31";

/// How long a majority may take to confirm that this member is healthy (etcd's value, too).
const PATIENCE: Duration = Duration::from_secs(1);

/// How many may wait for that at once.
const ASKING_MAX: usize = 64;

const JSON: [(axum::http::HeaderName, &str); 1] = [(CONTENT_TYPE, "application/json")];

/// The routes of a member that keeps the state.
pub fn routes(node: Arc<SharedNodeState>) -> Router {
    Router::new().route(HEALTH, get(health)).route(VERSION, get(version)).with_state((node, Arc::default()))
}

/// A member is healthy while no alarm is raised and it can read.
async fn health(State((node, asking)): State<(Arc<SharedNodeState>, Arc<AtomicUsize>)>) -> Response {
    // Anybody may ask.
    let Some(_entered) = Entered::among(&asking, ASKING_MAX) else {
        return StatusCode::TOO_MANY_REQUESTS.into_response();
    };
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

/// The answer to what nothing here answers.
pub async fn nowhere(request: Request) -> Response {
    let path = request.uri().path();
    match is_grpc(request.headers()) {
        true => Status::unimplemented(format!("unknown service {path}")).into_http(),
        false => (StatusCode::NOT_FOUND, format!("{path}: there is nothing here\n")).into_response(),
    }
}
