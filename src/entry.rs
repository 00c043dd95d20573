//! What passes between the log and the replicated state: committed entries, what comes of them, and how far it is with writing the
//! state anew.

use bytes::Bytes;

use crate::ids::{Index, Term};
use crate::time::ClusterTime;

/// A committed entry in the order of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it stands.
    pub index: Index,
    /// When it was proposed.
    pub term: Term,
    /// What it says.
    pub body: Body,
}

/// What an entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Nothing: a leader's first entry of its term, or a change of membership that Raft turned down.
    Empty,
    /// Encoded commands, gathered by a leader at `stamp`.
    Commands {
        /// The leader's cluster time.
        stamp: ClusterTime,
        /// What to carry out, in order.
        commands: Vec<Bytes>,
    },
    /// A change of membership.
    Members {
        /// Raft's configuration after it, as Raft encodes it.
        conf_state: Bytes,
        /// An encoded [`crate::proto::v1::MemberChange`].
        change: Bytes,
    },
}

/// What applying one entry gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The encoded reply of each command, in order.
    pub replies: Vec<Bytes>,
    /// The digest of the whole state after the entry: equal on all members.
    pub digest: u64,
}

/// How far it is with writing the state anew, into a file without anything free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is more to write.
    More,
    /// All is written but what is changed from now on: the state may go over to it, or has.
    Whole,
    /// Another state took the place of the one that was written, in a file without anything free. What was written is gone.
    Replaced,
    /// More was changed meanwhile than can be kept up with. What was written is gone.
    TooMany,
    /// It could not be written. What was written is gone.
    Failed,
}
