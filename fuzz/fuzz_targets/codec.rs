//! Whatever a peer sends, decoding gives a message or an error; what decodes comes back the same; and what passes the
//! checks cannot make Raft panic, whether this member follows or leads.

#![no_main]

use cairn::ids::{Index, NodeId, Term};
use cairn::io::Rng;
use cairn::proto::v1::{self, RaftFrame};
use cairn::raft::codec;
use cairn::raft::core::{Core, CoreConfig, Flow};
use cairn::raft::log::Recovered;
use cairn::raft::tail::Retention;
use cairn::time::ClusterTime;
use libfuzzer_sys::fuzz_target;
use prost::Message;
use raft::eraftpb::{ConfState, Entry, HardState};

/// A member of three whose log holds ten entries of the first term.
fn core() -> Core {
    let mut conf_state = ConfState::default();
    conf_state.set_voters(vec![1, 2, 3]);
    let mut hard_state = HardState::default();
    (hard_state.term, hard_state.commit) = (1, 8);
    let entry = |index| {
        let mut entry = Entry::default();
        (entry.index, entry.term) = (index, 1);
        entry
    };
    let recovered = Recovered {
        incarnation: cairn::ids::Incarnation(1),
        hard_state,
        compacted: (Index(4), Term(1)),
        entries: (5..=10).map(entry).collect(),
    };
    let config = CoreConfig {
        id: NodeId(1),
        election_ticks: 10,
        retention: Retention { entries: 4, bytes: 1 << 20, in_memory: 256 },
        flow: Flow::default(),
    };
    Core::new(config, recovered, Index(8), conf_state, Rng::from_seed([7; 32])).unwrap()
}

/// Does at once whatever is to be done. False if this member must stop, which a committed entry may demand.
fn perform(core: &mut Core) -> bool {
    while let Ok(effects) = core.take_effects() {
        let Some(effects) = effects else { return true };
        if let Some(write) = effects.write {
            core.on_persisted(write.number);
        }
        if let Some(index) = effects.install {
            core.on_installed(index);
        }
        for entry in effects.apply {
            core.on_applied(entry.index);
        }
        for fetch in effects.fetch {
            core.on_fetched(fetch, Vec::new());
        }
        if let Some(announced) = effects.stage {
            core.on_staged(&announced, true);
        }
    }
    false
}

fuzz_target!(|input: (bool, Vec<(u8, Vec<u8>)>)| {
    let (lead, steps) = input;
    let mut core = core();
    if lead {
        // Elected by whoever grants it: the fuzzer need not find out how.
        while core.status().term < Term(2) {
            core.tick();
            perform(&mut core);
            let pre = vote(true, core.status().term.0 + 1);
            let _ = core.step(pre);
            perform(&mut core);
        }
        let _ = core.step(vote(false, core.status().term.0));
        perform(&mut core);
    }
    for (kind, bytes) in steps.into_iter().take(32) {
        match kind % 8 {
            0 => core.tick(),
            1 => drop(core.propose(ClusterTime(1), vec![bytes.into()])),
            2 => drop(core.compact()),
            3 => core.read_index(bytes),
            _ => {
                let Ok(frame) = RaftFrame::decode(&*bytes) else { continue };
                for wire in frame.messages {
                    let Ok(message) = codec::message_from_wire(codec::sealed(wire)) else { continue };
                    let again = codec::message_to_wire(&message).encode_to_vec();
                    let again = codec::message_from_wire(v1::RaftMessage::decode(&*again).unwrap()).unwrap();
                    assert_eq!(again, message);
                    let _ = core.step(message);
                }
            }
        }
        if !perform(&mut core) {
            return;
        }
    }
});

fn vote(pre: bool, term: u64) -> raft::eraftpb::Message {
    use raft::eraftpb::MessageType::{MsgRequestPreVoteResponse, MsgRequestVoteResponse};
    let mut message = raft::eraftpb::Message::default();
    message.set_msg_type(if pre { MsgRequestPreVoteResponse } else { MsgRequestVoteResponse });
    (message.from, message.to, message.term) = (2, 1, term);
    message
}
