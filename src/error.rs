//! The two families of failure.
//!
//! A **reject** is a deterministic answer of the replicated state: every member computes the same one, it is stored
//! with the session, and a retry gets it again. A **fault** is local: this node's disk, its database, its invariants.
//! During apply a fault stops the node; it is never an answer.

use std::fmt;

use crate::ids::{LeaseId, NodeId, Seq, SessionId, Token};
use crate::limits::{READ_BYTES_MAX, REQUEST_BYTES_MAX, TXN_ALL_MAX, TXN_DEPTH_MAX, TXN_OPERATIONS_MAX};

/// Why the replicated state refused a command. The variants are part of the replicated format: see
/// `proto/cairn/v1/command.proto`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    /// The session was never opened, was closed, or its lease ran out.
    #[error("session {0} does not exist or has expired; open a new one")]
    SessionExpired(SessionId),
    /// The reply of that request is no longer kept, because the client had acknowledged it.
    #[error("request {seq} of session {session} is stale: the client had acknowledged up to {acknowledged}")]
    Stale {
        /// The session.
        session: SessionId,
        /// The request.
        seq: Seq,
        /// What the client had acknowledged before.
        acknowledged: Seq,
    },
    /// The client runs too far ahead of what it has acknowledged.
    #[error(
        "request {seq} of session {session} is more than {} ahead of the acknowledged {acknowledged}",
        crate::limits::SESSION_WINDOW_MAX
    )]
    WindowFull {
        /// The session.
        session: SessionId,
        /// The request.
        seq: Seq,
        /// What the client had acknowledged before.
        acknowledged: Seq,
    },
    /// A named bound of the replicated state would be exceeded.
    #[error("{what} are limited to {limit}")]
    LimitReached {
        /// What there would be too many of.
        what: String,
        /// The bound.
        limit: u64,
    },
    /// It was done, and its answer is too long to be kept.
    #[error("it was done, and its answer of {0} bytes is too long to be kept")]
    AnswerNotKept(u64),
    /// A request about keys makes no sense, or not now.
    #[error("{0}")]
    Kv(#[from] KvReject),
    /// Somebody may not do that, or users and roles cannot be changed so.
    #[error("{0}")]
    Auth(#[from] AuthReject),
    /// There is no such thing, or no more.
    #[error("{0} does not exist")]
    NotFound(String),
    /// Something stands in the way.
    #[error("{0}")]
    Conflict(String),
    /// The attempt is not, or no more, under way: what it reports changes nothing.
    #[error("attempt {0} is not under way any more")]
    Fenced(Token),
    /// The worker's lease has ended.
    #[error("worker {0} is offline, or there is none")]
    WorkerOffline(NodeId),
    /// A part of the command is outside its bounds.
    #[error("{field}: {why}")]
    Invalid {
        /// The part.
        field: String,
        /// What is wrong with it, with the value and the bound.
        why: String,
    },
}

/// What is wrong with a request about keys. The rules are etcd's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KvReject {
    /// A key has at least one byte.
    #[error("no key is given; a key has at least one byte")]
    KeyMissing,
    /// A value is given that is to be ignored.
    #[error("a value is given, and the key's own is to be kept: give one or ask for the other")]
    ValueGiven,
    /// A lease is given that is to be ignored.
    #[error("a lease is given, and the key's own is to be kept: give one or ask for the other")]
    LeaseGiven,
    /// Its own value or lease is to be kept, or an operation is none.
    #[error("the key does not exist, so it has nothing that could be kept")]
    KeyNotFound,
    /// There is no such lease.
    #[error("lease {0} does not exist")]
    LeaseNotFound(LeaseId),
    /// There is such a lease already.
    #[error("lease {0} exists already")]
    LeaseExists(LeaseId),
    /// In seconds.
    #[error("{0} s; a lease lasts at most {max} s", max = crate::limits::LEASE_TTL_MAX.as_secs())]
    TtlTooLarge(i64),
    /// So many.
    #[error(
        "{0} operations; a transaction has at most {TXN_OPERATIONS_MAX} on any way through it, and at most {TXN_ALL_MAX} \
             with comparisons and all branches"
    )]
    TooManyOperations(u64),
    /// Transactions in transactions.
    #[error("a transaction in a transaction, and so on; at most {TXN_DEPTH_MAX} deep")]
    TooDeep,
    /// A key is changed twice at one revision.
    #[error("a transaction sets a key twice, or sets it and removes it")]
    DuplicateKey,
    /// Order or target is from a newer version.
    #[error("the order, or what is to be ordered by, is none that this version knows")]
    InvalidSort,
    /// Result or target is from a newer version.
    #[error("the comparison is none that this version knows")]
    InvalidCompare,
    /// In bytes.
    #[error("{0} bytes; a request has at most {REQUEST_BYTES_MAX}")]
    TooLarge(u64),
    /// In bytes.
    #[error(
        "{0} bytes are to be read, or more; what changes keys reads at most {READ_BYTES_MAX}: ask for less at once"
    )]
    ReadsTooMuch(u64),
    /// It was not done; in another entry it may be.
    #[error("not done, for others that were asked at the same time read too much: ask again")]
    EntryFull,
    /// It cannot be read any more.
    #[error("revision {asked} is compacted; what came before revision {compacted} is forgotten")]
    Compacted {
        /// What was asked for.
        asked: u64,
        /// The oldest revision that can be read.
        compacted: u64,
    },
    /// An alarm says so.
    #[error(
        "keys and their history take more than they may; compact, delete what is not needed, and disarm the alarm: \
             node alarm disarm"
    )]
    NoSpace,
    /// An alarm says so.
    #[error("members differ, as an alarm says; see to that, and disarm it: node alarm disarm")]
    Corrupt,
    /// It is not there yet.
    #[error("revision {asked} is not there yet; the newest is {newest}")]
    Future {
        /// What was asked for.
        asked: u64,
        /// The newest revision.
        newest: u64,
    },
}

