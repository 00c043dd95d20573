//! What etcd's clients call: how a member is, and what operators do with it.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use prost::Message;
use tonic::{Code, Request, Response, Status};

use super::etcd::{answer, enter, header, only, rejected, unread};
use super::probe::ETCD_VERSION;
use super::{ClusterService, Entered};
use crate::entry::Step;
use crate::error::{Context, Fault};
use crate::limits::BACKUPS_MAX;
use crate::proto::etcdserverpb::alarm_request::AlarmAction;
use crate::proto::etcdserverpb::maintenance_server::Maintenance;
use crate::proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, DefragmentRequest, DefragmentResponse, HashKvRequest, HashKvResponse, HashRequest,
    HashResponse, MoveLeaderRequest, MoveLeaderResponse, SnapshotRequest, SnapshotResponse, StatusRequest,
    StatusResponse,
};
use crate::proto::v1::{self, BackupHead, cluster_server::Cluster as _, command::Kind, reply};
use crate::questions::HashUpto;
use crate::raft::core::Role;
use crate::raft::snapshot::Copied;
use crate::shared::{CONFIRMED, Caller, OWN, SharedNodeState, VIEW, internal};
use crate::state::kv::signed;
use crate::state::{alarm, backup, machine, snapshot};

/// How often whoever waits for a backup is told that the state is being copied.
const COPYING_PERIOD: Duration = Duration::from_secs(1);

/// The service.
pub struct MaintenanceService {
    shared: Arc<SharedNodeState>,
    backups: Arc<AtomicUsize>,
}

impl MaintenanceService {
    /// The service of a member.
    pub fn new(shared: Arc<SharedNodeState>) -> Self {
        Self { shared, backups: Arc::default() }
    }
}

/// A backup under way: first the state is copied, then the copy is read.
enum Backup {
    Copying { shared: Arc<SharedNodeState>, copied: BoxFuture<'static, Option<Copied>>, entered: Entered },
    Reading(Box<Reading>),
}

/// A copy that is read.
struct Reading {
    shared: Arc<SharedNodeState>,
    copied: Copied,
    /// The first chunk: whoever has a backup is not to be able to sign users' tokens.
    first: Bytes,
    head: BackupHead,
    /// The payload that is next: 0 is the head.
    next: usize,
    /// What puts the frames together; none after the last.
    writer: Option<backup::Writer>,
    remaining: u64,
    _entered: Entered,
}

impl Backup {
    /// The next message, and what comes after it. While the state is being copied they are empty, so that whoever waits knows why.
    async fn go_on(self) -> Result<Option<(SnapshotResponse, Self)>, Status> {
        let mut reading = match self {
            Self::Copying { shared, mut copied, entered } => {
                match shared.io.clock.timeout(COPYING_PERIOD, &mut copied).await {
                    Ok(Some(copied)) => Box::new(Reading::new(shared, copied, entered).map_err(internal)?),
                    Ok(None) => return Err(Status::internal("the state could not be copied; the node's log says why")),
                    Err(_) => {
                        let wait = SnapshotResponse { header: header(&shared, 0), ..SnapshotResponse::default() };
                        return Ok(Some((wait, Self::Copying { shared, copied, entered })));
                    }
                }
            }
            Self::Reading(reading) => reading,
        };
        let frame = reading.frame().map_err(internal)?;
        Ok(frame.map(|frame| (frame, Self::Reading(reading))))
    }
}

impl Reading {
    fn new(shared: Arc<SharedNodeState>, copied: Copied, entered: Entered) -> Result<Self, Fault> {
        let chunk = copied.chunk(0)?.unwrap_or_default();
        let whole = chunk.len() as u64;
        let mut first = v1::SnapshotPart::decode(chunk).context(|| "read a copy of the state".into())?;
        let mut state = first.head.take().unwrap_or_default();
        state.auth_key = Bytes::new();
        let body = copied.of.body.unwrap_or_default();
        let head = backup::head(BackupHead {
            cluster_id: shared.identity.cluster.0,
            applied_index: copied.of.index,
            applied_term: copied.of.term,
            revision: state.revision,
            digest: body.digest,
            version: env!("CARGO_PKG_VERSION").into(),
            ..BackupHead::default()
        });
        first.head = Some(state);
        let first = Bytes::from(first.encode_to_vec());
        let bytes = copied.bytes() - whole + first.len() as u64;
        let remaining = backup::length(head.encoded_len() as u64 + bytes, body.chunks);
        let writer = Some(backup::Writer::new());
        Ok(Self { shared, copied, first, head, next: 0, writer, remaining, _entered: entered })
    }

