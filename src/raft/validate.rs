//! What a message from a peer must look like before raft-rs may see it: a malformed one would make it panic, and a
//! peer must not be able to stop this node.

use std::collections::BTreeSet;

use raft::eraftpb::{ConfState, Message, MessageType};

use crate::ids::{Index, NodeId, Term};

/// A message that raft-rs must not see.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("raft message {kind:?} from member {from}: {why}")]
pub struct InvalidMessage {
    kind: MessageType,
    from: NodeId,
    why: String,
}

/// Checks a message against what this member can take. `last` is the last index of its log, and `term_of` says of which term an entry
/// in it is, if it is there.
///
/// # Errors
/// What is wrong with it.
pub fn check(
    message: &Message,
    me: NodeId,
    last: Index,
    term_of: impl Fn(Index) -> Option<Term>,
) -> Result<(), InvalidMessage> {
    use MessageType as T;
    let kind = message.get_msg_type();
    let invalid = |why: String| Err(InvalidMessage { kind, from: NodeId(message.from), why });
    if message.to != me.0 {
        return invalid(format!("it is for member {}, this is {me}", message.to));
    }
    if message.from == 0 || message.from == me.0 {
        return invalid("no such sender".into());
    }
    // A question for the read index is of no term; everything else is of one.
    if (message.term == 0) != (kind == T::MsgReadIndex) {
        return invalid(format!("term {}", message.term));
    }
    if message.request_snapshot != 0 {
        return invalid("nobody asks for a snapshot of their own accord".into());
    }
    match kind {
        T::MsgSnapshot => match snapshot_fault(message, me) {
            Some(why) => invalid(why),
            None => Ok(()),
        },
        T::MsgAppend => {
            for (entry, index) in message.entries.iter().zip(message.index + 1..) {
                if entry.index != index {
                    return invalid(format!("entry {} where {index} belongs", entry.index));
                }
                if entry.term > message.term || entry.term < message.log_term {
                    return invalid(format!("entry {index} of term {} in term {}", entry.term, message.term));
                }
            }
            match (message.index, message.log_term) {
                (0, 0) | (1.., 1..) => Ok(()),
                (index, term) => invalid(format!("it follows index {index} of term {term}")),
            }
        }
        T::MsgAppendResponse if !message.reject && message.index > last.0 => {
            invalid(format!("it acknowledges index {}, the log ends at {last}", message.index))
        }
        T::MsgHeartbeat if message.commit > last.0 => invalid(format!(
            "it says that this member holds index {}, but the log ends at {last}: has the disk lost something?",
            message.commit
        )),
        // Of a leader of an older version, which does not say of which term that is, it is 0.
        T::MsgHeartbeat if message.commit_term != 0 => match term_of(Index(message.commit)) {
            Some(term) if term.0 != message.commit_term => invalid(format!(
                "it says that this member holds index {} of term {}, but that is of term {term}: has the disk lost something?",
                message.commit, message.commit_term
            )),
            _ => Ok(()),
        },
        T::MsgReadIndex | T::MsgReadIndexResp if message.entries.len() != 1 => {
            invalid(format!("{} contexts, not one", message.entries.len()))
        }
        T::MsgAppendResponse
        | T::MsgHeartbeat
        | T::MsgHeartbeatResponse
        | T::MsgRequestVote
        | T::MsgRequestVoteResponse
        | T::MsgRequestPreVote
        | T::MsgRequestPreVoteResponse
        | T::MsgTimeoutNow
        | T::MsgReadIndex
        | T::MsgReadIndexResp => Ok(()),
        T::MsgHup
        | T::MsgBeat
        | T::MsgPropose
        | T::MsgUnreachable
        | T::MsgSnapStatus
        | T::MsgCheckQuorum
        | T::MsgTransferLeader => invalid("this kind does not travel".into()),
    }
}

