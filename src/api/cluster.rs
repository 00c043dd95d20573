//! The cluster itself: its status, and joining it.

use std::sync::Arc;

use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};

use crate::controller;
use crate::forward::{self, not_done, not_leader};
use crate::ids::{Address, Index, NodeId};
use crate::io::Channel;
use crate::limits::{MEMBERS_MAX, WORKERS_MAX};
use crate::proto::v1::cluster_client::ClusterClient;
use crate::proto::v1::{
    self, ExpectReply, ExpectRequest, HeardReply, HeardRequest, JoinReply, JoinRequest, Member, MemberRole,
    MemberStatus, MoveReply, MoveRequest, PromoteReply, PromoteRequest, RemoveReply, RemoveRequest, StatusReply,
    StatusRequest, TransferLeaderReply, TransferLeaderRequest,
};
use crate::raft::handle::ProposeError;
use crate::raft::log::Identity;
use crate::shared::{Caller, FORWARDED, SharedNodeState, internal};
use crate::state::{format, member};
use crate::time::Monotonic;

/// The service about the cluster.
pub struct ClusterService(pub Arc<SharedNodeState>);

impl ClusterService {
    fn status_now(&self, caller: &Caller) -> Result<StatusReply, Status> {
        let status = self.0.raft.status();
        let (head, rows) = self.0.reader.view().map_err(internal)?;
        // By how it changes it tells of rows.
        let may_all = caller.rights(rows.auth()).and_then(|rights| rights.all()).is_ok();
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
            first_index: status.first.0,
            last_index: status.last.0,
            version: env!("CARGO_PKG_VERSION").into(),
            members: member::all(&rows).map_err(internal)?.into_iter().map(with_match).collect(),
            cluster_time_ms: head.cluster_time_ms,
            digest: if may_all { head.rows_digest } else { 0 },
            joint: status.joint,
            keys_bytes: self.0.reader.keys_bytes(),
            keys_quota: self.0.bounds.keys_quota,
            format: head.format,
            newest_format: self.0.bounds.newest_format,
            life: 0,
        })
    }

    /// Gives the caller an id, or the one it has. Only the leader's answer counts: it proposes one change at a time.
    async fn join_here(&self, request: &JoinRequest, deadline: Monotonic) -> Result<JoinReply, Status> {
        self.0.read_barrier(deadline).await?;
        let (head, rows) = self.0.reader.view().map_err(internal)?;
        let members = member::all(&rows).map_err(internal)?;
        let cluster_id = self.0.identity.cluster.0;
        let (mut servers, others): (Vec<Member>, Vec<Member>) = members.into_iter().partition(member::is_server);
        let is_worker = request.role() == MemberRole::Worker;
        let role = if is_worker { MemberRole::Worker } else { MemberRole::Unspecified };
        let taken_in =
            |id: u64, servers: Vec<Member>| JoinReply { cluster_id, id, members: servers, role: role.into() };
        if let Some(known) = servers.iter().chain(&others).find(|member| member.uuid == request.uuid) {
            let id = known.id;
            return match known.role() {
                MemberRole::Removed => Err(Status::failed_precondition(format!(
                    "this node was member {id} and was removed; to join again give it an empty data directory",
                ))),
                found if (found == MemberRole::Worker) != is_worker => Err(Status::failed_precondition(format!(
                    "this node is member {id} with another role; to change it give it an empty data directory, and remove member \
                     {id}",
                ))),
                _ => Ok(taken_in(id, servers)),
            };
        }
        let workers = || others.iter().filter(|member| member.role() == MemberRole::Worker);
        if is_worker && workers().count() >= WORKERS_MAX {
            return Err(Status::failed_precondition(format!(
                "a cluster has at most {WORKERS_MAX} workers without state"
            )));
        }
        let is_here = |member: &&Member| member.address == request.address;
        let awaited = others.iter().filter(is_expected).find(is_here).filter(|_| !is_worker);
        if let Some(same) = live(&servers, &others).find(is_here).filter(|_| awaited.is_none()) {
            return Err(taken(same));
        }
        if !is_worker && awaited.is_none() {
            check_room(&servers, &others)?;
        }
        let newest = request.format.max(format::FIRST);
        if !is_worker && newest < head.format {
            sometimes!("a node was refused that takes no part in the format of the cluster");
            return Err(Status::failed_precondition(format!(
                "the cluster is in format {}, and this node takes part in none after {newest}: start a newer version, or leave out \
                 --format-max",
                head.format
            )));
        }
        sometimes!(awaited.is_some(), "a node joined that was expected");
        let id = awaited.map_or(head.members_added + 1, |member| member.id);
        let role = if is_worker { MemberRole::Worker } else { MemberRole::Learner };
        let (uuid, address) = (request.uuid.clone(), request.address.clone());
        let standby = !is_worker && (request.standby || awaited.is_some_and(|member| member.standby));
        let member = Member { id, uuid, address, role: role.into(), standby };
        self.change(member.clone(), Index(head.applied_index), deadline).await?;
        // It is to know where it is itself: else a copy of its data would not know whom to look for.
        servers.extend(Some(member).filter(member::is_server));
        Ok(taken_in(id, servers))
    }

    /// Has an id ready for a node that is yet to join, or gives the one that it has ready.
    async fn expect_here(&self, request: ExpectRequest, deadline: Monotonic) -> Result<ExpectReply, Status> {
        self.0.read_barrier(deadline).await?;
        let (head, rows) = self.0.reader.view().map_err(internal)?;
        let (servers, others): (Vec<Member>, Vec<Member>) =
            member::all(&rows).map_err(internal)?.into_iter().partition(member::is_server);
        match live(&servers, &others).find(|member| member.address == request.address) {
            Some(same) if is_expected(&same) && same.standby == request.standby => {
                return Ok(ExpectReply { id: same.id });
            }
            Some(same) => return Err(taken(same)),
            None => {}
        }
        check_room(&servers, &others)?;
        let id = head.members_added + 1;
        let ExpectRequest { address, standby } = request;
        let member = Member { id, address, standby, role: MemberRole::Expected.into(), ..Member::default() };
        self.change(member, Index(head.applied_index), deadline).await?;
        Ok(ExpectReply { id })
    }

    /// Gives a learner a vote.
    async fn promote_here(&self, id: NodeId, deadline: Monotonic) -> Result<PromoteReply, Status> {
        self.0.read_barrier(deadline).await?;
        let (head, rows) = self.0.reader.view().map_err(internal)?;
        let refused = |text: String| Err(Status::failed_precondition(text));
        let Some(mut member) = member::find(&rows, id).map_err(internal)? else {
            return Err(Status::not_found(format!("there is no member {id}")));
        };
        match member.role() {
            MemberRole::Voter => return Ok(PromoteReply {}),
            MemberRole::Learner if controller::has_caught_up(&self.0.raft.status(), id) => {}
            MemberRole::Learner => {
                return refused(format!("member {id} has not caught up, or does not answer; ask again"));
            }
            MemberRole::Expected => return refused(format!("member {id} has not joined yet")),
            MemberRole::Removed => return refused(format!("member {id} was removed")),
            MemberRole::Worker | MemberRole::Unspecified => return refused(format!("{id} is a worker without state")),
        }
        sometimes!(member.standby, "a member that stood by was promoted");
        member.set_role(MemberRole::Voter);
        member.standby = false;
        self.change(member, Index(head.applied_index), deadline).await.map(|()| PromoteReply {})
    }
}

