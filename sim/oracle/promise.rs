//! Oracle 3: at the instant a message leaves, what it promises is already on the sender's disk (Raft paper, figure 2:
//! "updated on stable storage before responding to RPCs").
//!
//! The disk is asked the way a restart would ask: its durable image is opened as a log. A term is promised by any
//! message sent in it, a vote by its grant, entries by their acknowledgement. Pre-votes promise nothing.

use std::collections::BTreeMap;

use raft::eraftpb::{HardState, Message, MessageType};

use super::Violations;
use crate::ids::Index;
use crate::raft::log::Log;
use crate::sim::disk::SimDisk;
use crate::sim::network::MachineId;

/// What each machine's disk would give a restart, as of some number of syncs.
#[derive(Default)]
pub struct Promises {
    read: BTreeMap<MachineId, (u64, HardState, Index)>,
    /// Promises checked.
    pub checked: u64,
}

impl Promises {
    /// A message leaves a machine with this disk.
    pub fn on_message(&mut self, machine: MachineId, disk: &SimDisk, message: &Message, violations: &Violations) {
        use MessageType as T;
        let kind = message.get_msg_type();
        if message.term == 0 || matches!(kind, T::MsgRequestPreVote | T::MsgRequestPreVoteResponse) {
            return;
        }
        self.checked += 1;
        let (state, last) = match self.durable(machine, disk) {
            Ok(found) => found,
            Err(what) => return violations.add("promises are durable", what),
        };
        let from = message.from;
        if state.term < message.term {
            let what =
                format!("member {from} sent {kind:?} of term {}, its disk knows term {}", message.term, state.term);
            violations.add("promises are durable", what);
        }
        let granted = kind == T::MsgRequestVoteResponse && !message.reject;
        if granted && state.term == message.term && state.vote != message.to {
            let what = format!(
                "member {from} voted for {} in term {}, its disk says {}",
                message.to, message.term, state.vote
            );
            violations.add("promises are durable", what);
        }
        // Once the disk knows a later term, that term's leader may have replaced what was acknowledged; one sync can
        // make both durable, and then the acknowledgement leaves after what it speaks of has come and gone.
        let accepted = kind == T::MsgAppendResponse && !message.reject && state.term == message.term;
        if accepted && last.0 < message.index {
            let what = format!("member {from} acknowledged index {}, its disk ends at {last}", message.index);
            violations.add("promises are durable", what);
        }
    }

    fn durable(&mut self, machine: MachineId, disk: &SimDisk) -> Result<(HardState, Index), String> {
        let syncs = disk.counts().syncs;
        match self.read.get(&machine) {
            Some((at, state, last)) if *at == syncs => Ok((state.clone(), *last)),
            _ => {
                let log = Log::open(&*disk.durable().boot()).map_err(|fault| fault.to_string())?;
                let (state, last) = log.promised().map_err(|fault| fault.to_string())?;
                self.read.insert(machine, (syncs, state.clone(), last));
                Ok((state, last))
            }
        }
    }
}
