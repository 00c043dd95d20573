//! What clients did and saw: the only evidence about the data that an oracle may use.

use std::sync::Mutex;
use std::time::Duration;

/// What a client asked for on one key. Every written value is unique in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Set the key, perhaps only at a revision (0: only if absent).
    Put {
        /// The value.
        value: u64,
        /// The precondition.
        expected: Option<u64>,
    },
    /// Remove the key.
    Delete,
    /// Read the key.
    Get,
    /// Read the key as it was at a revision of the store.
    GetAt {
        /// The revision.
        revision: u64,
    },
    /// Forget what was superseded before a revision of the store.
    Compact {
        /// The revision.
        revision: u64,
    },
}

/// What it saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The put gave this revision.
    Put(u64),
    /// The precondition failed: the revision was this.
    Mismatch(u64),
    /// The delete found the key, or not.
    Deleted(bool),
    /// The read found value and revision, or nothing.
    Got(Option<(u64, u64)>),
    /// It was done, and there is no more to say.
    Done,
    /// The revision is, or was already, compacted.
    Compacted,
    /// There is no space for it, and nothing happened.
    Full,
    /// Whoever asked for it may not have it, and nothing happened.
    Denied,
    /// Certainly nothing happened.
    NotDone,
    /// It may have happened, and may yet.
    Unknown,
}

/// One operation, with the virtual times at which it began and ended.
#[derive(Clone, Debug)]
pub struct Record {
    /// Who.
    pub client: u64,
    /// On which key.
    pub key: u64,
    /// What.
    pub op: Op,
    /// Began.
    pub from: Duration,
    /// Ended.
    pub to: Duration,
    /// With what.
    pub seen: Seen,
    /// The revision of the store that the answer named; 0 if there was no answer.
    pub at: u64,
}

impl Record {
    /// A change of the key that it tells of, made by it or seen: at which revision of the store, and what the key was made; nothing,
    /// if it was removed.
    pub fn change(&self) -> Option<(u64, Option<u64>)> {
        match (self.op, self.seen) {
            (Op::Put { value, .. }, Seen::Put(revision)) => Some((revision, Some(value))),
            (Op::Delete, Seen::Deleted(true)) => Some((self.at, None)),
            (Op::Get | Op::GetAt { .. }, Seen::Got(Some((value, revision)))) => Some((revision, Some(value))),
            _ => None,
        }
    }

    /// Whether it is known to have changed the key.
    pub fn changed(&self) -> bool {
        matches!(self.seen, Seen::Put(_) | Seen::Deleted(true))
    }

    /// Whether it is about a key as it is, and so something that an order of all operations must explain.
    pub fn is_of_now(&self) -> bool {
        !matches!(self.op, Op::GetAt { .. } | Op::Compact { .. })
    }
}

/// All operations of a run.
#[derive(Default)]
pub struct History {
    records: Mutex<Vec<Record>>,
}

impl History {
    /// Adds one that has ended.
    pub fn add(&self, record: Record) {
        self.records.lock().unwrap().push(record);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.records.lock().unwrap().len()
    }

    /// All of them.
    pub fn records(&self) -> Vec<Record> {
        self.records.lock().unwrap().clone()
    }
}
