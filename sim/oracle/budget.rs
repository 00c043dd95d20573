//! What may be lost: a fault that takes a member's disk, or the member, is within the budget if of every committed record a good
//! copy is left in each majority that can form without it, and if a majority is left to take the lost member out (Raft paper,
//! §5.4.1 and §6; TigerBeetle's fault atlas does this by block). What is not is spared, unless the plan says otherwise: then
//! nobody need serve any more, but what is answered must still be true.

use super::Violations;
use crate::ids::{Index, NodeId, Term};

/// What is known of the cluster when something is to be lost.
pub struct Budget<'a> {
    /// The voters.
    pub voters: &'a [NodeId],
    /// Whether their configuration is changing, or some member is lost and not yet taken out.
    pub unsettled: bool,
    /// The last record known to be committed.
    pub committed: (Index, Term),
}

impl Budget<'_> {
    /// Whether a member may leave, which goes on with the others until it is out; `holds` as for a loss.
    pub fn affords_leaving(&self, leaves: NodeId, holds: impl Fn(NodeId, (Index, Term)) -> bool) -> bool {
        let others: Vec<NodeId> = self.voters.iter().copied().filter(|id| *id != leaves).collect();
        let lacking = others.iter().filter(|id| !holds(**id, self.committed)).count();
        let enough = !others.is_empty() && lacking < others.len() / 2 + 1;
        !self.unsettled && (others.len() == self.voters.len() || enough)
    }

    /// Whether a member may be lost; `holds` tells of a voter whether it holds a record durably, and with it all before it.
    pub fn affords(&self, lost: NodeId, holds: impl Fn(NodeId, (Index, Term)) -> bool) -> bool {
        let (count, quorum) = (self.voters.len(), self.voters.len() / 2 + 1);
        if self.unsettled {
            return false;
        }
        if !self.voters.contains(&lost) {
            return true;
        }
        let others = || self.voters.iter().filter(|id| **id != lost);
        let copies = others().filter(|id| holds(**id, self.committed)).count();
        // So few of the others lack it that no majority consists of them.
        let lacking = others().count() - copies;
        count > quorum && lacking < quorum
    }
}

/// The cluster took a member out: of those who then have a vote a majority must not have been off for long before, for the
/// cluster is to refuse what leaves no majority within reach.
pub fn check_removal(removed: NodeId, left: &[NodeId], long_off: &[NodeId], violations: &Violations) {
    let quorum = left.len() / 2 + 1;
    if left.len() - long_off.len() < quorum {
        let what = format!("member {removed} was removed, and of {left:?} that are left {long_off:?} were off");
        violations.add("a removal leaves a majority", what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn affords(voters: u64, lost: u64, holders: &[u64]) -> bool {
        let voters: Vec<NodeId> = (1..=voters).map(NodeId).collect();
        let budget = Budget { voters: &voters, unsettled: false, committed: (Index(9), Term(2)) };
        budget.affords(NodeId(lost), |id, _| holders.contains(&id.0))
    }

    #[test]
    fn a_copy_must_be_left_in_every_majority() {
        assert!(affords(3, 1, &[1, 2]), "two and three make a majority, and two holds it");
        assert!(!affords(3, 1, &[1]), "it would be gone");
        assert!(affords(5, 1, &[1, 2, 3]));
        assert!(!affords(5, 1, &[1, 2]), "three, four and five would go on without it");
        assert!(!affords(2, 1, &[1, 2]), "nobody could take it out");
        assert!(!affords(1, 1, &[1]));
        assert!(affords(3, 4, &[]), "who has no vote is not counted on");
    }

    #[test]
    fn the_last_but_one_may_leave_but_not_be_lost() {
        let budget = Budget { voters: &[NodeId(1), NodeId(2)], unsettled: false, committed: (Index(9), Term(2)) };
        assert!(budget.affords_leaving(NodeId(1), |id, _| id == NodeId(2)));
        assert!(!budget.affords_leaving(NodeId(1), |id, _| id == NodeId(1)), "it would be gone");
        assert!(budget.affords_leaving(NodeId(3), |_, _| false), "who has no vote is not counted on");
        assert!(!budget.affords(NodeId(1), |_, _| true));
        let last = Budget { voters: &[NodeId(1)], unsettled: false, committed: (Index(9), Term(2)) };
        assert!(!last.affords_leaving(NodeId(1), |_, _| true), "nobody would be left");
    }

    #[test]
    fn nothing_is_lost_while_something_is() {
        let budget =
            Budget { voters: &[NodeId(1), NodeId(2), NodeId(3)], unsettled: true, committed: (Index(9), Term(2)) };
        assert!(!budget.affords(NodeId(1), |_, _| true));
    }
}
