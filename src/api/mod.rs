//! The gRPC services: decode, check, call, encode.

mod cluster;
mod health;
mod metrics;
mod peer;
mod store;
mod tasks;

use std::sync::Arc;

use tonic::service::Routes;

use crate::limits::MESSAGE_BYTES_MAX;
use crate::proto::health::health_server::HealthServer;
use crate::proto::v1::cluster_server::ClusterServer;
use crate::proto::v1::peer_server::PeerServer;
use crate::proto::v1::store_server::StoreServer;
use crate::proto::v1::tasks_server::TasksServer;
use crate::shared::SharedNodeState;

pub use cluster::ClusterService;
pub use health::{Health, HealthService};

/// All services of a running node.
pub fn routes(node: &Arc<SharedNodeState>, health: &Health) -> Routes {
    let peer = PeerServer::new(peer::PeerService(node.clone())).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let store = StoreServer::new(store::StoreService(node.clone())).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let services = Routes::new(HealthServer::new(health.service()))
        .add_service(peer)
        .add_service(store)
        .add_service(ClusterServer::new(ClusterService(node.clone())))
        .add_service(TasksServer::new(tasks::TasksService(node.clone())))
        .prepare();
    Routes::from(services.into_axum_router().merge(metrics::route(node.clone())))
}
