//! Oracle 11: membership is equal at equal index, changes so that old and new majorities meet, and what a leader counts as
//! committed is durable on a majority of its configuration (Raft paper, §6; dissertation, §4.1).

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use raft::eraftpb::{ConfState, Entry as RaftEntry, EntryType, Message, MessageType};

use super::Violations;
use crate::entry::{Body, Entry};
use crate::ids::{Index, NodeId, Term};
use crate::proto::v1::{self, MemberRole};
use crate::raft::codec;
use crate::raft::core::{Role, Status};

/// Entries before its promotion that a new voter may lack. One more stands for the promotion itself.
const LACKS_MAX: u64 = 101;

/// Configurations by index, and how far a majority was seen to hold the log.
#[derive(Default)]
pub struct Membership {
    configurations: BTreeMap<Index, (NodeId, ConfState)>,
    rows: BTreeMap<u64, v1::Member>,
    /// By term.
    counted: BTreeMap<Term, Index>,
    /// Changes of members that were sent, and that nobody has applied.
    sent: BTreeSet<Index>,
    /// Who said that an entry is committed when its own disk did not know it.
    said: BTreeSet<(Index, NodeId)>,
    /// Commits whose majority was counted on the disks.
    pub checked: u64,
}

impl Membership {
    /// Who keeps the state, as of the last entry that any member has applied, in the order of their ids.
    pub fn servers(&self) -> Vec<u64> {
        let is_server = |row: &&v1::Member| matches!(row.role(), MemberRole::Learner | MemberRole::Voter);
        self.rows.values().filter(is_server).map(|row| row.id).collect()
    }

    /// A member applied an entry.
    pub fn on_applied(&mut self, member: NodeId, entry: &Entry, violations: &Violations) {
        let later = self.said.split_off(&(entry.index.next(), NodeId(0)));
        let said = std::mem::replace(&mut self.said, later);
        self.sent.remove(&entry.index);
        let Body::Members { conf_state, change } = &entry.body else { return };
        let state = match codec::conf_state(conf_state) {
            Ok(state) => state,
            Err(error) => return violations.add("equal membership", error.to_string()),
        };
        for (_, leader) in said.range((entry.index, NodeId(0))..) {
            let what =
                format!("leader {leader} said that the change at {} is, and its disk did not know it", entry.index);
            violations.add("a change of members is durable when it is said to be committed", what);
        }
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
        match v1::MemberChange::decode(&**change) {
            Ok(change) => change.members.into_iter().for_each(|row| self.on_row(entry.index, row, violations)),
            Err(error) => violations.add("equal membership", error.to_string()),
        }
    }

    /// A message leaves a member; `knows` tells whether its disk knows that an entry is committed, or has no such entry. What a
    /// leader says to be committed others apply, and whom a change removes goes for good: a leader that has the change and forgot
    /// that it is committed could not do without.
    pub fn on_message(&mut self, message: &Message, mut knows: impl FnMut(Index) -> bool) {
        let is_change = |entry: &&RaftEntry| entry.get_entry_type() != EntryType::EntryNormal;
        self.sent.extend(message.entries.iter().filter(is_change).map(|entry| Index(entry.index)));
        if matches!(message.get_msg_type(), MessageType::MsgAppend | MessageType::MsgHeartbeat) {
            let said = self.sent.range(..=Index(message.commit)).filter(|index| !knows(**index));
            self.said.extend(said.map(|index| (*index, NodeId(message.from))));
        }
    }

    /// A member is about to be noted to apply an entry, which may give others a vote; `last` tells how far the log of each reaches
    /// on its disk, or nothing where that does not count. Nobody gets a vote who has acknowledged nothing, or not almost all: else a
    /// majority could be counted on that is none (Raft dissertation, §4.2.1).
    pub fn check_promotion(
        &self,
        entry: &Entry,
        mut last: impl FnMut(NodeId) -> Option<Index>,
        violations: &Violations,
    ) {
        let Body::Members { conf_state, .. } = &entry.body else { return };
        let before = self.configurations.range(..entry.index).next_back();
        let (Ok(after), Some((_, (_, before)))) = (codec::conf_state(conf_state), before) else { return };
        if self.configurations.contains_key(&entry.index) {
            return;
        }
        let promoted = after.voters.iter().filter(|id| !before.voters.contains(id));
        for id in promoted.filter(|id| !before.voters_outgoing.contains(id)).copied().map(NodeId) {
            if let Some(last) = last(id).filter(|last| *last == Index(0) || last.0 + LACKS_MAX < entry.index.0) {
                let what = format!("member {id} has a vote by the entry {}, and its log ends at {last}", entry.index);
                violations.add("who gets a vote has caught up", what);
            }
        }
    }

    /// A member applied an entry; `commit` is what its disk knows to be committed, or nothing where that does not count. A change of
    /// members that only memory knows to be committed is taken back by a crash, when those it has removed have gone for good.
    pub fn check_durable(
        member: NodeId,
        entry: &Entry,
        commit: impl FnOnce() -> Option<Index>,
        violations: &Violations,
    ) {
        if matches!(entry.body, Body::Members { .. })
            && let Some(commit) = commit().filter(|commit| *commit < entry.index)
        {
            let what =
                format!("member {member} applied the change at {}, and its disk knows {commit} committed", entry.index);
            violations.add("a change of members is durable when it is applied", what);
        }
    }

