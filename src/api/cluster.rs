//! The cluster itself: its status, and joining it.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::ids::{Address, NodeId};
use crate::limits::MEMBERS_MAX;
use crate::proto::v1::{self, JoinReply, JoinRequest, Member, MemberRole, MemberStatus, StatusReply, StatusRequest};
use crate::raft::manager::ProposeError;
use crate::shared::{LEADER_HINT, SharedNodeState, internal};
use crate::state::member;
use crate::time::Monotonic;

/// The service about the cluster.
pub struct ClusterService(pub Arc<SharedNodeState>);

impl ClusterService {
    fn status_now(&self) -> Result<StatusReply, Status> {
        let status = self.0.raft.status();
        let (head, rows) = self.0.reader.snapshot().map_err(internal)?;
        let with_match = |member: Member| {
            let id = NodeId(member.id);
            let matched = if id == status.id { Some(&status.last) } else { status.matched.get(&id) };
            let matched_index = matched.filter(|_| self.0.leads()).map(|index| index.0);
            MemberStatus { member: Some(member), matched_index }
        };
        Ok(StatusReply {
            cluster_id: self.0.identity.cluster.0,
            id: status.id.0,
            role: status.role.name().into(),
            leader: status.leader.map_or(0, |id| id.0),
            term: status.term.0,
            commit_index: status.commit.0,
            applied_index: head.applied_index,
            last_index: status.last.0,
            version: env!("CARGO_PKG_VERSION").into(),
            members: member::all(&rows).map_err(internal)?.into_iter().map(with_match).collect(),
            cluster_time_ms: head.cluster_time_ms,
            digest: head.rows_digest,
        })
    }

    /// Gives the caller an id, or the one it has. Only the leader's answer counts: it proposes one change at a time.
    async fn join_here(&self, request: &JoinRequest, deadline: Monotonic) -> Result<JoinReply, Status> {
        self.0.read_barrier(deadline).await?;
        let (head, rows) = self.0.reader.snapshot().map_err(internal)?;
        let members = member::all(&rows).map_err(internal)?;
        let cluster_id = self.0.identity.cluster.0;
        let live: Vec<Member> = members.iter().filter(|member| member.role() != MemberRole::Removed).cloned().collect();
        if let Some(known) = members.iter().find(|member| member.uuid == request.uuid) {
            return match known.role() {
                MemberRole::Removed => Err(Status::failed_precondition(format!(
                    "this node was member {} and was removed; to join again give it an empty data directory",
                    known.id
                ))),
                _ => Ok(JoinReply { cluster_id, id: known.id, members: live }),
            };
        }
        if live.len() >= MEMBERS_MAX {
            return Err(Status::resource_exhausted(format!("a cluster has at most {MEMBERS_MAX} members")));
        }
        if let Some(same) = live.iter().find(|member| member.address == request.address) {
            let text = format!("member {} has the address {} already", same.id, request.address);
            return Err(Status::already_exists(text));
        }
        let id = head.members_added + 1;
        let learner = Member {
            id,
            uuid: request.uuid.clone(),
            address: request.address.clone(),
            role: MemberRole::Learner.into(),
        };
        let change = v1::MemberChange { members: vec![learner] };
        match self.0.io.clock.deadline(deadline, self.0.raft.change_members(change)).await {
            Ok(Ok(_)) => Ok(JoinReply { cluster_id, id, members: live }),
            Ok(Err(ProposeError::NotLeader(_))) => Err(Status::unavailable("not done: this member does not lead")),
            Ok(Err(error)) => Err(Status::unavailable(format!("{error}; ask again"))),
            Err(_) => Err(Status::unavailable("the change is not committed yet; ask again")),
        }
    }
}

#[tonic::async_trait]
impl v1::cluster_server::Cluster for ClusterService {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        self.status_now().map(Response::new)
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let deadline = self.0.deadline(&request);
        let request = request.into_inner();
        if request.uuid.len() != 16 {
            return Err(Status::invalid_argument(format!("uuid: {} bytes, not 16", request.uuid.len())));
        }
        if let Err(error) = request.address.parse::<Address>() {
            return Err(Status::invalid_argument(error.to_string()));
        }
        if self.0.leads() {
            return self.join_here(&request, deadline).await.map(Response::new);
        }
        let mut refusal = Status::unavailable("not done: this member does not lead; ask the leader");
        let leader = self.0.raft.status().leader;
        let address = leader.map(|id| self.0.address_of(id)).transpose()?.flatten();
        if let Some(value) = address.and_then(|address| address.as_str().parse().ok()) {
            refusal.metadata_mut().insert(LEADER_HINT, value);
        }
        Err(refusal)
    }
}
