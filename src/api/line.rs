//! What etcd's clients call: locks and elections. Both are lines: whoever enters puts a key under a common prefix and a lease of
//! its own, and it is its turn when no key that came into being before is left (etcd's documentation, "concurrency").
//!
//! ```text
//!   enter: name/lease, if it does not exist ──► waits for the key before it to go ──► its turn, while its own key exists
//! ```

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use tonic::{Code, Request, Response, Status};

use super::Entered;
use super::etcd::{enter, execute, header, only, rejected, stopped, unread};
use crate::client::{Line, is_at, is_created_at};
use crate::ids::{Index, LeaseId};
use crate::limits::{KEY_STREAMS_MAX, REQUEST_TIMEOUT};
use crate::proto::etcdserverpb::request_op::Request as Operation;
use crate::proto::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, PutRequest, RequestOp,
    TxnRequest, TxnResponse,
};
use crate::proto::mvccpb::KeyValue;
use crate::proto::v1::{command::Kind, reply};
use crate::proto::v3electionpb::election_server::Election;
use crate::proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest, ProclaimResponse,
    ResignRequest, ResignResponse,
};
use crate::proto::v3lockpb::lock_server::Lock;
use crate::proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use crate::shared::{Caller, SharedNodeState, internal};
use crate::state::auth::Rights;
use crate::state::kv::{self, NoAnswer, Store};
use crate::state::table::View;

/// How long a lease lasts that is granted to who has none (etcd's default, too).
const LEASE_SECS: i64 = 60;
/// How often it is kept alive while its holder waits.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// The services.
#[derive(Clone)]
pub struct LineService {
    shared: Arc<SharedNodeState>,
    waiting: Arc<AtomicUsize>,
}

/// A place in a line. Who loses patience leaves it: the key of a place that is dropped is removed, unless somebody has taken it over.
struct Place {
    shared: Arc<SharedNodeState>,
    caller: Caller,
    line: Line,
    key: Bytes,
    /// When the key came into being.
    created: u64,
    /// It did so by this call; what was there before is not this call's to remove.
    is_new: bool,
    lease: LeaseId,
    /// The lease was granted for this.
    is_own: bool,
    /// The key stays.
    kept: bool,
    _room: Entered,
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.kept || !self.is_new {
            return;
        }
        let (shared, caller) = (self.shared.clone(), self.caller.clone().whatever_it_showed());
        let (key, wrote) = (self.key.clone(), kv::signed(self.created));
        let leave = async move {
            let delete = Operation::RequestDeleteRange(DeleteRangeRequest { key: key.clone(), ..Default::default() });
            let _ = only_if(&shared, &caller, is_at(key, wrote), delete).await;
        };
        self.shared.io.spawn.spawn("a place in a line", Box::pin(leave)).detach();
    }
}

/// Carries out a transaction.
async fn txn(shared: &SharedNodeState, caller: &Caller, txn: TxnRequest) -> Result<TxnResponse, Status> {
    let deadline = shared.io.clock.now() + REQUEST_TIMEOUT;
    execute(shared, caller, Kind::Txn(txn), deadline, only!(Txn)).await.map_err(said)
}

/// Does something if a comparison holds. Gives the revision at which that was done.
async fn only_if(
    shared: &SharedNodeState,
    caller: &Caller,
    holds: Compare,
    then: Operation,
) -> Result<Option<i64>, Status> {
    let request =
        TxnRequest { compare: vec![holds], success: vec![RequestOp { request: Some(then) }], failure: Vec::new() };
    let reply = txn(shared, caller, request).await?;
    Ok(reply.succeeded.then(|| reply.header.map_or(0, |header| header.revision)))
}

impl LineService {
    /// The services of a member.
    pub fn new(shared: Arc<SharedNodeState>) -> Self {
        Self { shared, waiting: Arc::default() }
    }

    /// Enters a line.
    async fn enter(&self, caller: Caller, name: &[u8], lease: i64, says: Bytes) -> Result<Place, Status> {
        let shared = &self.shared;
        let room = enter(&self.waiting, KEY_STREAMS_MAX)?;
        let is_own = lease == 0;
        let lease = LeaseId(if is_own { grant(shared, &caller).await? } else { lease });
        let line = Line::new(name);
        let reply = match txn(shared, &caller, line.enter(lease, says)).await {
            Ok(reply) => reply,
            Err(status) => {
                // It may have been done, or may yet be.
                if is_own {
                    let (shared, caller) = (shared.clone(), caller.whatever_it_showed());
                    let revoke = Kind::LeaseRevoke(LeaseRevokeRequest { id: lease.0 });
                    let let_go = async move {
                        let deadline = shared.io.clock.now() + REQUEST_TIMEOUT;
                        let _ = execute(&shared, &caller, revoke, deadline, Some).await;
                    };
                    self.shared.io.spawn.spawn("a lease of nobody's", Box::pin(let_go)).detach();
                }
                return Err(status);
            }
        };
        let entered = line.entered(lease, &reply);
        Ok(Place {
            shared: shared.clone(),
            caller,
            line,
            key: entered.key,
            created: entered.created.0,
            is_new: entered.is_new,
            lease,
            is_own,
            kept: false,
            _room: room,
        })
    }
}