    /// The next message.
    fn frame(&mut self) -> Result<Option<SnapshotResponse>, Fault> {
        let Some(mut writer) = self.writer.take() else { return Ok(None) };
        let payload = match self.next {
            0 => Some(self.head.encode_to_vec().into()),
            1 if self.copied.of.body.as_ref().is_some_and(|body| body.chunks > 0) => Some(self.first.clone()),
            number => self.copied.chunk(number - 1)?,
        };
        self.next += 1;
        let blob: Bytes = match payload {
            Some(payload) => {
                let frame = writer.frame(&payload)?;
                self.writer = Some(writer);
                frame.into()
            }
            None => writer.end().into(),
        };
        self.remaining = self.remaining.saturating_sub(blob.len() as u64);
        let header = header(&self.shared, signed(self.head.revision));
        Ok(Some(SnapshotResponse { header, remaining_bytes: self.remaining, blob }))
    }
}

/// Whether the disk has room for the state once more.
fn room_for_copy(shared: &SharedNodeState) -> Result<(), Status> {
    let room = snapshot::room_for_copy(&*shared.io.disk, shared.bounds.free_space_floor).map_err(internal)?;
    room.map_err(|why| Status::resource_exhausted(format!("{why}; make room there, or ask another member")))
}

#[tonic::async_trait]
impl Maintenance for MaintenanceService {
    type SnapshotStream = BoxStream<'static, Result<SnapshotResponse, Status>>;

