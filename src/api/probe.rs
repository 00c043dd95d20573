//! What etcd answers to plain HTTP beside its calls: `GET /health`, `/livez` and `/readyz`, for who keeps watch over members, and
//! `GET /version`. What is nowhere is not found.

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
use crate::io::{HEALTH, LIVEZ, READYZ, VERSION, is_grpc};
use crate::shared::SharedNodeState;

/// The version of etcd whose interface this is, for clients that ask what they may use.
pub const ETCD_VERSION: &str = "3.4.31";

/// How long a majority may take to confirm that this member is healthy (etcd's value, too).
const PATIENCE: Duration = Duration::from_secs(1);

/// How many may wait for that at once.
const ASKING_MAX: usize = 64;

const JSON: [(axum::http::HeaderName, &str); 1] = [(CONTENT_TYPE, "application/json")];

/// Those who are waiting for it.
type Asking = State<(Arc<SharedNodeState>, Arc<AtomicUsize>)>;

/// The routes of a member that keeps the state.
pub fn routes(node: Arc<SharedNodeState>) -> Router {
    let routes = Router::new().route(HEALTH, get(health)).route(LIVEZ, get(livez)).route(READYZ, get(readyz));
    routes.route(VERSION, get(version)).with_state((node, Arc::default()))
}

/// What a request asks for behind its path: names with values, which need no decoding where they are ones that have a meaning here.
fn parameters(request: &Request) -> impl Iterator<Item = (&str, &str)> {
    let pairs = request.uri().query().unwrap_or_default().split('&');
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// Looks at what a member can do, as far as the request does not exclude it; says what it cannot.
async fn ailment(node: &SharedNodeState, checks: &[Check], excluded: &[&str]) -> Option<&'static str> {
    let head = node.reader.view().map(|(head, _)| head).ok();
    for check in checks.iter().filter(|check| !excluded.contains(&check.name())) {
        let fine = match check {
            Check::Space => head.as_ref().is_some_and(|head| head.alarms_no_space == 0),
            Check::Corruption(_) => head.as_ref().is_some_and(|head| head.alarms_corrupt == 0),
            Check::State => head.is_some(),
            Check::Majority => node.read_barrier(node.io.clock.now() + PATIENCE).await.is_ok(),
        };
        if !fine {
            return Some(check.name());
        }
    }
    None
}

/// What is looked at, by the name that etcd has for it there.
enum Check {
    Space,
    Corruption(&'static str),
    State,
    Majority,
}

impl Check {
    fn name(&self) -> &'static str {
        match self {
            Self::Space => "NOSPACE",
            Self::Corruption(name) => name,
            Self::State => "serializable_read",
            Self::Majority => "linearizable_read",
        }
    }
}

/// Answers unless too many wait for that already: anybody may ask.
async fn probe(
    State((node, asking)): Asking,
    request: Request,
    checks: &[Check],
    answer: impl FnOnce(Option<&'static str>) -> Response,
) -> Response {
    let Some(_entered) = Entered::among(&asking, ASKING_MAX) else {
        return StatusCode::TOO_MANY_REQUESTS.into_response();
    };
    let excluded: Vec<&str> =
        parameters(&request).filter(|(name, _)| *name == "exclude").map(|(_, value)| value).collect();
    answer(ailment(&node, checks, &excluded).await)
}

/// A member is healthy while no alarm is raised and it can read, with a majority or, if that is asked, without.
async fn health(node: Asking, request: Request) -> Response {
    let alone = parameters(&request).any(|parameter| parameter == ("serializable", "true"));
    let checks = [Check::Space, Check::Corruption("CORRUPT"), if alone { Check::State } else { Check::Majority }];
    probe(node, request, &checks, |ailment| match ailment {
        None => (JSON, r#"{"health":"true"}"#).into_response(),
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, JSON, r#"{"health":"false"}"#).into_response(),
    })
    .await
}

/// A member lives while it can read what it has: to start it again would not mend anything else.
async fn livez(node: Asking, request: Request) -> Response {
    probe(node, request, &[Check::State], told).await
}

/// It is ready while it can read with a majority, and nothing is known to be damaged.
async fn readyz(node: Asking, request: Request) -> Response {
    probe(node, request, &[Check::Corruption("data_corruption"), Check::State, Check::Majority], told).await
}

fn told(ailment: Option<&'static str>) -> Response {
    match ailment {
        None => "ok\n".into_response(),
        Some(name) => (StatusCode::SERVICE_UNAVAILABLE, format!("[-]{name} failed\n")).into_response(),
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