    /// A row changes. One that was decided on rows that have changed since takes that change back.
    fn on_row(&mut self, at: Index, row: v1::Member, violations: &Violations) {
        if let Some(before) = self.rows.get(&row.id) {
            let mut changes = vec![before.uuid != row.uuid, before.address != row.address, before.role != row.role];
            changes.retain(|changed| *changed);
            let returns = before.role() == MemberRole::Removed && row.role() != MemberRole::Removed;
            // Who was expected comes with a uuid of its own, once.
            let arrives = (before.role(), row.role()) == (MemberRole::Expected, MemberRole::Learner);
            let one = changes.len() <= 1 && before.uuid == row.uuid;
            if arrives && before.standby && !row.standby {
                let what = format!("at {at} {before:?} was to stand by, and does not");
                violations.add("who stands by has no vote", what);
            }
            let legal = one || arrives && before.address == row.address;
            if returns || !legal {
                let what = format!("at {at} {before:?} becomes {row:?}");
                violations.add("a change of members takes none back", what);
            }
        }
        if row.role() == MemberRole::Voter && row.standby {
            violations.add("who stands by has no vote", format!("at {at} {row:?} has one"));
        }
        self.rows.insert(row.id, row);
    }

    /// A member says where it is; `holds` tells whether a member's disk has the log up to an index.
    pub fn on_status(&mut self, status: &Status, holds: impl Fn(NodeId, Index) -> bool, violations: &Violations) {
        let counted = self.counted.entry(status.term).or_default();
        if status.role != Role::Leader || status.commit <= *counted {
            return;
        }
        *counted = status.commit;
        let (leader, commit) = (status.id, status.commit);
        let majority = |ids: &[u64]| ids.iter().filter(|id| holds(NodeId(**id), commit)).count() * 2 > ids.len();
        let of_both = |state: &ConfState| {
            majority(&state.voters) && (state.voters_outgoing.is_empty() || majority(&state.voters_outgoing))
        };
        // What made a change of members committed was counted before that took effect.
        let states = self.configurations.range(..=status.applied.max(commit)).rev().map(|(_, (_, state))| state);
        let (newest, voters) = (states.clone().next(), status.voters.iter().map(|id| id.0).collect::<Vec<_>>());
        if status.joint && newest.is_none_or(|state| state.voters_outgoing.is_empty()) {
            return; // the one in force is not known: nobody has applied it yet
        }
        self.checked += 1;
        let is_held = !status.joint && majority(&voters) || states.take(2).any(of_both);
        if !is_held {
            let holders: Vec<u64> = voters.iter().copied().filter(|id| holds(NodeId(*id), commit)).collect();
            let what = format!(
                "leader {leader} says that {commit} is committed: of {voters:?} only {holders:?} hold it, of {newest:?}"
            );
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

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn state(voters: &[u64], outgoing: &[u64]) -> ConfState {
        ConfState { voters: voters.into(), voters_outgoing: outgoing.into(), ..ConfState::default() }
    }

    fn leader(term: u64, commit: u64, voters: &[u64], joint: bool) -> Status {
        let [commit, first] = [commit, 1].map(Index);
        Status {
            id: NodeId(1),
            role: Role::Leader,
            leader: Some(NodeId(1)),
            term: Term(term),
            commit,
            applied: commit,
            first,
            last: commit,
            matched: BTreeMap::new(),
            active: Vec::new(),
            voters: voters.iter().copied().map(NodeId).collect(),
            learners: Vec::new(),
            joint,
        }
    }

    #[test]
    fn what_is_committed_is_on_a_majority_in_each_term_and_of_both_configurations() {
        let mut membership = Membership::default();
        for (index, state) in [(1, state(&[1, 2, 3], &[])), (2, state(&[4, 5], &[1, 2, 3]))] {
            let body = Body::Members { conf_state: codec::conf_state_bytes(&state), change: Bytes::new() };
            let entry = Entry { index: Index(index), term: Term(1), body };
            membership.on_applied(NodeId(1), &entry, &Violations::default());
        }
        let mut holds = |status: &Status, holders: &[u64]| {
            let violations = Violations::default();
            membership.on_status(status, |id, _| holders.contains(&id.0), &violations);
            violations.all().is_empty()
        };
        // Whoever takes part only in what was before, or in what is to be, is no majority of both.
        let both = |commit| leader(2, commit, &[4, 5], true);
        assert!(!holds(&both(10), &[4, 5, 1]));
        assert!(holds(&both(11), &[4, 5, 1, 2]));
        assert!(holds(&both(12), &[1, 2]), "it may have been counted before the change took effect");
        assert!(!holds(&both(13), &[1, 4, 5]));
        assert!(holds(&both(12), &[]), "it was counted in this term");
        assert!(!holds(&leader(3, 12, &[4, 5], true), &[]), "another leader is looked at anew");
    }
}