    async fn alarm(&self, request: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        let (deadline, caller) = (self.shared.deadline(&request), Caller::of(&request));
        let request = request.into_inner();
        if request.action() != AlarmAction::Get {
            return answer(&self.shared, &caller, Kind::Alarm(request), deadline, only!(Alarm)).await;
        }
        let (head, rows) = self.shared.view(false, deadline).await.map_err(unread)?;
        let alarms = alarm::all(&rows, &request).map_err(internal)?;
        Ok(Response::new(AlarmResponse { header: header(&self.shared, signed(head.revision)), alarms }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let status = self.shared.raft.status();
        let (head, rows) = self.shared.reader.view().map_err(internal)?;
        let size =
            machine::file_bytes(&*self.shared.io.disk).context(|| "size of the state".into()).map_err(internal)?;
        let leader = status.leader.map_or(0, |id| id.0);
        // As etcd says them.
        let no_leader = (leader == 0).then(|| "etcdserver: no leader".to_owned());
        let no_space = self.shared.is_short_of_space().then(|| "etcdserver: mvcc: database space exceeded".to_owned());
        let alarms = alarm::all(&rows, &AlarmRequest::default()).map_err(internal)?;
        let alarms =
            alarms.iter().map(|alarm| format!("memberID:{} alarm:{} ", alarm.member_id, alarm.alarm().as_str_name()));
        Ok(Response::new(StatusResponse {
            header: header(&self.shared, signed(head.revision)),
            version: ETCD_VERSION.into(),
            db_size: signed(size),
            leader,
            raft_index: status.commit.0,
            raft_term: status.term.0,
            raft_applied_index: head.applied_index,
            errors: no_leader.into_iter().chain(no_space).chain(alarms).collect(),
            db_size_in_use: signed(self.shared.reader.keys_bytes()),
            is_learner: status.role == Role::Learner,
        }))
    }

    async fn defragment(&self, _: Request<DefragmentRequest>) -> Result<Response<DefragmentResponse>, Status> {
        room_for_copy(&self.shared)?;
        let why = match self.shared.raft.defragment().await {
            Ok(Step::Whole | Step::Replaced) => {
                return Ok(Response::new(DefragmentResponse { header: header(&self.shared, 0) }));
            }
            Ok(Step::TooMany) => "more is changed meanwhile than can be kept up with; try again when less is written",
            Ok(Step::More | Step::Failed) => "the state could not be written anew; the node's log says why",
            Err(_) => "the state is being written anew already, or this member is stopping; try again later",
        };
        Err(Status::resource_exhausted(why))
    }

    async fn hash(&self, _: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        let (head, _) = self.shared.reader.view().map_err(internal)?;
        let digest = machine::head_digest(&head);
        let hash = (digest ^ (digest >> 32)) as u32;
        Ok(Response::new(HashResponse { header: header(&self.shared, signed(head.revision)), hash }))
    }

    async fn hash_kv(&self, request: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        let from = (true, self.shared.deadline(&request));
        let revision = request.into_inner().revision;
        let (_, answer) = self.shared.ask(from, &Caller::root(), HashUpto(revision)).await.map_err(unread)?;
        let (hash, compacted, newest) = answer.map_err(|reject| rejected(&reject))?;
        let header = header(&self.shared, signed(newest));
        // As etcd says that nothing was compacted yet.
        let compact_revision = if compacted == 0 { -1 } else { signed(compacted) };
        Ok(Response::new(HashKvResponse { header, hash, compact_revision }))
    }

    /// What it gives has everything that was committed before it was asked; but where no majority can say what that is, what this member
    /// has may be all that is left, and whoever does not insist gets that.
    async fn snapshot(&self, request: Request<SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        let entered = enter(&self.backups, BACKUPS_MAX)?;
        let shared = self.shared.clone();
        let is_view = |view: &str| request.metadata().get(VIEW).is_some_and(|value| value == view);
        if !is_view(OWN) {
            let mut deadline = shared.deadline(&request);
            if !is_view(CONFIRMED) {
                // Who takes what there is should get it before it gives up.
                deadline = deadline - deadline.since(shared.io.clock.now()) / 2;
            }
            match shared.read_barrier(deadline).await {
                Ok(_) => {}
                Err(status) if is_view(CONFIRMED) => return Err(unread(status)),
                Err(status) => {
                    tracing::warn!(why = status.message(), "a backup may lack the latest changes");
                }
            }
        }
        room_for_copy(&shared)?;
        let raft = shared.raft.clone();
        let copied = Box::pin(async move { raft.copy_state().await });
        let frames = stream::try_unfold(Backup::Copying { shared, copied, entered }, Backup::go_on);
        Ok(Response::new(Box::pin(frames)))
    }

    async fn move_leader(&self, request: Request<MoveLeaderRequest>) -> Result<Response<MoveLeaderResponse>, Status> {
        if !self.shared.leads() {
            return Err(Status::failed_precondition("etcdserver: not leader"));
        }
        let to = request.get_ref().target_id;
        if to == 0 {
            return Err(Status::failed_precondition("etcdserver: bad leader transferee"));
        }
        let request = request.map(|_| v1::TransferLeaderRequest { to });
        match ClusterService(self.shared.clone()).transfer_leader(request).await {
            Ok(_) => Ok(Response::new(MoveLeaderResponse { header: header(&self.shared, 0) })),
            Err(status) if status.code() == Code::FailedPrecondition => {
                Err(Status::failed_precondition("etcdserver: bad leader transferee"))
            }
            Err(status) => Err(unread(status)),
        }
    }
}
