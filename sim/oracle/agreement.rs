//! Oracles 2 and 4: one canonical entry per index for ever, and one state digest per index (Raft paper, §5.4, State
//! Machine Safety).

use std::collections::BTreeMap;

use xxhash_rust::xxh3::xxh3_64;

use super::Violations;
use crate::entry::{Entry, Outcome};
use crate::ids::{Index, NodeId};

/// What any member, in any life, applied at each index.
#[derive(Default)]
pub struct Agreement {
    applied: BTreeMap<Index, (NodeId, u64, u64)>,
    /// How often a member went over to a snapshot.
    pub installed: u64,
}

impl Agreement {
    /// A member applied an entry.
    pub fn on_applied(&mut self, member: NodeId, entry: &Entry, outcome: &Outcome, violations: &Violations) {
        let hash = xxh3_64(format!("{entry:?} {:?}", outcome.replies).as_bytes());
        let (first, entry_hash, digest) = *self.applied.entry(entry.index).or_insert((member, hash, outcome.digest));
        if entry_hash != hash {
            let what = format!("members {first} and {member} applied different entries at {}", entry.index);
            violations.add("one entry per index", what);
        } else if digest != outcome.digest {
            let what = format!("members {first} and {member} have different states at {}", entry.index);
            violations.add("equal digests", what);
        }
    }

    /// A member went over to a snapshot: its state must be the one that others got by applying.
    pub fn on_installed(&mut self, member: NodeId, index: Index, digest: u64, violations: &Violations) {
        self.installed += 1;
        match self.applied.get(&index) {
            Some((_, _, applied)) if *applied == digest => {}
            Some((first, ..)) => {
                let what = format!("member {member} installed another state at {index} than {first} has applied");
                violations.add("a snapshot is what was replayed", what);
            }
            None => {
                let what = format!("member {member} installed a state at {index}, which nobody has applied");
                violations.add("a snapshot is what was replayed", what);
            }
        }
    }

    /// The last index that anyone applied.
    pub fn last(&self) -> Index {
        self.applied.keys().next_back().copied().unwrap_or_default()
    }
}