fn snapshot_fault(message: &Message, me: NodeId) -> Option<String> {
    let meta = message.get_snapshot().get_metadata();
    let ConfState { voters, learners, voters_outgoing: outgoing, learners_next: next, .. } = meta.get_conf_state();
    let ids = || voters.iter().chain(learners).chain(outgoing).chain(next);
    let distinct = |ids: &[u64]| ids.iter().collect::<BTreeSet<_>>().len() == ids.len();
    if meta.index == 0 || meta.term == 0 || meta.term > message.term {
        return Some(format!("it is of index {} and term {} in term {}", meta.index, meta.term, message.term));
    }
    if meta.get_conf_state().auto_leave && outgoing.is_empty() {
        return Some("its configuration is to be left, and is not joint".into());
    }
    if voters.is_empty() || ids().any(|id| *id == 0) || ![voters, learners, outgoing, next].iter().all(|s| distinct(s))
    {
        return Some("its configuration names nobody, or somebody twice".into());
    }
    if learners.iter().any(|id| voters.contains(id) || outgoing.contains(id)) {
        return Some("its configuration has a learner that votes".into());
    }
    if next.iter().any(|id| voters.contains(id) || learners.contains(id) || !outgoing.contains(id)) {
        return Some("its configuration has a voter to be demoted that is not on its way out".into());
    }
    if !ids().any(|id| *id == me.0) {
        return Some(format!("its configuration does not have member {me}"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft::eraftpb::Entry;

    fn append(index: u64, log_term: u64, entries: &[(u64, u64)]) -> Message {
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgAppend);
        (message.to, message.from, message.term) = (1, 2, 5);
        (message.index, message.log_term) = (index, log_term);
        let entry = |&(index, term): &(u64, u64)| {
            let mut entry = Entry::default();
            (entry.index, entry.term) = (index, term);
            entry
        };
        message.entries = entries.iter().map(entry).collect::<Vec<_>>().into();
        message
    }

    fn ok(message: &Message) -> bool {
        let term_of = |index: Index| (5..=10).contains(&index.0).then_some(Term(3));
        check(message, NodeId(1), Index(10), term_of).is_ok()
    }

    #[test]
    fn a_configuration_that_is_to_be_left_is_joint() {
        let snapshot = |outgoing: &[u64]| {
            let mut message = Message::default();
            message.set_msg_type(MessageType::MsgSnapshot);
            (message.to, message.from, message.term) = (1, 2, 5);
            let meta = message.mut_snapshot().mut_metadata();
            (meta.index, meta.term) = (3, 4);
            let conf_state = meta.mut_conf_state();
            (conf_state.voters, conf_state.auto_leave) = (vec![1, 2], true);
            conf_state.voters_outgoing = outgoing.to_vec();
            message
        };
        assert!(ok(&snapshot(&[2])) && !ok(&snapshot(&[])));
    }

    #[test]
    fn appends() {
        assert!(ok(&append(0, 0, &[(1, 1), (2, 5)])));
        assert!(ok(&append(3, 2, &[])));
        assert!(!ok(&append(0, 0, &[(2, 1)])), "a gap");
        assert!(!ok(&append(3, 2, &[(4, 2), (4, 2)])), "a repetition");
        assert!(!ok(&append(3, 2, &[(4, 6)])), "an entry of a later term");
        assert!(!ok(&append(3, 2, &[(4, 1)])), "an entry older than what it follows");
        assert!(!ok(&append(3, 0, &[])), "an index without a term");
    }

    #[test]
    fn addresses_kinds_and_claims() {
        let message = |kind| {
            let mut message = append(0, 0, &[]);
            message.set_msg_type(kind);
            message
        };
        assert!(check(&message(MessageType::MsgAppend), NodeId(3), Index(0), |_| None).is_err(), "for another member");
        for kind in
            [MessageType::MsgHup, MessageType::MsgPropose, MessageType::MsgSnapStatus, MessageType::MsgUnreachable]
        {
            assert!(!ok(&message(kind)), "{kind:?} travels");
        }
        let mut ack = message(MessageType::MsgAppendResponse);
        ack.index = 11;
        assert!(!ok(&ack), "an acknowledgement beyond the log");
        ack.reject = true;
        assert!(ok(&ack));
        let mut beat = message(MessageType::MsgHeartbeat);
        beat.commit = 11;
        assert!(!ok(&beat), "a commit beyond the log");
        (beat.commit, beat.commit_term) = (10, 4);
        assert!(!ok(&beat), "a commit of another term than what is there");
        for (commit, term) in [(10, 3), (10, 0), (2, 1)] {
            (beat.commit, beat.commit_term) = (commit, term);
            assert!(ok(&beat), "{commit} of term {term}; what is not in the log any more is of any");
        }
        let mut question = message(MessageType::MsgReadIndex);
        question.entries = vec![Entry::default()].into();
        assert!(!ok(&question), "a read request of a term");
        question.term = 0;
        assert!(ok(&question));
        question.entries.clear();
        assert!(!ok(&question), "a read request without its context");
    }
}
