//! The gRPC services: decode, check, call, encode.

mod auth;
mod cluster;
mod etcd;
mod gate;
pub mod gateway;
mod health;
mod kv;
mod lease;
mod line;
mod maintenance;
mod members;
mod metrics;
mod peer;
mod probe;
mod store;
mod tasks;
mod watch;
mod work;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::middleware::from_fn_with_state;
use tonic::service::Routes;

use crate::limits::{COMMAND_BYTES_MAX, MESSAGE_BYTES_MAX};
use crate::metrics::Metrics;
use crate::proto::etcdserverpb::auth_server::AuthServer;
use crate::proto::etcdserverpb::cluster_server::ClusterServer as MembersServer;
use crate::proto::etcdserverpb::kv_server::KvServer;
use crate::proto::etcdserverpb::lease_server::LeaseServer;
use crate::proto::etcdserverpb::maintenance_server::MaintenanceServer;
use crate::proto::etcdserverpb::watch_server::WatchServer;
use crate::proto::health::health_server::HealthServer;
use crate::proto::v1::cluster_server::ClusterServer;
use crate::proto::v1::peer_server::PeerServer;
use crate::proto::v1::store_server::StoreServer;
use crate::proto::v1::tasks_server::TasksServer;
use crate::proto::v1::work_server::WorkServer;
use crate::proto::v3electionpb::election_server::ElectionServer;
use crate::proto::v3lockpb::lock_server::LockServer;
use crate::shared::SharedNodeState;

pub use cluster::ClusterService;
pub use health::{Health, HealthService};
pub use worker::WorkerService;

/// Room for one of a bounded number, taken for as long as this lives.
struct Entered(Arc<AtomicUsize>);

impl Entered {
    /// Takes room, unless so many have it already.
    fn among(entered: &Arc<AtomicUsize>, max: usize) -> Option<Self> {
        let one = Self(entered.clone());
        (entered.fetch_add(1, Ordering::Relaxed) < max).then_some(one)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All services of a member that keeps the state, which tells those who watch keys of so many changes at once.
pub fn routes(node: &Arc<SharedNodeState>, health: &Health, events_max: usize) -> Routes {
    let peer = PeerServer::new(peer::PeerService(node.clone())).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let store = StoreServer::new(store::StoreService(node.clone())).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let kv = KvServer::new(kv::KvService(node.clone())).max_decoding_message_size(COMMAND_BYTES_MAX);
    let line = line::LineService::new(node.clone());
    let services = Routes::new(HealthServer::new(health.service()))
        .add_service(peer)
        .add_service(store)
        .add_service(kv)
        .add_service(WatchServer::new(watch::WatchService::new(node.clone(), events_max)))
        .add_service(LeaseServer::new(lease::LeaseService::new(node.clone())))
        .add_service(LockServer::new(line.clone()))
        .add_service(ElectionServer::new(line))
        .add_service(MembersServer::new(members::MembersService(node.clone())))
        .add_service(AuthServer::new(auth::AuthService(node.clone())))
        .add_service(MaintenanceServer::new(maintenance::MaintenanceService::new(node.clone())))
        .add_service(ClusterServer::new(ClusterService(node.clone())))
        .add_service(TasksServer::new(tasks::TasksService(node.clone())))
        .add_service(WorkServer::new(work::WorkService::new(node.clone())))
        .prepare();
    let plain = metrics::route(node.clone()).merge(probe::routes(node.clone()));
    let routes = services.into_axum_router().fallback(probe::nowhere).merge(plain);
    let routes = routes.layer(from_fn_with_state(node.clone(), gate::admit));
    Routes::from(gateway::routes(node, &routes).merge(routes))
}

/// All services of a worker that keeps no state.
pub fn worker_routes(worker: &WorkerService, health: &Health, metrics: &Arc<Metrics>) -> Routes {
    let store = StoreServer::new(worker.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let services = Routes::new(HealthServer::new(health.service()))
        .add_service(store)
        .add_service(ClusterServer::new(worker.clone()))
        .add_service(TasksServer::new(worker.clone()))
        .prepare();
    let routes = services.into_axum_router().fallback(probe::nowhere).merge(metrics::plain_route(metrics.clone()));
    Routes::from(routes.layer(from_fn_with_state(worker.clock.clone(), gate::admit_members)))
}
