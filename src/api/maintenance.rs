//! What etcd's clients call: how a member is, and what operators do with it.

use std::sync::Arc;

use tonic::{Code, Request, Response, Status};

use super::ClusterService;
use super::etcd::{header, rejected, unread};
use crate::error::Context;
use crate::proto::etcdserverpb::maintenance_server::Maintenance;
use crate::proto::etcdserverpb::{
    HashKvRequest, HashKvResponse, MoveLeaderRequest, MoveLeaderResponse, StatusRequest, StatusResponse,
};
use crate::proto::v1::{self, cluster_server::Cluster as _};
use crate::raft::core::Role;
use crate::shared::{SharedNodeState, internal};
use crate::state::machine;

/// The version of etcd whose interface this is, for clients that ask what they may use.
const ETCD_VERSION: &str = "3.4.31";

/// The service.
pub struct MaintenanceService(pub Arc<SharedNodeState>);

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[tonic::async_trait]
impl Maintenance for MaintenanceService {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let status = self.0.raft.status();
        let (head, _) = self.0.reader.view().map_err(internal)?;
        let size = machine::file_bytes(&*self.0.io.disk).context(|| "size of the state".into()).map_err(internal)?;
        let leader = status.leader.map_or(0, |id| id.0);
        // As etcd says them.
        let no_leader = (leader == 0).then(|| "etcdserver: no leader".to_owned());
        let no_space = self.0.is_short_of_space().then(|| "etcdserver: mvcc: database space exceeded".to_owned());
        Ok(Response::new(StatusResponse {
            header: header(&self.0, signed(head.revision)),
            version: ETCD_VERSION.into(),
            db_size: signed(size),
            leader,
            raft_index: status.last.0,
            raft_term: status.term.0,
            raft_applied_index: head.applied_index,
            errors: no_leader.into_iter().chain(no_space).collect(),
            db_size_in_use: signed(size),
            is_learner: status.role == Role::Learner,
        }))
    }

    async fn hash_kv(&self, request: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        let revision = request.into_inner().revision;
        let view = self.0.reader.view().map_err(internal)?;
        let answer =
            self.0.read_keys(view, |store| Ok((store.hash(revision)?, store.compacted(), store.revision())))?;
        let (hash, compacted, newest) = answer.map_err(|reject| rejected(&reject.into()))?;
        let header = header(&self.0, signed(newest));
        Ok(Response::new(HashKvResponse { header, hash, compact_revision: signed(compacted) }))
    }

    async fn move_leader(&self, request: Request<MoveLeaderRequest>) -> Result<Response<MoveLeaderResponse>, Status> {
        if !self.0.leads() {
            return Err(Status::failed_precondition("etcdserver: not leader"));
        }
        let to = request.get_ref().target_id;
        let request = request.map(|_| v1::TransferLeaderRequest { to });
        match ClusterService(self.0.clone()).transfer_leader(request).await {
            Ok(_) => Ok(Response::new(MoveLeaderResponse { header: header(&self.0, 0) })),
            Err(status) if status.code() == Code::FailedPrecondition => {
                Err(Status::failed_precondition("etcdserver: bad leader transferee"))
            }
            Err(status) => Err(unread(status)),
        }
    }
}
