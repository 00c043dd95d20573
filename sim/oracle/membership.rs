//! Oracle 11: membership is equal at equal index, changes so that old and new majorities meet, and what a leader counts as
//! committed is durable on a majority of its configuration (Raft paper, §6; dissertation, §4.1).

use std::collections::{BTreeMap, BTreeSet};

use raft::eraftpb::ConfState;

use super::Violations;
use crate::entry::{Body, Entry};
use crate::ids::{Index, NodeId};
use crate::raft::codec;
use crate::raft::core::{Role, Status};

/// Configurations by index, and how far a majority was seen to hold the log.
#[derive(Default)]
pub struct Membership {
    configurations: BTreeMap<Index, (NodeId, ConfState)>,
    counted: Index,
    /// Commits whose majority was counted on the disks.
    pub checked: u64,
}

impl Membership {
    /// A member applied an entry.
    pub fn on_applied(&mut self, member: NodeId, entry: &Entry, violations: &Violations) {
        let Body::Members { conf_state, .. } = &entry.body else { return };
        let state = match codec::conf_state(conf_state) {
            Ok(state) => state,
            Err(error) => return violations.add("equal membership", error.to_string()),
        };
        if let Some((first, found)) = self.configurations.get(&entry.index) {
            if *found != state {
                let what = format!("at {} member {first} has {found:?}, member {member} {state:?}", entry.index);
                violations.add("equal membership", what);
            }
            return;
        }
        if let Some((_, (_, before))) = self.configurations.range(..entry.index).next_back()
            && !meets(before, &state)
        {
            let what = format!("at {} it goes from {before:?} to {state:?}", entry.index);
            violations.add("majorities meet", what);
        }
        self.configurations.insert(entry.index, (member, state));
    }

    /// A member says where it is; `holds` tells whether a member's disk has the log up to an index.
    pub fn on_status(&mut self, status: &Status, holds: impl Fn(NodeId, Index) -> bool, violations: &Violations) {
        if status.role != Role::Leader || status.joint || status.commit <= self.counted {
            return;
        }
        self.counted = status.commit;
        self.checked += 1;
        let (leader, commit) = (status.id, status.commit);
        let majority = |voters: &[NodeId]| voters.iter().filter(|id| holds(**id, commit)).count() * 2 > voters.len();
        // What made a change of members committed was counted before that took effect.
        let before = self.configurations.range(..=commit).rev().take(2);
        let mut before = before.map(|(_, (_, state))| state.voters.iter().copied().map(NodeId).collect::<Vec<_>>());
        if !majority(&status.voters) && !before.any(|voters| majority(&voters)) {
            let holders: Vec<NodeId> = status.voters.iter().copied().filter(|id| holds(*id, commit)).collect();
            let voters = &status.voters;
            let what =
                format!("leader {leader} says that {commit} is committed: of {voters:?} only {holders:?} hold it");
            violations.add("committed on a majority", what);
        }
    }
}

/// Workers that keep no state are in no configuration.
pub fn check_workers(workers: &[NodeId], statuses: &BTreeMap<NodeId, Status>, violations: &Violations) {
    for status in statuses.values() {
        let counted = status.voters.iter().chain(&status.learners).find(|id| workers.contains(id));
        if let Some(worker) = counted {
            let what = format!("member {} counts the worker {worker}: {status:?}", status.id);
            violations.add("workers are in no configuration", what);
        }
    }
}

/// Whether every majority of one configuration has a member in common with every majority of the next: by a joint one, or
/// because at most one voter came or went.
fn meets(before: &ConfState, after: &ConfState) -> bool {
    let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>();
    let (old, new) = (set(&before.voters), set(&after.voters));
    match (before.voters_outgoing.is_empty(), after.voters_outgoing.is_empty()) {
        (true, true) => old.symmetric_difference(&new).count() <= 1,
        (true, false) => set(&after.voters_outgoing) == old,
        (false, true) => old == new,
        (false, false) => false,
    }
}