fn is_expected(member: &&Member) -> bool {
    member.role() == MemberRole::Expected
}

/// Whether one more may come to keep the state.
fn check_room(servers: &[Member], others: &[Member]) -> Result<(), Status> {
    match servers.len() + others.iter().filter(is_expected).count() < MEMBERS_MAX {
        true => Ok(()),
        false => Err(Status::failed_precondition(format!("a cluster has at most {MEMBERS_MAX} members"))),
    }
}

/// Who is not removed.
fn live<'a>(servers: &'a [Member], others: &'a [Member]) -> impl Iterator<Item = &'a Member> {
    servers.iter().chain(others.iter().filter(|member| member.role() != MemberRole::Removed))
}

/// The refusal of an address that another has.
fn taken(by: &Member) -> Status {
    if by.role() == MemberRole::Expected {
        let how = if by.standby { "to stand by" } else { "to vote" };
        return Status::already_exists(format!(
            "member {} is expected at {} already, {how}; if it is not, remove it: node cluster remove {}",
            by.id, by.address, by.id
        ));
    }
    Status::already_exists(format!(
        "member {} has the address {} already; if its data is lost, remove it first: node cluster remove {}",
        by.id, by.address, by.id
    ))
}

impl ClusterService {
    /// Who leads, and where, if this member knows.
    fn leader(&self) -> Result<Option<(NodeId, Address)>, Status> {
        let Some(leader) = self.0.raft.status().leader else { return Ok(None) };
        Ok(self.0.address_of(leader)?.map(|address| (leader, address)))
    }

    /// The refusal of a call that only the leader answers, with its address.
    fn not_leader(&self) -> Result<Status, Status> {
        Ok(not_leader(self.leader()?.map(|(_, address)| address).as_ref()))
    }

