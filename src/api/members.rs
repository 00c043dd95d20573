//! What etcd's clients call: the members. A node is added by starting it with `--join`.

use std::sync::Arc;

use tonic::{Code, Request, Response, Status};

use super::ClusterService;
use super::etcd::{header, unread};
use crate::limits::TICK;
use crate::proto::etcdserverpb::cluster_server::Cluster;
use crate::proto::etcdserverpb::{
    Member, MemberListRequest, MemberListResponse, MemberRemoveRequest, MemberRemoveResponse,
};
use crate::proto::v1::{self, MemberRole, cluster_server::Cluster as _};
use crate::shared::{SharedNodeState, internal};
use crate::state::member;
use crate::state::table::View;
use crate::time::Monotonic;

/// The service.
pub struct MembersService(pub Arc<SharedNodeState>);

impl MembersService {
    /// Those that keep the state.
    fn servers(&self, rows: &View) -> Result<Vec<Member>, Status> {
        let scheme = self.0.io.network.scheme();
        let as_etcd = |row: v1::Member| {
            let url = format!("{scheme}://{}", row.address);
            let is_learner = row.role() == MemberRole::Learner;
            // One without a name is shown as one that has not started yet.
            let name = format!("member-{}", row.id);
            Member { id: row.id, name, peer_ur_ls: vec![url.clone()], client_ur_ls: vec![url], is_learner }
        };
        let rows = member::all(rows).map_err(internal)?;
        Ok(rows.into_iter().filter(member::is_server).map(as_etcd).collect())
    }

    async fn remove(&self, id: u64, deadline: Monotonic) -> Result<(), Status> {
        let clock = &self.0.io.clock;
        loop {
            let mut request = Request::new(v1::RemoveRequest { id });
            request.set_timeout(deadline.since(clock.now()));
            let status = match ClusterService(self.0.clone()).remove(request).await {
                Ok(_) => return Ok(()),
                Err(status) => status,
            };
            match status.code() {
                Code::NotFound => return Err(Status::not_found("etcdserver: member not found")),
                Code::FailedPrecondition => {
                    tracing::warn!(why = status.message(), "a member is not removed");
                    let text = "etcdserver: re-configuration failed due to not enough started members";
                    return Err(Status::failed_precondition(text));
                }
                // The leader hands over before it goes, or somebody else changes members.
                Code::Unavailable if clock.now() + TICK < deadline => clock.sleep(TICK).await,
                _ => return Err(unread(status)),
            }
        }
    }
}

#[tonic::async_trait]
impl Cluster for MembersService {
    async fn member_list(&self, request: Request<MemberListRequest>) -> Result<Response<MemberListResponse>, Status> {
        let deadline = self.0.deadline(&request);
        let serializable = !request.into_inner().linearizable;
        let (_, rows) = self.0.view(serializable, deadline).await.map_err(unread)?;
        let members = self.servers(&rows)?;
        Ok(Response::new(MemberListResponse { header: header(&self.0, 0), members }))
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        let deadline = self.0.deadline(&request);
        let id = request.into_inner().id;
        let (_, rows) = self.0.view(false, deadline).await.map_err(unread)?;
        let mut members = self.servers(&rows)?;
        drop(rows);
        if !members.iter().any(|member| member.id == id) {
            return Err(Status::not_found("etcdserver: member not found"));
        }
        self.remove(id, deadline).await?;
        // Whoever removes itself can ask nobody any more.
        members.retain(|member| member.id != id);
        Ok(Response::new(MemberRemoveResponse { header: header(&self.0, 0), members }))
    }
}
