//! Oracle 4: equal states at equal indices, whether replayed or restored from a snapshot (Schneider, "Implementing
//! fault-tolerant services using the state machine approach", 1990).

use std::collections::BTreeMap;

use super::Violations;
use crate::ids::{Index, NodeId};

/// The digest of the state at each index, by the first member that got there by applying.
#[derive(Default)]
pub struct Digests {
    applied: BTreeMap<Index, (NodeId, u64)>,
    /// How often a member went over to a snapshot.
    pub installed: u64,
}

impl Digests {
    /// A member's state after it applied an index.
    pub fn on_applied(&mut self, member: NodeId, index: Index, digest: u64, violations: &Violations) {
        let (first, expected) = *self.applied.entry(index).or_insert((member, digest));
        if expected != digest {
            violations.add("equal digests", format!("members {first} and {member} have different states at {index}"));
        }
    }

    /// A member went over to a snapshot: its state must be the one that others got by applying.
    pub fn on_installed(&mut self, member: NodeId, index: Index, digest: u64, violations: &Violations) {
        self.installed += 1;
        match self.applied.get(&index) {
            Some((_, applied)) if *applied == digest => {}
            Some((first, _)) => {
                let what = format!("member {member} installed another state at {index} than {first} has applied");
                violations.add("a snapshot is what was replayed", what);
            }
            None => {
                let what = format!("member {member} installed a state at {index}, which nobody has applied");
                violations.add("a snapshot is what was replayed", what);
            }
        }
    }
}
