//! What the services that etcd's clients call have in common. Errors have etcd's codes and texts, for clients compare them.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use tonic::{Code, Response, Status};

use super::Entered;
use crate::error::{KvReject, Reject};
use crate::proto::etcdserverpb::{
    AlarmResponse, CompactionResponse, DeleteRangeResponse, LeaseGrantResponse, LeaseKeepAliveResponse,
    LeaseLeasesResponse, LeaseRevokeResponse, LeaseTimeToLiveResponse, PutResponse, RangeResponse, ResponseHeader,
    TxnResponse,
};
use crate::proto::v1::{Command, command::Kind, reply};
use crate::shared::SharedNodeState;
use crate::state::command;
use crate::time::Monotonic;

/// A refusal as etcd says it.
pub fn rejected(reject: &Reject) -> Status {
    let Reject::Kv(reject) = reject else { return Status::invalid_argument(format!("etcdserver: {reject}")) };
    let (code, text) = match reject {
        KvReject::KeyMissing => (Code::InvalidArgument, "etcdserver: key is not provided"),
        KvReject::ValueGiven => (Code::InvalidArgument, "etcdserver: value is provided"),
        KvReject::LeaseGiven => (Code::InvalidArgument, "etcdserver: lease is provided"),
        KvReject::KeyNotFound => (Code::InvalidArgument, "etcdserver: key not found"),
        KvReject::LeaseNotFound(_) => (Code::NotFound, "etcdserver: requested lease not found"),
        KvReject::LeaseExists(_) => (Code::FailedPrecondition, "etcdserver: lease already exists"),
        KvReject::TtlTooLarge(_) => (Code::OutOfRange, "etcdserver: too large lease TTL"),
        KvReject::TooManyOperations(_) | KvReject::TooDeep => {
            (Code::InvalidArgument, "etcdserver: too many operations in txn request")
        }
        KvReject::DuplicateKey => (Code::InvalidArgument, "etcdserver: duplicate key given in txn request"),
        KvReject::InvalidSort => (Code::InvalidArgument, "etcdserver: invalid sort option"),
        KvReject::InvalidCompare => (Code::InvalidArgument, "etcdserver: invalid comparison"),
        KvReject::TooLarge(_) => (Code::InvalidArgument, "etcdserver: request is too large"),
        KvReject::Compacted { .. } => (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted"),
        KvReject::NoSpace => (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
        KvReject::Corrupt => (Code::DataLoss, "etcdserver: corrupt cluster"),
        KvReject::Future { .. } => (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision"),
    };
    Status::new(code, text)
}

/// What kept a request from being carried out, as etcd says it: clients know by the text which they may safely repeat.
fn failed(status: Status) -> Status {
    let said = match status.code() {
        // Nobody leads, or whoever does has just changed: nothing was done.
        Code::Unavailable => Status::unavailable("etcdserver: no leader"),
        // The outcome is unknown.
        Code::Aborted | Code::DeadlineExceeded => Status::unavailable("etcdserver: request timed out"),
        Code::ResourceExhausted => Status::resource_exhausted("etcdserver: too many requests"),
        _ => return status,
    };
    tracing::debug!(why = status.message(), "a request of one of etcd's clients was not answered");
    said
}

/// What kept a read from being answered: one that nobody confirmed is one that came too late, as in etcd.
pub fn unread(status: Status) -> Status {
    match status.code() {
        Code::Unavailable => Status::unavailable("etcdserver: request timed out"),
        _ => failed(status),
    }
}

/// An answer with a header.
pub trait Headed {
    /// The header.
    fn header(&mut self) -> &mut Option<ResponseHeader>;
}

macro_rules! headed {
    ($($answer:ty)*) => {$(
        impl Headed for $answer {
            fn header(&mut self) -> &mut Option<ResponseHeader> {
                &mut self.header
            }
        }
    )*};
}

headed! {
    RangeResponse PutResponse DeleteRangeResponse TxnResponse CompactionResponse
    LeaseGrantResponse LeaseRevokeResponse LeaseKeepAliveResponse LeaseTimeToLiveResponse LeaseLeasesResponse
    AlarmResponse
}

/// The header of an answer that a member gives, as of a revision.
pub fn header(shared: &SharedNodeState, revision: i64) -> Option<ResponseHeader> {
    let (cluster_id, member_id) = (shared.identity.cluster.0, shared.identity.id.0);
    Some(ResponseHeader { cluster_id, member_id, revision, raft_term: shared.raft.status().term.0 })
}

/// Adds to an answer who gives it.
pub fn sign<T: Headed>(shared: &SharedNodeState, mut answer: T) -> T {
    let revision = answer.header().as_ref().map_or(0, |header| header.revision);
    *answer.header() = header(shared, revision);
    answer
}

/// Takes an answer of one kind out of what is of it.
macro_rules! only {
    ($kind:ident) => {
        |kind| match kind {
            reply::Kind::$kind(reply) => Some(reply),
            _ => None,
        }
    };
}
pub(super) use only;

/// Room for one more of those that stay for long, unless so many have it already.
///
/// # Errors
/// As etcd says it.
pub fn enter(entered: &Arc<AtomicUsize>, max: usize) -> Result<Entered, Status> {
    Entered::among(entered, max).ok_or_else(|| Status::resource_exhausted("etcdserver: too many requests"))
}

/// Carries out a command for one of etcd's clients, which have no sessions: one attempt. `pick` takes the answer out of what is of
/// its kind.
///
/// # Errors
/// As etcd says it.
pub async fn execute<T>(
    shared: &SharedNodeState,
    kind: Kind,
    deadline: Monotonic,
    pick: fn(reply::Kind) -> Option<T>,
) -> Result<T, Status> {
    let command = Command { session: None, kind: Some(kind) };
    command::check(&command).map_err(|reject| rejected(&reject))?;
    match shared.check_and_execute(command, deadline).await.map_err(failed)?.kind {
        Some(reply::Kind::Rejection(rejection)) => Err(match command::reject(&rejection) {
            Some(reject) => rejected(&reject),
            None => Status::unknown("refused for a reason that only a newer version knows"),
        }),
        kind => match kind.and_then(pick) {
            Some(answer) => Ok(answer),
            None => Err(Status::unknown("an answer from a newer version")),
        },
    }
}

/// The same, as the answer that the client gets.
///
/// # Errors
/// As etcd says it.
pub async fn answer<T: Headed>(
    shared: &SharedNodeState,
    kind: Kind,
    deadline: Monotonic,
    pick: fn(reply::Kind) -> Option<T>,
) -> Result<Response<T>, Status> {
    execute(shared, kind, deadline, pick).await.map(|reply| Response::new(sign(shared, reply)))
}