/// What somebody may not do, or what is wrong with a change of users and roles. The rules are etcd's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthReject {
    /// Nobody has logged in, or no user is named.
    #[error("no user is named, and nobody has logged in")]
    UserMissing,
    /// Another password was set since the user has logged in, or there is no such user any more.
    #[error("whoever logged in is known no more: log in again")]
    TokenInvalid,
    /// The user may not do that.
    #[error("the user may not do that")]
    Denied,
    /// A user has a password, unless it is said that there is none.
    #[error("no password is given")]
    PasswordMissing,
    /// No role is named.
    #[error("no role is named")]
    RoleMissing,
    /// It is not said of which keys.
    #[error("no keys are given")]
    PermissionMissing,
    /// Somebody must be able to do everything.
    #[error("there is no user root, who is to be able to do everything: add it first")]
    RootUserMissing,
    /// Somebody must be able to do everything.
    #[error("the user root does not have the role root: grant it first")]
    RootRoleMissing,
    /// Somebody must be able to do everything.
    #[error("the user root has no password, so nobody could log in as it: give it one first")]
    RootPasswordMissing,
    /// Somebody must be able to do everything.
    #[error("while it is looked at what users may do, the user root stays, and so does the role root")]
    RootNeeded,
    /// There is such a user.
    #[error("there is such a user already")]
    UserExists,
    /// There is no such user.
    #[error("there is no such user")]
    UserNotFound,
    /// There is such a role.
    #[error("there is such a role already")]
    RoleExists,
    /// There is no such role.
    #[error("there is no such role")]
    RoleNotFound,
    /// The user does not have the role.
    #[error("the user does not have that role")]
    RoleNotGranted,
    /// The role has nothing to say of just this range.
    #[error("the role has no permission for just this range of keys")]
    PermissionNotGranted,
}

/// What went wrong on this node. The message names the thing and the value.
#[derive(Debug)]
pub struct Fault {
    what: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Fault {
    /// A fault without a cause below it.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), source: None }
    }

    /// A fault caused by `source`.
    pub fn because(what: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { what: what.into(), source: Some(source.into()) }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.what.fmt(f)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Fault {}

/// Adds what was being done to an error from below.
pub trait Context<T> {
    /// The same result with the error turned into a [`Fault`] that says what was being done.
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Fault>;
}

impl<T, E: Into<Box<dyn std::error::Error + Send + Sync>>> Context<T> for Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Fault> {
        self.map_err(|error| Fault::because(what(), error))
    }
}

/// Why something that came from another member was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It is not what it claims to be; nothing here has changed.
    #[error("{0}")]
    Invalid(String),
    /// This node failed, and must stop.
    #[error("{0}")]
    Fault(#[from] Fault),
}
