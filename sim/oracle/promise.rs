//! Oracle 3: at the instant a message leaves, what it promises is already on the sender's disk (Raft paper, figure 2:
//! "updated on stable storage before responding to RPCs").
//!
//! The disk is asked the way a restart would ask: its durable image is opened as a log, unless what it said last already
//! implies the promise: within a boot it takes nothing back. A term is promised by any
//! message sent in it, a vote by its grant, entries by their acknowledgement. Pre-votes promise nothing.

use std::collections::BTreeMap;

use raft::eraftpb::{HardState, Message, MessageType};

use super::Violations;
use crate::ids::Index;
use crate::raft::log::{self, LOG_FILE};
use crate::sim::disk::SimDisk;
use crate::sim::network::MachineId;

/// What each machine's disk would have given a restart when it was last asked, in its present boot.
#[derive(Default)]
pub struct Promises {
    read: BTreeMap<MachineId, (u64, (HardState, Index))>,
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
        let boot = disk.counts().boots;
        let known = self.read.get(&machine).filter(|(at, _)| *at == boot);
        if known.is_some_and(|(_, found)| broken(message, found).is_none()) {
            return;
        }
        match durable(disk) {
            Ok(found) => {
                if let Some(what) = broken(message, &found) {
                    violations.add("promises are durable", what);
                }
                self.read.insert(machine, (boot, found));
            }
            Err(what) => violations.add("promises are durable", what),
        }
    }
}

/// How a message promises more than a disk holds.
fn broken(message: &Message, (state, last): &(HardState, Index)) -> Option<String> {
    let (from, kind) = (message.from, message.get_msg_type());
    if state.term < message.term {
        return Some(format!(
            "member {from} sent {kind:?} of term {}, its disk knows term {}",
            message.term, state.term
        ));
    }
    let granted = kind == MessageType::MsgRequestVoteResponse && !message.reject;
    if granted && state.term == message.term && state.vote != message.to {
        let text =
            format!("member {from} voted for {} in term {}, its disk says {}", message.to, message.term, state.vote);
        return Some(text);
    }
    // Once the disk knows a later term, that term's leader may have replaced what was acknowledged; one sync can
    // make both durable, and then the acknowledgement leaves after what it speaks of has come and gone.
    let accepted = kind == MessageType::MsgAppendResponse && !message.reject && state.term == message.term;
    let beyond = accepted && last.0 < message.index;
    beyond.then(|| format!("member {from} acknowledged index {}, its disk ends at {last}", message.index))
}

fn durable(disk: &SimDisk) -> Result<(HardState, Index), String> {
    let copy = disk.durable(LOG_FILE);
    let mounted = copy.boot();
    log::promised(&*mounted).map_err(|fault| fault.to_string())
}
