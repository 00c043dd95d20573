//! The gRPC health checking protocol. The whole server has one answer, under the empty service name and `cairn`.

use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures_util::Stream;
use futures_util::stream;
use tokio::sync::Notify;
use tonic::{Request, Response, Status};

use crate::proto::health::health_check_response::ServingStatus;
use crate::proto::health::{HealthCheckRequest, HealthCheckResponse};

/// Whether the node serves, to be set by its lifecycle and asked by probers.
#[derive(Clone, Default)]
pub struct Health(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Clone, Copy, Default)]
struct State {
    serving: bool,
    ended: bool,
}

impl Health {
    /// Says whether the node serves from now on, unless it ends.
    pub fn set_serving(&self, serving: bool) {
        self.change(|state| state.serving = serving);
    }

    /// Says that the node ends: whatever is said from now on, it does not serve.
    pub fn end(&self) {
        self.change(|state| state.ended = true);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.state.lock().expect("no code panics while it holds two flags"));
        self.0.changed.notify_waiters();
    }

    /// The service that answers probers.
    pub fn service(&self) -> HealthService {
        HealthService(self.clone())
    }

    fn status(&self) -> ServingStatus {
        match *self.0.state.lock().expect("no code panics while it holds two flags") {
            State { serving: true, ended: false } => ServingStatus::Serving,
            State { .. } => ServingStatus::NotServing,
        }
    }

    /// The status once it is another than `last`.
    async fn next(&self, last: Option<ServingStatus>) -> ServingStatus {
        loop {
            let changed = self.0.changed.notified();
            let status = self.status();
            if Some(status) != last {
                return status;
            }
            changed.await;
        }
    }
}

/// The service over a [`Health`].
pub struct HealthService(Health);

fn known(service: &str) -> bool {
    matches!(service, "" | "cairn")
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl crate::proto::health::health_server::Health for HealthService {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        match request.into_inner().service {
            service if known(&service) => Ok(Response::new(response(self.0.status()))),
            service => Err(Status::not_found(format!("there is no service {service:?}"))),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        if !known(&request.into_inner().service) {
            // The protocol: say unknown and keep the stream open, the service may appear.
            let unknown = stream::iter([Ok(response(ServingStatus::ServiceUnknown))]);
            return Ok(Response::new(Box::pin(stream::StreamExt::chain(unknown, stream::pending()))));
        }
        let updates = stream::unfold((self.0.clone(), None), async |(health, last)| {
            let status = health.next(last).await;
            Some((Ok(response(status)), (health, Some(status))))
        });
        Ok(Response::new(Box::pin(updates)))
    }
}
