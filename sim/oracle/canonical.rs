//! Oracle 2: one canonical entry per index, for ever, and one answer to it (Raft paper, §5.4, State Machine Safety).
//!
//! Every member, in every life, is compared with the first that applied the index. That is as strong as a chain of hashes:
//! members that agree at every index agree on every prefix.

use std::collections::BTreeMap;

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use super::Violations;
use crate::entry::{Body, Entry, Outcome};
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
        let hash = hash(entry, outcome);
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

/// Of all that an entry says, and of the answers to it.
fn hash(entry: &Entry, outcome: &Outcome) -> u64 {
    let (kind, stamp, parts): (u64, u64, Vec<&Bytes>) = match &entry.body {
        Body::Empty => (0, 0, Vec::new()),
        Body::Commands { stamp, commands } => (1, stamp.0, commands.iter().collect()),
        Body::Members { conf_state, change } => (2, 0, vec![conf_state, change]),
    };
    let mut hash = Xxh3::new();
    for number in [entry.index.0, entry.term.0, kind, stamp, parts.len() as u64] {
        hash.update(&number.to_le_bytes());
    }
    for part in parts.into_iter().chain(&outcome.replies) {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.digest()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::ClusterTime;

    #[test]
    fn entries_and_answers_are_the_same_to_the_last_byte() {
        let commands = |stamp, commands: &[&'static str]| Body::Commands {
            stamp: ClusterTime(stamp),
            commands: commands.iter().map(|command| Bytes::from_static(command.as_bytes())).collect(),
        };
        let applied = |term, body, replies: &[&'static str]| {
            let entry = Entry { index: Index(7), term: Term(term), body };
            let replies = replies.iter().map(|reply| Bytes::from_static(reply.as_bytes())).collect();
            (entry, Outcome { replies, digest: 0 })
        };
        let members = |conf_state, change| Body::Members {
            conf_state: Bytes::from_static(conf_state),
            change: Bytes::from_static(change),
        };
        let all = [
            applied(2, commands(5, &["ab", "c"]), &["x", "yz"]),
            applied(3, commands(5, &["ab", "c"]), &["x", "yz"]),
            applied(2, commands(6, &["ab", "c"]), &["x", "yz"]),
            applied(2, commands(5, &["a", "bc"]), &["x", "yz"]),
            applied(2, commands(5, &["c", "ab"]), &["x", "yz"]),
            applied(2, commands(5, &["ab", "c"]), &["xy", "z"]),
            applied(2, commands(5, &["ab"]), &["c", "x", "yz"]),
            applied(2, Body::Empty, &[]),
            applied(2, members(b"ab", b"c"), &[]),
            applied(2, members(b"a", b"bc"), &[]),
        ];
        for (one, first) in all.iter().enumerate() {
            for (other, second) in all.iter().enumerate() {
                let (mut canonical, violations) = (Canonical::default(), Violations::default());
                for (member, (entry, outcome)) in [(1, first), (2, second)] {
                    canonical.on_applied(NodeId(member), entry, outcome, &violations);
                }
                assert_eq!(violations.all().is_empty(), one == other, "{first:?} and {second:?}");
            }
        }
    }
}