    /// Takes a request that may have been passed on, if it is for this member.
    fn take<T>(&self, request: Request<T>) -> Result<(MetadataMap, T), Status> {
        forward::check_name(self.0.identity, request.metadata())?;
        let (metadata, _, request) = request.into_parts();
        Ok((metadata, request))
    }

    /// Has the leader answer what an operator asks of any member. What was passed on already goes no further.
    async fn pass_on<T, R, F>(
        &self,
        (metadata, request): (MetadataMap, T),
        deadline: Monotonic,
        call: impl FnOnce(ClusterClient<Channel>, Request<T>) -> F,
    ) -> Result<Response<R>, Status>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let leader = self.leader()?.filter(|_| !metadata.contains_key(FORWARDED));
        let Some((id, leader)) = leader else { return Err(self.not_leader()?) };
        let clock = &self.0.io.clock;
        let mut request = Request::new(request);
        request.metadata_mut().insert(FORWARDED, "1".parse().expect("plain text"));
        forward::name(self.0.identity.cluster, Some(id), request.metadata_mut());
        request.set_timeout(deadline.since(clock.now()));
        let answer = clock.deadline(deadline, call(ClusterClient::new(self.0.channel(&leader)), request)).await;
        answer.unwrap_or_else(|_| Err(Status::unavailable(format!("no answer from the leader at {leader}; ask again"))))
    }

    async fn move_here(&self, request: &MoveRequest, deadline: Monotonic) -> Result<MoveReply, Status> {
        self.0.read_barrier(deadline).await?;
        let (head, rows) = self.0.reader.view().map_err(internal)?;
        let mut members = member::all(&rows).map_err(internal)?;
        members.retain(|member| member.role() != MemberRole::Removed);
        let Some(mut member) = members.into_iter().find(|row| row.id == request.id && row.uuid == request.uuid) else {
            return Err(Status::not_found(format!("there is no member {} with this uuid", request.id)));
        };
        if member.address == request.address {
            return Ok(MoveReply {});
        }
        // Even if another has it: that one is there no more, and will say where it is, or else two were told the same
        // address, which both see.
        member.address.clone_from(&request.address);
        self.change(member, Index(head.applied_index), deadline).await.map(|()| MoveReply {})
    }

    /// Has the members changed, as decided on the state at `based_on`.
    async fn change(&self, member: Member, based_on: Index, deadline: Monotonic) -> Result<(), Status> {
        let change = v1::MemberChange { members: vec![member] };
        match self.0.io.clock.deadline(deadline, self.0.raft.change_members(change, based_on)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(ProposeError::NotLeader(_))) => Err(Status::unavailable("not done: this member does not lead")),
            Ok(Err(error)) => Err(Status::unavailable(format!("{error}; ask again"))),
            Err(_) => Err(Status::unavailable("the change is not committed yet; ask again")),
        }
    }

    async fn remove_here(&self, id: NodeId, deadline: Monotonic) -> Result<RemoveReply, Status> {
        self.0.read_barrier(deadline).await?;
        let (head, rows) = self.0.reader.view().map_err(internal)?;
        let members = member::all(&rows).map_err(internal)?;
        let Some(mut member) = members.into_iter().find(|member| member.id == id.0) else {
            return Err(Status::not_found(format!("there is no member {id}")));
        };
        if member.role() == MemberRole::Removed {
            return Ok(RemoveReply {});
        }
        let status = self.0.raft.status();
        let rest: Vec<NodeId> = status.voters.iter().copied().filter(|voter| *voter != id).collect();
        let reachable = rest.iter().filter(|voter| **voter == status.id || status.active.contains(voter)).count();
        if rest.is_empty() {
            return Err(Status::failed_precondition(format!("member {id} is the only voter; the cluster would end")));
        }
        if status.voters.contains(&id) && reachable <= rest.len() / 2 {
            return Err(Status::failed_precondition(format!(
                "without member {id} only {reachable} of {} voters could be reached, which is no majority",
                rest.len()
            )));
        }
        if id == status.id {
            self.0.raft.hand_over(None).await.map_err(|error| Status::unavailable(format!("not done: {error}")))?;
            return Err(not_done(
                Code::Unavailable,
                "not done: the leader hands over before it goes; ask again".into(),
            ));
        }
        member.set_role(MemberRole::Removed);
        self.change(member, Index(head.applied_index), deadline).await.map(|()| RemoveReply {})
    }
}

