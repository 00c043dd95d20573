//! Oracle 1: one vote per member and term, at most one leader per term (Raft paper, §5.2, Election Safety), and none in a later term
//! while reads are answered under the lease of one (Raft dissertation, §6.4.1).

use std::collections::BTreeMap;

use super::Violations;
use crate::ids::{NodeId, Term};

/// What was seen of elections, over all lives of all members.
#[derive(Default)]
pub struct Elections {
    votes: BTreeMap<(NodeId, Term), NodeId>,
    leaders: BTreeMap<Term, NodeId>,
}

impl Elections {
    /// A granted vote left a member, or a request of votes: that is one for itself.
    pub fn on_vote(&mut self, voter: NodeId, term: Term, candidate: NodeId, violations: &Violations) {
        let first = *self.votes.entry((voter, term)).or_insert(candidate);
        if first != candidate {
            let what = format!("member {voter} voted for {first} and for {candidate} in term {term}");
            violations.add("one vote per term", what);
        }
    }

    /// A member says that it leads.
    pub fn on_leader(&mut self, leader: NodeId, term: Term, violations: &Violations) {
        let first = *self.leaders.entry(term).or_insert(leader);
        if first != leader {
            violations.add("one leader per term", format!("{first} and {leader} both lead in term {term}"));
        }
    }

    /// A member answers reads under the lease that it has as leader of a term.
    pub fn on_lease(&self, leader: NodeId, term: Term, violations: &Violations) {
        if let Some((later, other)) = self.leaders.last_key_value().filter(|(later, _)| **later > term) {
            let what = format!("{leader} counts on its lease of term {term}, and {other} leads in term {later}");
            violations.add("nobody leads during another's lease", what);
        }
    }

    /// Leaders seen so far.
    pub fn leaders(&self) -> usize {
        self.leaders.len()
    }
}
