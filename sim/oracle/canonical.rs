//! Oracle 2: one canonical entry per index, for ever, and one answer to it (Raft paper, §5.4, State Machine Safety).
//!
//! Every member, in every life, is compared with the first that applied the index. That is as strong as a chain of hashes:
//! members that agree at every index agree on every prefix.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::xxh3_64;

use super::Violations;
use crate::entry::{Entry, Outcome};
use crate::ids::{Index, NodeId, Term};

/// What the first member to apply each index applied there.
#[derive(Default)]
pub struct Canonical {
    applied: BTreeMap<Index, (NodeId, u64)>,
    last: (Index, Term),
}

impl Canonical {
    /// A member applied an entry.
    pub fn on_applied(&mut self, member: NodeId, entry: &Entry, outcome: &Outcome, violations: &Violations) {
        let hash = xxh3_64(format!("{entry:?} {:?}", outcome.replies).as_bytes());
        let (first, canonical) = *self.applied.entry(entry.index).or_insert((member, hash));
        self.last = self.last.max((entry.index, entry.term));
        if canonical != hash {
            let what = format!("members {first} and {member} applied different entries at {}", entry.index);
            violations.add("one entry per index", what);
        }
    }

    /// The last index that anyone applied, and its term.
    pub fn last(&self) -> (Index, Term) {
        self.last
    }
}
