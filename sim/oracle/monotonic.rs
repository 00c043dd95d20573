//! Oracle 7: a member's term never goes back, over all its lives; commit and applied never go back within one
//! (Raft paper, figure 2: what is persistent and what is volatile).

use std::collections::BTreeMap;

use super::Violations;
use crate::ids::{Incarnation, Index, NodeId, Term};
use crate::raft::core::Status;

/// The highest that was seen of each member.
#[derive(Default)]
pub struct Monotonic {
    terms: BTreeMap<NodeId, Term>,
    positions: BTreeMap<(NodeId, Incarnation), (Index, Index)>,
}

impl Monotonic {
    /// A message of a term left a member: it can never be in an earlier one again.
    pub fn on_message(&mut self, member: NodeId, term: Term) {
        let highest = self.terms.entry(member).or_default();
        *highest = term.max(*highest);
    }

    /// A member says where it is.
    pub fn on_status(&mut self, life: (NodeId, Incarnation), status: &Status, violations: &Violations) {
        let highest = self.terms.get(&life.0).copied().unwrap_or_default();
        if status.term < highest {
            violations
                .add("terms go forward", format!("member {} went from term {highest} to {}", life.0, status.term));
        }
        let (commit, applied) = self.positions.entry(life).or_default();
        if status.commit < *commit || status.applied < *applied {
            let what = format!(
                "member {} went from commit {commit} and applied {applied} to {} and {}",
                life.0, status.commit, status.applied
            );
            violations.add("positions go forward", what);
        }
        (*commit, *applied) = (status.commit.max(*commit), status.applied.max(*applied));
    }
}
