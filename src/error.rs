//! The two families of failure.
//!
//! A **reject** is a deterministic answer of the replicated state: every member computes the same one, it is stored
//! with the session, and a retry gets it again. A **fault** is local: this node's disk, its database, its invariants.
//! During apply a fault stops the node; it is never an answer.

use std::fmt;

use crate::ids::{NodeId, Revision, Seq, SessionId, Token};

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
    /// A precondition on a key's revision does not hold.
    #[error("the key's revision is {actual}, not {expected} (0 means that the key does not exist)")]
    RevisionMismatch {
        /// What the caller expected.
        expected: Revision,
        /// What the key has.
        actual: Revision,
    },
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
    #[error("worker {0} is offline")]
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
