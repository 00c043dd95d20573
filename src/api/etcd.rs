//! What the services that etcd's clients call have in common. Errors have etcd's codes and texts, for clients compare them.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use tonic::{Code, Response, Status};

use super::Entered;
use crate::error::{AuthReject, KvReject, Reject};
use crate::forward::is_not_done;
use crate::proto::etcdserverpb::{
    AlarmResponse, AuthDisableResponse, AuthEnableResponse, AuthRoleAddResponse, AuthRoleDeleteResponse,
    AuthRoleGrantPermissionResponse, AuthRoleRevokePermissionResponse, AuthUserAddResponse,
    AuthUserChangePasswordResponse, AuthUserDeleteResponse, AuthUserGrantRoleResponse, AuthUserRevokeRoleResponse,
    CompactionResponse, DeleteRangeResponse, LeaseGrantResponse, LeaseKeepAliveResponse, LeaseLeasesResponse,
    LeaseRevokeResponse, LeaseTimeToLiveResponse, PutResponse, RangeResponse, ResponseHeader, TxnResponse,
};
use crate::proto::v1::{command::Kind, reply};
use crate::shared::{Caller, SHORT_OF_SPACE, SharedNodeState};
use crate::state::command;
use crate::time::Monotonic;

/// A refusal as etcd says it.
pub fn rejected(reject: &Reject) -> Status {
    let reject = match reject {
        Reject::Kv(reject) => reject,
        Reject::Auth(reject) => return unauthorized(*reject),
        other => return Status::invalid_argument(format!("etcdserver: {other}")),
    };
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
        KvReject::EntryFull => (Code::Aborted, "etcdserver: others of the entry have read too much"),
        KvReject::ReadsTooMuch(_) => (Code::ResourceExhausted, "etcdserver: request reads too much"),
        KvReject::Compacted { .. } => (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted"),
        KvReject::NoSpace => (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
        KvReject::Corrupt => (Code::DataLoss, "etcdserver: corrupt cluster"),
        KvReject::Future { .. } => (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision"),
    };
    Status::new(code, text)
}

fn unauthorized(reject: AuthReject) -> Status {
    let (code, text) = match reject {
        AuthReject::UserMissing => (Code::InvalidArgument, "etcdserver: user name is empty"),
        AuthReject::TokenInvalid => (Code::Unauthenticated, "etcdserver: invalid auth token"),
        AuthReject::Denied => (Code::PermissionDenied, "etcdserver: permission denied"),
        AuthReject::PasswordMissing => (Code::InvalidArgument, "etcdserver: password is empty"),
        AuthReject::RoleMissing => (Code::InvalidArgument, "etcdserver: role name is empty"),
        AuthReject::PermissionMissing => (Code::InvalidArgument, "etcdserver: permission not given"),
        AuthReject::RootUserMissing => (Code::FailedPrecondition, "etcdserver: root user does not exist"),
        AuthReject::RootRoleMissing => (Code::FailedPrecondition, "etcdserver: root user does not have root role"),
        AuthReject::RootPasswordMissing => (Code::FailedPrecondition, "etcdserver: root user has no password"),
        AuthReject::RootNeeded => (Code::InvalidArgument, "etcdserver: invalid auth management"),
        AuthReject::UserExists => (Code::FailedPrecondition, "etcdserver: user name already exists"),
        AuthReject::UserNotFound => (Code::FailedPrecondition, "etcdserver: user name not found"),
        AuthReject::RoleExists => (Code::FailedPrecondition, "etcdserver: role name already exists"),
        AuthReject::RoleNotFound => (Code::FailedPrecondition, "etcdserver: role name not found"),
        AuthReject::RoleNotGranted => (Code::FailedPrecondition, "etcdserver: role is not granted to the user"),
        AuthReject::PermissionNotGranted => {
            (Code::FailedPrecondition, "etcdserver: permission is not granted to the role")
        }
    };
    Status::new(code, text)
}

/// What is said to whoever needs somebody to lead when nobody does.
pub fn no_leader() -> Status {
    Status::unavailable("etcdserver: no leader")
}

/// What is said to whoever waits for what this member could not find out in time.
pub fn too_late() -> Status {
    Status::unavailable("etcdserver: request timed out")
}

/// What is said to whoever waits for more from a member that ends.
pub fn stopped() -> Status {
    Status::unavailable("etcdserver: server stopped")
}

/// What kept a request from being carried out, as etcd says it: clients know by the text which they may safely repeat.
fn failed(status: Status) -> Status {
    let said = match status.code() {
        // Nobody leads, or whoever does has just changed: nothing was done.
        Code::Unavailable => no_leader(),
        // The outcome is unknown.
        Code::Aborted | Code::DeadlineExceeded => too_late(),
        Code::ResourceExhausted if status.message().starts_with(SHORT_OF_SPACE) => {
            rejected(&Reject::Kv(KvReject::NoSpace))
        }
        Code::ResourceExhausted => Status::resource_exhausted("etcdserver: too many requests"),
        _ => return status,
    };
    tracing::debug!(why = status.message(), "a request of one of etcd's clients was not answered");
    said
}

/// What kept a read from being answered: one that nobody confirmed is one that came too late, as in etcd.
pub fn unread(status: Status) -> Status {
    match status.code() {
        Code::Unavailable => too_late(),
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
    AuthEnableResponse AuthDisableResponse AuthUserAddResponse AuthUserDeleteResponse AuthUserChangePasswordResponse
    AuthUserGrantRoleResponse AuthUserRevokeRoleResponse AuthRoleAddResponse AuthRoleDeleteResponse
    AuthRoleGrantPermissionResponse AuthRoleRevokePermissionResponse
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

/// Carries out a command for one of etcd's clients, which have no sessions and do not try again by themselves: here it is tried
/// again as long as it has certainly not been done. `pick` takes the answer out of what is of its kind.
///
/// # Errors
/// As etcd says it.
pub async fn execute<T>(
    shared: &SharedNodeState,
    caller: &Caller,
    kind: Kind,
    deadline: Monotonic,
    pick: fn(reply::Kind) -> Option<T>,
) -> Result<T, Status> {
    caller.may_ask().map_err(|reject| rejected(&reject.into()))?;
    let mut command = caller.command(kind);
    shared.fill_in(&mut command).await?;
    command::check(&command).map_err(|reject| rejected(&reject))?;
    let reply = loop {
        match shared.check_and_execute(command.clone(), deadline).await {
            // Whoever led is gone, or does not lead any more, and this member has not heard of the next.
            Err(status) if is_not_done(&status) && status.code() == Code::Unavailable => {
                sometimes!("a request of one of etcd's clients waited for another leader");
                if !shared.pause(deadline).await {
                    return Err(failed(status));
                }
            }
            outcome => break outcome.map_err(failed)?,
        }
    };
    match reply.kind {
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
    caller: &Caller,
    kind: Kind,
    deadline: Monotonic,
    pick: fn(reply::Kind) -> Option<T>,
) -> Result<Response<T>, Status> {
    execute(shared, caller, kind, deadline, pick).await.map(|reply| Response::new(sign(shared, reply)))
}