async fn grant(shared: &SharedNodeState, caller: &Caller) -> Result<i64, Status> {
    let deadline = shared.io.clock.now() + REQUEST_TIMEOUT;
    let grant = Kind::LeaseGrant(LeaseGrantRequest { ttl: LEASE_SECS, id: 0 });
    execute(shared, caller, grant, deadline, only!(LeaseGrant)).await.map(|reply| reply.id).map_err(said)
}

/// Looks at the keys of a line as this member has them, for who may read them.
async fn look<T>(
    shared: &SharedNodeState,
    caller: &Caller,
    line: &Line,
    read: impl Fn(&Store<'_, View>) -> Result<T, NoAnswer>,
) -> Result<T, Status> {
    let (key, range_end) = line.keys();
    let answer = |head: &_, rows: &_, rights: Rights<'_>| {
        rights.read(&key, &range_end)?;
        read(&Store::of(head, rows))
    };
    let deadline = shared.io.clock.now() + REQUEST_TIMEOUT;
    shared.ask_here(caller, deadline, answer).await?.1.map_err(|reject| said(rejected(&reject)))
}

impl Place {
    async fn look<T>(&self, read: impl Fn(&Store<'_, View>) -> Result<T, NoAnswer> + Send) -> Result<T, Status> {
        look(&self.shared, &self.caller, &self.line, read).await
    }

    /// Waits until no key that came into being before is left. Gives the revision of the store then.
    async fn turn(&self) -> Result<i64, Status> {
        let shared = &self.shared;
        let mut before: Option<(Bytes, u64)> = None;
        let mut kept_alive = shared.io.clock.now();
        loop {
            let seen = shared.raft.status().applied;
            // What was there when this place was taken can only have become less since, on whichever member.
            let is_there = match &before {
                Some((key, created)) => self.look(|store| Ok(store.created(key)? == Some(*created))).await?,
                None => false,
            };
            if !is_there {
                let (found, newest) = self.before().await?;
                before = found;
                if before.is_none() && newest >= self.created {
                    return self.confirm().await;
                }
            }
            let changed = shared.raft.wait_or_end(move |status| (status.applied > seen).then_some(()));
            if let Ok(None) = shared.io.clock.timeout(KEEP_ALIVE, changed).await {
                return Err(stopped());
            }
            let now = shared.io.clock.now();
            if self.is_own && now.since(kept_alive) >= KEEP_ALIVE {
                kept_alive = now;
                let keep = Kind::LeaseKeepAlive(LeaseKeepAliveRequest { id: self.lease.0 });
                execute(shared, &self.caller, keep, now + REQUEST_TIMEOUT, Some).await?;
            }
        }
    }

    /// The key just before this one, and when that came into being; and the revision of the store.
    async fn before(&self) -> Result<(Option<(Bytes, u64)>, u64), Status> {
        let (key, range_end) = self.line.keys();
        self.look(|store| Ok((store.created_before((&key, &range_end), self.created)?, store.revision()))).await
    }

    /// The own key must still be there: its lease may have ended meanwhile.
    async fn confirm(&self) -> Result<i64, Status> {
        let deadline = self.shared.io.clock.now() + REQUEST_TIMEOUT;
        self.shared.read_barrier(deadline).await.map_err(unread)?;
        let (created, newest) =
            self.look(|store| Ok((store.created(&self.key)?, kv::signed(store.revision())))).await?;
        match created == Some(self.created) {
            true => Ok(newest),
            false => Err(Status::unknown("mutex: session is expired")),
        }
    }
}

/// Who is first in a line, unless that is what was last changed at the revision `known`; and the revision of the store.
async fn first(
    shared: &SharedNodeState,
    caller: &Caller,
    name: &[u8],
    known: i64,
) -> Result<(Option<KeyValue>, i64), Status> {
    let line = Line::new(name);
    let (key, range_end) = line.keys();
    look(shared, caller, &line, |store| {
        let row = store.created_first((&key, &range_end), known.cast_unsigned())?;
        Ok((row, kv::signed(store.revision())))
    })
    .await
}

#[tonic::async_trait]
impl Lock for LineService {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let caller = Caller::of(&request);
        let LockRequest { name, lease } = request.into_inner();
        let mut place = self.enter(caller, &name, lease, Bytes::new()).await?;
        let revision = place.turn().await?;
        place.kept = true;
        Ok(Response::new(LockResponse { header: header(&self.shared, revision), key: place.key.clone() }))
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        let (deadline, caller) = (self.shared.deadline(&request), Caller::of(&request));
        let delete = DeleteRangeRequest { key: request.into_inner().key, ..DeleteRangeRequest::default() };
        let done = execute(&self.shared, &caller, Kind::DeleteRange(delete), deadline, only!(DeleteRange)).await;
        let reply = done.map_err(said)?;
        let revision = reply.header.map_or(0, |header| header.revision);
        Ok(Response::new(UnlockResponse { header: header(&self.shared, revision) }))
    }
}

