//! What etcd's clients call: the members.

use std::sync::Arc;

use tonic::{Code, Request, Response, Status};

use super::ClusterService;
use super::etcd::{header, unread};
use crate::ids::Address;
use crate::limits::TICK;
use crate::proto::etcdserverpb::cluster_server::Cluster;
use crate::proto::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
    MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest, MemberUpdateResponse,
};
use crate::proto::v1::{self, MemberRole, cluster_server::Cluster as _};
use crate::shared::{SharedNodeState, internal};
use crate::state::member;
use crate::state::table::View;
use crate::time::Monotonic;

/// The service.
pub struct MembersService(pub Arc<SharedNodeState>);

/// Where a member is that has these URLs.
fn address(urls: &[String]) -> Result<Address, Status> {
    let invalid = || Status::invalid_argument("etcdserver: given member URLs are invalid");
    let [url] = urls else { return Err(invalid()) };
    let address = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")).ok_or_else(invalid)?;
    address.parse().map_err(|_| invalid())
}

fn not_found() -> Status {
    Status::not_found("etcdserver: member not found")
}

/// Why members were not changed, as etcd says it; `refused` where they may not be.
fn unchanged(status: Status, refused: &str) -> Status {
    match status.code() {
        Code::NotFound => not_found(),
        Code::FailedPrecondition => {
            tracing::warn!(why = status.message(), "members are not changed");
            Status::failed_precondition(refused)
        }
        _ => unread(status),
    }
}

fn url_exists() -> Status {
    Status::failed_precondition("etcdserver: Peer URLs already exists")
}

impl MembersService {
    /// Those that keep the state, and those that are yet to.
    fn servers(&self, rows: &View) -> Result<Vec<Member>, Status> {
        let scheme = self.0.io.network.scheme();
        let as_etcd = |row: v1::Member| {
            let url = format!("{scheme}://{}", row.address);
            let (id, peer_ur_ls) = (row.id, vec![url.clone()]);
            match row.role() {
                // One without a name and a URL for clients is shown as one that has not started yet.
                MemberRole::Expected => Some(Member { id, peer_ur_ls, is_learner: row.standby, ..Member::default() }),
                role @ (MemberRole::Learner | MemberRole::Voter) => Some(Member {
                    id,
                    name: format!("member-{id}"),
                    peer_ur_ls,
                    client_ur_ls: vec![url],
                    is_learner: role == MemberRole::Learner,
                }),
                MemberRole::Removed | MemberRole::Worker | MemberRole::Unspecified => None,
            }
        };
        Ok(member::all(rows).map_err(internal)?.into_iter().filter_map(as_etcd).collect())
    }

    /// The same, as everything leaves them that was done before.
    async fn members(&self, deadline: Monotonic) -> Result<Vec<Member>, Status> {
        let (_, rows) = self.0.view(false, deadline).await.map_err(unread)?;
        self.servers(&rows)
    }

    /// Has a change of members made, again and again while another is under way, or the leader hands over.
    async fn change<T, R>(
        &self,
        message: T,
        deadline: Monotonic,
        call: impl AsyncFn(&ClusterService, Request<T>) -> Result<Response<R>, Status>,
    ) -> Result<R, Status>
    where
        T: Clone,
    {
        let clock = &self.0.io.clock;
        let service = ClusterService(self.0.clone());
        loop {
            let mut request = Request::new(message.clone());
            request.set_timeout(deadline.since(clock.now()));
            match call(&service, request).await {
                Ok(reply) => return Ok(reply.into_inner()),
                Err(status) if status.code() == Code::Unavailable && clock.now() + TICK < deadline => {
                    clock.sleep(TICK).await;
                }
                Err(status) => return Err(status),
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

    async fn member_add(&self, request: Request<MemberAddRequest>) -> Result<Response<MemberAddResponse>, Status> {
        let deadline = self.0.deadline(&request);
        let MemberAddRequest { peer_ur_ls, is_learner } = request.into_inner();
        let address = address(&peer_ur_ls)?.to_string();
        if self.members(deadline).await?.iter().any(|member| member.peer_ur_ls == peer_ur_ls) {
            return Err(url_exists());
        }
        let expect = v1::ExpectRequest { address, standby: is_learner };
        let added = self.change(expect, deadline, async |cluster, request| cluster.expect(request).await).await;
        let id = added.map_err(|status| match status.code() {
            Code::AlreadyExists => url_exists(),
            Code::FailedPrecondition => Status::failed_precondition(format!("etcdserver: {}", status.message())),
            _ => unread(status),
        })?;
        let members = self.members(deadline).await?;
        // It may have joined, or gone, since.
        let member = members.iter().find(|member| member.id == id.id).cloned();
        Ok(Response::new(MemberAddResponse { header: header(&self.0, 0), member, members }))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        let deadline = self.0.deadline(&request);
        let MemberUpdateRequest { id, peer_ur_ls } = request.into_inner();
        let address = address(&peer_ur_ls)?.to_string();
        let members = self.members(deadline).await?;
        let Some(member) = members.iter().find(|member| member.id == id) else { return Err(not_found()) };
        if member.peer_ur_ls != peer_ur_ls {
            if members.iter().any(|other| other.peer_ur_ls == peer_ur_ls) {
                return Err(url_exists());
            }
            if !member.name.is_empty() {
                let text = format!(
                    "etcdserver: member {id} says itself where it is: start it with --listen or --advertise {address}"
                );
                return Err(Status::failed_precondition(text));
            }
            // One that has not joined has no uuid.
            let to = v1::MoveRequest { id, address, ..v1::MoveRequest::default() };
            let moved = self.change(to, deadline, async |cluster, request| cluster.r#move(request).await).await;
            moved.map_err(|status| if status.code() == Code::NotFound { not_found() } else { unread(status) })?;
        }
        let members = self.members(deadline).await?;
        Ok(Response::new(MemberUpdateResponse { header: header(&self.0, 0), members }))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        let deadline = self.0.deadline(&request);
        let id = request.into_inner().id;
        let members = self.members(deadline).await?;
        let Some(member) = members.iter().find(|member| member.id == id) else { return Err(not_found()) };
        if !member.is_learner {
            return Err(Status::failed_precondition("etcdserver: can only promote a learner member"));
        }
        let promote = v1::PromoteRequest { id };
        let promoted = self.change(promote, deadline, async |cluster, request| cluster.promote(request).await).await;
        let refused = "etcdserver: can only promote a learner member which is in sync with leader";
        promoted.map_err(|status| unchanged(status, refused))?;
        let members = self.members(deadline).await?;
        Ok(Response::new(MemberPromoteResponse { header: header(&self.0, 0), members }))
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        let deadline = self.0.deadline(&request);
        let id = request.into_inner().id;
        let mut members = self.members(deadline).await?;
        if !members.iter().any(|member| member.id == id) {
            return Err(not_found());
        }
        let remove = v1::RemoveRequest { id };
        let removed = self.change(remove, deadline, async |cluster, request| cluster.remove(request).await).await;
        let refused = "etcdserver: re-configuration failed due to not enough started members";
        removed.map_err(|status| unchanged(status, refused))?;
        // Whoever removes itself can ask nobody any more.
        members.retain(|member| member.id != id);
        Ok(Response::new(MemberRemoveResponse { header: header(&self.0, 0), members }))
    }
}