fn check_address(address: &str) -> Result<(), Status> {
    let parsed = address.parse::<Address>().map_err(|error| Status::invalid_argument(error.to_string()))?;
    match parsed.is_unspecified() || parsed.port() == 0 {
        true => Err(Status::invalid_argument(format!("{address} is no address at which others reach a member"))),
        false => Ok(()),
    }
}

#[tonic::async_trait]
impl v1::cluster_server::Cluster for ClusterService {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        self.status_now(&Caller::of(&request)).map(Response::new)
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let deadline = self.0.deadline(&request);
        let request = request.into_inner();
        if request.uuid.len() != 16 {
            return Err(Status::invalid_argument(format!("uuid: {} bytes, not 16", request.uuid.len())));
        }
        check_address(&request.address)?;
        if self.0.leads() {
            return self.join_here(&request, deadline).await.map(Response::new);
        }
        Err(self.not_leader()?)
    }

    async fn heard(&self, request: Request<HeardRequest>) -> Result<Response<HeardReply>, Status> {
        let id = NodeId(request.into_inner().id);
        let (heard, known) = (self.0.raft.heard(id), self.0.address_of(id)?);
        let frames = heard.as_ref().map_or(0, |heard| heard.frames);
        let text = |address: Option<Address>| address.map_or_else(String::new, |address| address.to_string());
        let (address, known) = (text(heard.map(|heard| heard.address)), text(known));
        let Identity { cluster, id, .. } = self.0.identity;
        Ok(Response::new(HeardReply { cluster_id: cluster.0, frames, address, id: id.0, known }))
    }

    async fn r#move(&self, request: Request<MoveRequest>) -> Result<Response<MoveReply>, Status> {
        let deadline = self.0.deadline(&request);
        let (metadata, request) = self.take(request)?;
        check_address(&request.address)?;
        if !self.0.leads() {
            let call = async |mut leader: ClusterClient<Channel>, request| leader.r#move(request).await;
            return self.pass_on((metadata, request), deadline, call).await;
        }
        self.move_here(&request, deadline).await.map(Response::new)
    }

    async fn expect(&self, request: Request<ExpectRequest>) -> Result<Response<ExpectReply>, Status> {
        let deadline = self.0.deadline(&request);
        let (metadata, request) = self.take(request)?;
        check_address(&request.address)?;
        if !self.0.leads() {
            let call = async |mut leader: ClusterClient<Channel>, request| leader.expect(request).await;
            return self.pass_on((metadata, request), deadline, call).await;
        }
        self.expect_here(request, deadline).await.map(Response::new)
    }

    async fn promote(&self, request: Request<PromoteRequest>) -> Result<Response<PromoteReply>, Status> {
        let deadline = self.0.deadline(&request);
        let (metadata, request) = self.take(request)?;
        if !self.0.leads() {
            let call = async |mut leader: ClusterClient<Channel>, request| leader.promote(request).await;
            return self.pass_on((metadata, request), deadline, call).await;
        }
        self.promote_here(NodeId(request.id), deadline).await.map(Response::new)
    }

    async fn remove(&self, request: Request<RemoveRequest>) -> Result<Response<RemoveReply>, Status> {
        let deadline = self.0.deadline(&request);
        let (metadata, request) = self.take(request)?;
        if !self.0.leads() {
            let call = async |mut leader: ClusterClient<Channel>, request| leader.remove(request).await;
            return self.pass_on((metadata, request), deadline, call).await;
        }
        self.remove_here(NodeId(request.id), deadline).await.map(Response::new)
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderReply>, Status> {
        let deadline = self.0.deadline(&request);
        let (metadata, request) = self.take(request)?;
        if !self.0.leads() {
            let call = async |mut leader: ClusterClient<Channel>, request| leader.transfer_leader(request).await;
            return self.pass_on((metadata, request), deadline, call).await;
        }
        let to = Some(NodeId(request.to)).filter(|id| id.0 != 0);
        if to == Some(self.0.identity.id) {
            return Ok(Response::new(TransferLeaderReply { leader: self.0.identity.id.0 }));
        }
        let chosen = self.0.raft.hand_over(to).await;
        let chosen = chosen.map_err(|_| match to {
            Some(id) => Status::failed_precondition(format!("member {id} is no voter that could lead")),
            None => Status::failed_precondition("there is no other voter"),
        })?;
        let done = self.0.raft.wait(|status| (status.leader == Some(chosen)).then_some(()));
        match self.0.io.clock.deadline(deadline, done).await {
            Ok(()) => Ok(Response::new(TransferLeaderReply { leader: chosen.0 })),
            Err(_) => Err(Status::unavailable(format!("member {chosen} does not lead yet; see the cluster's status"))),
        }
    }
}