fn leader_of(request: Option<LeaderKey>) -> Result<LeaderKey, Status> {
    request.ok_or_else(|| Status::unknown("\"leader\" field must be provided"))
}

/// A refusal as etcd's locks and elections say it: by its text alone.
fn said(status: Status) -> Status {
    match status.code() {
        Code::InvalidArgument | Code::NotFound | Code::PermissionDenied | Code::FailedPrecondition => {
            Status::unknown(status.message())
        }
        _ => status,
    }
}

#[tonic::async_trait]
impl Election for LineService {
    type ObserveStream = BoxStream<'static, Result<LeaderResponse, Status>>;

    async fn campaign(&self, request: Request<CampaignRequest>) -> Result<Response<CampaignResponse>, Status> {
        let caller = Caller::of(&request);
        let CampaignRequest { name, lease, value } = request.into_inner();
        let mut place = self.enter(caller, &name, lease, value).await?;
        let revision = place.turn().await?;
        place.kept = true;
        let leader = LeaderKey { name, key: place.key.clone(), rev: kv::signed(place.created), lease: place.lease.0 };
        Ok(Response::new(CampaignResponse { header: header(&self.shared, revision), leader: Some(leader) }))
    }

    async fn proclaim(&self, request: Request<ProclaimRequest>) -> Result<Response<ProclaimResponse>, Status> {
        let caller = Caller::of(&request);
        let ProclaimRequest { leader, value } = request.into_inner();
        let LeaderKey { key, rev, lease, .. } = leader_of(leader)?;
        let put = PutRequest { key: key.clone(), value, lease, ..PutRequest::default() };
        match only_if(&self.shared, &caller, is_created_at(key, rev), Operation::RequestPut(put)).await? {
            Some(revision) => Ok(Response::new(ProclaimResponse { header: header(&self.shared, revision) })),
            None => Err(Status::unknown("election: not leader")),
        }
    }

    async fn leader(&self, request: Request<LeaderRequest>) -> Result<Response<LeaderResponse>, Status> {
        let deadline = self.shared.deadline(&request);
        self.shared.read_barrier(deadline).await.map_err(unread)?;
        match first(&self.shared, &Caller::of(&request), &request.get_ref().name, 0).await? {
            (Some(row), revision) => {
                Ok(Response::new(LeaderResponse { header: header(&self.shared, revision), kv: Some(row) }))
            }
            (None, _) => Err(Status::unknown("election: no leader")),
        }
    }

    /// Of changes that follow each other closely only the last may be told.
    async fn observe(&self, request: Request<LeaderRequest>) -> Result<Response<Self::ObserveStream>, Status> {
        let entered = enter(&self.waiting, KEY_STREAMS_MAX)?;
        self.shared.read_barrier(self.shared.deadline(&request)).await.map_err(unread)?;
        let (shared, caller) = (self.shared.clone(), Caller::of(&request));
        let who = (caller, request.into_inner().name);
        let told = stream::try_unfold((shared, who, entered, Index(0), 0), |state| async move {
            let (shared, who, entered, mut seen, last) = state;
            loop {
                let applied = shared.raft.wait_or_end(move |status| (status.applied > seen).then_some(status.applied));
                seen = applied.await.ok_or_else(stopped)?;
                let (row, revision) = first(&shared, &who.0, &who.1, last).await?;
                if let Some(row) = row {
                    let last = row.mod_revision;
                    let told = LeaderResponse { header: header(&shared, revision), kv: Some(row) };
                    return Ok(Some((told, (shared, who, entered, seen, last))));
                }
            }
        });
        Ok(Response::new(Box::pin(told)))
    }

    async fn resign(&self, request: Request<ResignRequest>) -> Result<Response<ResignResponse>, Status> {
        let caller = Caller::of(&request);
        let LeaderKey { key, rev, .. } = leader_of(request.into_inner().leader)?;
        let delete = DeleteRangeRequest { key: key.clone(), ..DeleteRangeRequest::default() };
        // Whoever does not lead any more has gone already.
        let revision =
            only_if(&self.shared, &caller, is_created_at(key, rev), Operation::RequestDeleteRange(delete)).await?;
        let newest = || Ok::<_, Status>(kv::signed(self.shared.reader.view().map_err(internal)?.0.revision));
        let revision = revision.map_or_else(newest, Ok)?;
        Ok(Response::new(ResignResponse { header: header(&self.shared, revision) }))
    }
}
